//! Stage 5: reaches applications, and moves the bytes.
//!
//! [`dial`] connects from a pod's namespace, as the client where it is not the pod itself;
//! [`relay`] joins an application's socket with a stream of a tunnel, [`splice`] two sockets. Both
//! directions of a connection are one task; each ends on its own, by FIN or by reset, and what ends
//! at one side ends in the same way at the other:
//!
//! - FIN goes on as FIN when all bytes before it are delivered, and the other direction stays;
//! - a reset at either side resets the other at once, also while nothing is being moved;
//! - a future that is dropped resets both sides.
//!
//! A connection that is silent holds no buffer: reads go into a buffer of the thread, and only
//! what could not be sent on stays with the connection.

mod app;
mod dial;
mod duct;
mod relay;
mod seam;
mod splice;

pub use dial::{Error, dial, dial_announced};
pub use relay::{Relay, relay};
pub use seam::Half;
pub use splice::{Splice, splice};

use std::cell::Cell;
use std::fmt;
use std::io;

use crate::pipe::Broken;

/// The bytes of one connection so far, as seen from the first argument of [`relay`] or [`splice`].
#[derive(Debug, Default)]
pub struct Meter {
    /// From the near side to the far side. What a stream has taken before the far side accepted
    /// it counts from then on; if it never accepts, it does not count.
    pub sent: Cell<u64>,
    /// From the far side to the near side, counted when the near side's socket has it.
    pub received: Cell<u64>,
}

impl AsRef<Self> for Meter {
    fn as_ref(&self) -> &Self {
        self
    }
}

impl Meter {
    fn add_sent(&self, count: usize) {
        self.sent.set(self.sent.get() + count as u64);
    }

    fn add_received(&self, count: usize) {
        self.received.set(self.received.get() + count as u64);
    }
}

/// One end of a joined pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The first argument of [`relay`] or [`splice`].
    Near,
    /// The second.
    Far,
}

impl Side {
    /// `near` or `far`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Near => "near",
            Self::Far => "far",
        }
    }

    fn other(self) -> Self {
        match self {
            Self::Near => Self::Far,
            Self::Far => Self::Near,
        }
    }
}

/// How a connection went.
#[derive(Debug)]
pub struct End {
    /// Bytes from the near to the far side.
    pub sent: u64,
    /// Bytes from the far to the near side.
    pub received: u64,
    /// The side that ended first, by FIN or by failing.
    pub by: Side,
    /// Why it did not end with a FIN of both sides.
    pub fault: Option<Fault>,
}

impl End {
    /// The same end, seen from the other side.
    #[must_use]
    pub fn flipped(self) -> Self {
        Self {
            sent: self.received,
            received: self.sent,
            by: self.by.other(),
            fault: self.fault,
        }
    }

    /// A stable word for records and metrics; `None` for an end in order.
    #[must_use]
    pub fn reason(&self) -> Option<&'static str> {
        self.fault.as_ref().map(Fault::reason)
    }
}

/// Why a connection ended otherwise than in order. Both sides were reset.
#[derive(Debug)]
pub enum Fault {
    /// A socket failed; `ECONNRESET` is the peer's reset.
    Socket(io::Error),
    /// The stream of the tunnel was refused, reset or lost.
    Stream(Broken),
}

impl Fault {
    /// A stable word for records and metrics.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Socket(error) => match error.kind() {
                io::ErrorKind::ConnectionReset
                | io::ErrorKind::BrokenPipe
                | io::ErrorKind::ConnectionAborted => "reset",
                io::ErrorKind::TimedOut => "timeout",
                _ => "socket",
            },
            Self::Stream(broken) => broken.reason,
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Socket(_) => "socket failed",
            Self::Stream(_) => "stream failed",
        })
    }
}

impl std::error::Error for Fault {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Socket(error) => Some(error),
            Self::Stream(broken) => Some(&*broken.cause),
        }
    }
}
