//! How connections end: the words that access records, metrics and boards use for it.
//!
//! Programs translate the errors of stages into an [`Outcome`]. Its reason goes into the access
//! record; its flag is the `response_flags` label, for which the field has fewer words.

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// Both sides finished.
    Complete,
    /// Policy refused it: ours, or that of the destination's node (a 401).
    Denied,
    /// A changed policy ended it while it was alive.
    PolicyChanged,
    /// The destination, or the tunnel port in front of it, could not be reached.
    DialFailed,
    /// The TLS handshake of the tunnel failed, or the peer was not who it should be.
    TlsFailed,
    /// HTTP/2 failed under the stream.
    TunnelFailed,
    /// The destination's node answered the CONNECT with an error status other than 401.
    Refused,
    /// The destination did not answer in time.
    Timeout,
    /// The tunnel port did not answer in time: often a NetworkPolicy without port 15008.
    TunnelTimeout,
    /// The service has no endpoint that is ready.
    NoEndpoint,
    /// No certificate for the identity of one of our own pods.
    NoCertificate,
    /// It was made to one of our own ports, and is not what that port is for.
    Misdirected,
    /// A limit of this daemon was reached.
    Overloaded,
    /// One side reset it.
    Reset,
    /// The daemon stopped, or released the pod, and the time to drain was over.
    Drained,
    /// Its pod went away.
    PodGone,
}

/// The `response_flags` label of the field's metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Flag {
    /// Nothing to flag.
    None,
    /// Denied by policy.
    Deny,
    /// No connection to the destination.
    Connect,
    /// The TLS handshake failed.
    TlsFailure,
    /// HTTP/2 failed.
    H2Failure,
    /// The tunnel port was silent.
    NetworkPolicy,
    /// An own certificate was missing.
    IdentityError,
    /// No ready endpoint. (Not one of the reference's flags, which says `CONNECT`.)
    NoEndpoint,
}

impl Flag {
    /// All flags, in the order of [`Flag::index`].
    pub const ALL: [Self; 8] = [
        Self::None,
        Self::Deny,
        Self::Connect,
        Self::TlsFailure,
        Self::H2Failure,
        Self::NetworkPolicy,
        Self::IdentityError,
        Self::NoEndpoint,
    ];

    /// Its place in [`Flag::ALL`].
    #[must_use]
    pub fn index(self) -> usize {
        self as usize
    }

    /// The label's value, as ztunnel spells it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "-",
            Self::Deny => "DENY",
            Self::Connect => "CONNECT",
            Self::TlsFailure => "TLS_FAILURE",
            Self::H2Failure => "H2_HANDSHAKE_FAILURE",
            Self::NetworkPolicy => "NETWORK_POLICY",
            Self::IdentityError => "IDENTITY_ERROR",
            Self::NoEndpoint => "NO_ENDPOINT",
        }
    }
}

impl Outcome {
    /// The stable word of access records; `None` for a connection that simply finished.
    #[must_use]
    pub fn reason(self) -> Option<&'static str> {
        Some(match self {
            Self::Complete => return None,
            Self::Denied => "denied",
            Self::PolicyChanged => "policy_changed",
            Self::DialFailed => "dial_failed",
            Self::TlsFailed => "tls_failed",
            Self::TunnelFailed => "tunnel_failed",
            Self::Refused => "refused",
            Self::Timeout | Self::TunnelTimeout => "timeout",
            Self::NoEndpoint => "no_endpoint",
            Self::NoCertificate => "no_certificate",
            Self::Misdirected => "misdirected",
            Self::Overloaded => "overloaded",
            Self::Reset => "reset",
            Self::Drained => "drained",
            Self::PodGone => "pod_gone",
        })
    }

    /// The `response_flags` label it is counted under.
    #[must_use]
    pub fn flag(self) -> Flag {
        match self {
            Self::Complete | Self::Reset | Self::Drained | Self::PodGone => Flag::None,
            Self::Denied | Self::PolicyChanged | Self::Misdirected => Flag::Deny,
            Self::DialFailed | Self::Refused | Self::Timeout | Self::Overloaded => Flag::Connect,
            Self::TlsFailed => Flag::TlsFailure,
            Self::TunnelFailed => Flag::H2Failure,
            Self::TunnelTimeout => Flag::NetworkPolicy,
            Self::NoCertificate => Flag::IdentityError,
            Self::NoEndpoint => Flag::NoEndpoint,
        }
    }

    /// Whether it counts as failed: it never reached the application it was for.
    ///
    /// A connection that carried bytes and was then cut is closed, not failed.
    #[must_use]
    pub fn failed(self) -> bool {
        self.flag() != Flag::None && self != Self::PolicyChanged
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_know_their_place() {
        for (at, flag) in Flag::ALL.into_iter().enumerate() {
            assert_eq!(flag.index(), at, "{flag:?}");
        }
    }

    #[test]
    fn a_cut_connection_is_closed_and_a_refused_one_failed() {
        let check = |outcome: Outcome, reason: Option<&str>, flag: &str, failed: bool| {
            assert_eq!(outcome.reason(), reason);
            assert_eq!(outcome.flag().as_str(), flag, "{outcome:?}");
            assert_eq!(outcome.failed(), failed, "{outcome:?}");
        };
        check(Outcome::Complete, None, "-", false);
        check(Outcome::Reset, Some("reset"), "-", false);
        check(
            Outcome::PolicyChanged,
            Some("policy_changed"),
            "DENY",
            false,
        );
        check(Outcome::Denied, Some("denied"), "DENY", true);
        check(Outcome::Timeout, Some("timeout"), "CONNECT", true);
        check(
            Outcome::TunnelTimeout,
            Some("timeout"),
            "NETWORK_POLICY",
            true,
        );
        check(
            Outcome::NoEndpoint,
            Some("no_endpoint"),
            "NO_ENDPOINT",
            true,
        );
    }
}
