//! Why a tunnel or a stream of it failed.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use crate::pipe::Broken;
use crate::tunnel::connect::Refused;
use crate::tunnel::http2::{Failure, Reason};
use crate::tunnel::io::Fault;
use crate::tunnel::tls::PeerError;

/// Why a tunnel or a stream of it failed. Cheap to clone: all who waited for one handshake are
/// told the same.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The flow has no destination workload, or its head no address: the caller's mistake.
    #[error("the flow names no workload to tunnel to")]
    NoDestination,
    /// The socket could not be made in the source's namespace, or not be set up.
    #[error("cannot make the tunnel's socket")]
    Socket(#[source] Arc<io::Error>),
    /// Nothing took the TCP connection at the tunnel port.
    #[error("cannot connect to the tunnel port")]
    Connect(#[source] Arc<io::Error>),
    /// The TCP connection or the handshakes took too long.
    #[error("no tunnel within {0:?}")]
    Timeout(Duration),
    /// The peers do not trust each other, or one does not speak TLS.
    #[error("TLS failed")]
    Tls(#[source] rustls::Error),
    /// The peer has shown no certificate with an identity.
    #[error("the peer has proven no identity")]
    Peer(#[source] PeerError),
    /// The peer does not speak HTTP/2, or not correctly.
    #[error("HTTP/2 failed")]
    Protocol(#[source] Failure),
    /// The connection under the stream broke.
    #[error("tunnel lost ({0})")]
    Lost(io::ErrorKind),
    /// The peer gave no sign of life.
    #[error("no byte from the peer for {0:?}")]
    Silent(Duration),
    /// This side ended the tunnel: its pod or its destination is gone.
    #[error("tunnel closed: pod or destination gone")]
    Closed,
    /// The peer answered CONNECT with another status than 200.
    #[error("refused by the peer: {}", .0.reason())]
    Refused(Refused),
    /// Too much waited for this stream's reader, when too much waited for all.
    #[error("too much waited for a reader that did not read")]
    Unread,
    /// The peer reset the stream, with this code (RFC 9113 §7).
    #[error("stream reset by the peer ({0})")]
    Reset(Reason),
}

impl Error {
    /// A stable word for records and metrics.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NoDestination => "no_destination",
            Self::Socket(_) => "socket",
            Self::Connect(_) => "connect_failed",
            Self::Timeout(_) => "timeout",
            Self::Tls(_) | Self::Peer(_) => "tls_failed",
            Self::Protocol(_) => "protocol_error",
            Self::Lost(_) => "tunnel_lost",
            Self::Silent(_) => "tunnel_silent",
            Self::Closed => "tunnel_closed",
            Self::Refused(refused) => refused.reason(),
            Self::Unread => "unread",
            Self::Reset(_) => "reset",
        }
    }

    /// A failed handshake's error: TLS's own, where there is one inside.
    pub(crate) fn of_handshake(error: io::Error) -> Self {
        match error
            .get_ref()
            .and_then(|inner| inner.downcast_ref::<rustls::Error>())
        {
            Some(tls) => Self::Tls(tls.clone()),
            None => Self::Lost(error.kind()),
        }
    }
}

impl From<Fault> for Error {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Tls(error) => Self::Tls(error),
            Fault::Socket(kind) => Self::Lost(kind),
        }
    }
}

impl From<Error> for Broken {
    fn from(error: Error) -> Self {
        Self {
            reason: error.reason(),
            cause: Arc::new(error),
        }
    }
}
