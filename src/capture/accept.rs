//! Accepts captured connections, one by one.
//!
//! The address of an accepted socket is the address that the peer dialled: capture rewrites
//! nothing. A connection that dialled one of our own ports in a way they are not for is refused
//! here. The rules refuse before only what stays within the pod.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use nix::libc;

use crate::capture::Port;
use crate::mesh::{OriginalDst, canonical};
use crate::sys::socket::{Acceptor, AppSocket};

/// A connection of an enrolled pod.
#[derive(Debug)]
pub struct Captured {
    /// The socket to whoever dialled.
    pub socket: AppSocket,
    /// Who dialled, as this pod sees it; canonical.
    pub source: SocketAddr,
    /// What was dialled.
    pub original_dst: OriginalDst,
}

/// A connection that dialled one of our own ports. It has been reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Who dialled.
    pub source: SocketAddr,
    /// What was dialled.
    pub dialled: SocketAddr,
}

/// What came to a listener.
#[derive(Debug)]
pub enum Accepted {
    /// A connection to carry.
    Captured(Captured),
    /// A connection that was not for us; count it and go on.
    Refused(Refused),
}

/// How long to wait after [`AcceptError::Exhausted`].
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Why nothing can be accepted.
#[derive(Debug, thiserror::Error)]
pub enum AcceptError {
    /// The process or the system is out of descriptors or memory. The connection still waits:
    /// pause for [`ACCEPT_PAUSE`] and try again, or this would be asked without end.
    #[error("out of descriptors or memory")]
    Exhausted(#[source] io::Error),
    /// The listener is of no more use.
    #[error("the listener is broken")]
    Broken(#[source] io::Error),
}

/// Accepts the next connection on `listener`, which is one on `port`.
///
/// # Errors
///
/// See [`AcceptError`]. A connection that ends before it is accepted is no error; the next one is
/// waited for.
pub async fn accept(listener: &Acceptor, port: Port) -> Result<Accepted, AcceptError> {
    let (socket, source) = loop {
        match listener.accept().await {
            Ok(accepted) => break accepted,
            Err(error) => sort(error)?,
        }
    };
    let source = canonical(source);
    let dialled = canonical(socket.tcp().local_addr().map_err(AcceptError::Broken)?);
    let Some(original_dst) = classify(port, dialled) else {
        return Ok(Accepted::Refused(Refused { source, dialled }));
    };
    Ok(Accepted::Captured(Captured {
        socket,
        source,
        original_dst,
    }))
}

/// The destination of a connection that came to `port` and had dialled `dialled`; `None` if it
/// must be refused: nothing is captured on its way to loopback, tunnels are for the tunnel port,
/// and everything else for none of ours.
#[must_use]
pub fn classify(port: Port, dialled: SocketAddr) -> Option<OriginalDst> {
    let dialled = canonical(dialled);
    let for_tunnels = dialled.port() == Port::Tunnel.number();
    let fits = match port {
        Port::Tunnel => for_tunnels,
        Port::Outbound | Port::Inbound => !Port::is_ours(dialled.port()),
    };
    (fits && !dialled.ip().is_loopback()).then(|| OriginalDst::new(dialled))
}

/// Passes over what concerns only one connection, which is gone (accept(2), "Error handling").
fn sort(error: io::Error) -> Result<(), AcceptError> {
    match error.raw_os_error() {
        Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM) => {
            Err(AcceptError::Exhausted(error))
        }
        Some(
            libc::ECONNABORTED
            | libc::EINTR
            | libc::EPROTO
            | libc::EPERM
            | libc::ENOPROTOOPT
            | libc::ENETDOWN
            | libc::EHOSTDOWN
            | libc::ENONET
            | libc::EHOSTUNREACH
            | libc::ENETUNREACH
            | libc::EOPNOTSUPP,
        ) => Ok(()),
        _ => Err(AcceptError::Broken(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_port_is_for_is_taken() {
        let check = |port, dialled: &str, taken| {
            let taken: Option<&str> = taken;
            let found = classify(port, dialled.parse().unwrap()).map(|dst| dst.to_string());
            assert_eq!(found.as_deref(), taken, "{port:?} {dialled}");
        };
        check(Port::Outbound, "10.0.0.9:80", Some("10.0.0.9:80"));
        check(Port::Outbound, "[::ffff:10.0.0.9]:80", Some("10.0.0.9:80"));
        check(Port::Outbound, "[fd00::9]:443", Some("[fd00::9]:443"));
        for ours in [15001, 15006, 15008] {
            check(Port::Outbound, &format!("10.0.0.9:{ours}"), None);
            check(Port::Inbound, &format!("10.0.0.9:{ours}"), None);
        }
        check(Port::Outbound, "127.0.0.1:15001", None);
        check(Port::Outbound, "127.0.0.1:80", None);
        check(Port::Inbound, "10.0.0.9:8080", Some("10.0.0.9:8080"));
        check(Port::Inbound, "[::1]:8080", None);
        check(Port::Tunnel, "10.0.0.9:15008", Some("10.0.0.9:15008"));
        check(Port::Tunnel, "10.0.0.9:8080", None);
        check(Port::Tunnel, "127.0.0.1:15008", None);
        check(Port::Tunnel, "[::ffff:127.0.0.1]:15008", None);
    }

    #[test]
    fn exhaustion_is_told_from_a_lost_connection() {
        let of = |code| sort(io::Error::from_raw_os_error(code));
        assert!(of(libc::ECONNABORTED).is_ok());
        assert!(matches!(of(libc::EMFILE), Err(AcceptError::Exhausted(_))));
        assert!(matches!(of(libc::EBADF), Err(AcceptError::Broken(_))));
    }
}
