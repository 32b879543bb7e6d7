//! Connects to applications, and to whatever a captured connection was bound for.

use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::authorize::Permit;
use crate::mesh::Direction;
use crate::sys::netns::Netns;
use crate::sys::socket::{AppSocket, Lane, Reach, connect, connect_announced, connect_from};

/// From the first SYN to a connection, at most.
const DEADLINE: Duration = Duration::from_secs(10);

/// Why a destination could not be dialled.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Nothing listens there, or something refused on its behalf.
    #[error("{to} refused the connection")]
    Refused {
        /// What was dialled.
        to: SocketAddr,
        /// What the kernel said.
        #[source]
        cause: io::Error,
    },
    /// No answer in time.
    #[error("{to} did not answer")]
    Timeout {
        /// What was dialled.
        to: SocketAddr,
    },
    /// There is no way there.
    #[error("{to} cannot be reached")]
    Unreachable {
        /// What was dialled.
        to: SocketAddr,
        /// What the kernel said.
        #[source]
        cause: io::Error,
    },
    /// Every port of the source's address is in use towards this destination.
    #[error("no free port of the source's address towards {to}")]
    NoPort {
        /// What was dialled.
        to: SocketAddr,
        /// What the kernel said.
        #[source]
        cause: io::Error,
    },
    /// The socket could not be made in the pod, or not have that source address.
    #[error("cannot make a socket in the pod")]
    Socket(#[source] io::Error),
}

impl Error {
    /// A stable word for records and metrics.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Refused { .. } => "refused",
            Self::Timeout { .. } => "timeout",
            Self::Unreachable { .. } => "unreachable",
            Self::NoPort { .. } => "no_port",
            Self::Socket(_) => "socket",
        }
    }

    fn of(to: SocketAddr, cause: io::Error) -> Self {
        match cause.kind() {
            io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset => {
                Self::Refused { to, cause }
            }
            io::ErrorKind::TimedOut => Self::Timeout { to },
            io::ErrorKind::AddrNotAvailable | io::ErrorKind::AddrInUse => {
                Self::NoPort { to, cause }
            }
            io::ErrorKind::PermissionDenied => Self::Socket(cause),
            _ => Self::Unreachable { to, cause },
        }
    }
}

/// Connects to the destination of the permit's flow, from `from` where given, inside `netns`.
///
/// `from` may be the pod's own address or a client's. In the latter case the client's own
/// connection may stand in this very namespace with the same two addresses; its port is avoided.
///
/// # Errors
///
/// [`Error`], by what a person would do about it.
pub async fn dial(
    permit: &Permit,
    netns: &Netns,
    from: Option<IpAddr>,
) -> Result<AppSocket, Error> {
    let flow = permit.flow();
    let to = flow.destination.addr;
    let from = from.filter(|from| from.is_ipv4() == to.is_ipv4());
    let own = flow.direction == Direction::Outbound || from == Some(to.ip());
    match from {
        Some(from) if !own => {
            let client = flow.source.addr;
            let avoid = (client.ip() == from).then(|| client.port());
            within(to, connect_from(netns, from, to, avoid)).await
        }
        from => {
            let reach = match flow.direction {
                Direction::Inbound => Reach::Application,
                Direction::Outbound => Reach::Elsewhere,
            };
            within(to, connect(netns, from, to, reach)).await
        }
    }
}

/// Connects from the pod's address `from` to `to`, by which the permit's destination is reached.
/// Before each try `announce` is told the address the other side will see; what it returned lives
/// with the connection, or ends with the try. `None` makes it try another port. The worker of `lane`
/// will accept it.
///
/// # Errors
///
/// As [`dial`].
pub async fn dial_announced<T>(
    _permit: &Permit,
    netns: &Netns,
    from: IpAddr,
    to: SocketAddr,
    lane: Lane,
    announce: impl FnMut(SocketAddr) -> Option<T>,
) -> Result<(AppSocket, T), Error> {
    within(to, connect_announced(netns, from, to, lane, announce)).await
}

async fn within<T>(
    to: SocketAddr,
    connecting: impl Future<Output = io::Result<T>>,
) -> Result<T, Error> {
    // Boxed, because the caller's future lives as long as its connection.
    match Box::pin(tokio::time::timeout(DEADLINE, connecting)).await {
        Ok(connected) => connected.map_err(|cause| Error::of(to, cause)),
        Err(_) => Err(Error::Timeout { to }),
    }
}
