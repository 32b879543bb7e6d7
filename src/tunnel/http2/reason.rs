//! Error codes, and why a connection cannot go on.

use std::fmt;

/// The code of an RST_STREAM or a GOAWAY (RFC 9113 §7).
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Reason(u32);

const NAMES: [&str; 14] = [
    "NO_ERROR",
    "PROTOCOL_ERROR",
    "INTERNAL_ERROR",
    "FLOW_CONTROL_ERROR",
    "SETTINGS_TIMEOUT",
    "STREAM_CLOSED",
    "FRAME_SIZE_ERROR",
    "REFUSED_STREAM",
    "CANCEL",
    "COMPRESSION_ERROR",
    "CONNECT_ERROR",
    "ENHANCE_YOUR_CALM",
    "INADEQUATE_SECURITY",
    "HTTP_1_1_REQUIRED",
];

impl Reason {
    /// No error: an orderly end.
    pub const NO_ERROR: Self = Self(0);
    /// A rule was broken.
    pub const PROTOCOL_ERROR: Self = Self(1);
    /// A window was overrun, or overflows.
    pub const FLOW_CONTROL_ERROR: Self = Self(3);
    /// A frame for a stream that has ended.
    pub const STREAM_CLOSED: Self = Self(5);
    /// A frame has a length that its type cannot have.
    pub const FRAME_SIZE_ERROR: Self = Self(6);
    /// The stream was not looked at.
    pub const REFUSED_STREAM: Self = Self(7);
    /// The stream is not wanted any more.
    pub const CANCEL: Self = Self(8);
    /// A header block cannot be decoded.
    pub const COMPRESSION_ERROR: Self = Self(9);
    /// The connection behind a CONNECT was reset.
    pub const CONNECT_ERROR: Self = Self(10);
    /// The peer asks for more than it is good for.
    pub const ENHANCE_YOUR_CALM: Self = Self(11);

    /// The reason with this code; those that nobody has defined are kept as they are.
    #[must_use]
    pub fn from_code(code: u32) -> Self {
        Self(code)
    }

    /// The code on the wire.
    #[must_use]
    pub fn code(self) -> u32 {
        self.0
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = usize::try_from(self.0).ok().and_then(|at| NAMES.get(at));
        match name {
            Some(name) => f.write_str(name),
            None => write!(f, "code {:#x}", self.0),
        }
    }
}

impl fmt::Debug for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why a connection cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The peer broke a rule, and is told so by GOAWAY with this code.
    #[error("{1} ({0})")]
    Broken(Reason, &'static str),
    /// The peer gave the connection up by GOAWAY, with this code.
    #[error("given up by the peer ({0})")]
    GoneAway(Reason),
}

impl Failure {
    /// The code for the peer.
    pub(crate) fn reason(self) -> Reason {
        match self {
            Self::Broken(reason, _) => reason,
            Self::GoneAway(_) => Reason::NO_ERROR,
        }
    }
}
