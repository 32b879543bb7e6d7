//! Sockets inside pods: transparent listeners, and the daemon's own connections.
//!
//! Every socket the daemon makes inside a pod carries [`OWN_MARK`], by which the pod's rules tell
//! the daemon's packets from the application's; and every one resets its connection when it is
//! closed, from its birth on (see [`AppSocket`]). What a listener is set to, its connections
//! inherit: system calls less for each of them.

mod app;
mod congestion;
mod dial;
mod lane;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};

pub use crate::sys::socket::app::{Acceptor, AppSocket, Listener};
pub(crate) use crate::sys::socket::congestion::Known;
pub use crate::sys::socket::congestion::{Congestion, NoSuchCongestion};
pub use crate::sys::socket::dial::{Reach, connect, connect_announced, connect_from};
pub use crate::sys::socket::lane::{Lane, steer};

use crate::sys::netns::Netns;

/// Packet mark of the daemon's own sockets inside a pod, under [`MARK_MASK`].
pub const OWN_MARK: u32 = 0x539;
/// Packet mark of captured packets on their way through the pod's loopback, under [`MARK_MASK`].
pub const CAPTURED_MARK: u32 = 0x111;
/// The bits of a packet mark that belong to us; the others are the pod's.
pub const MARK_MASK: u32 = 0xfff;

/// Makes a transparent, non-blocking listener on a loopback address inside `netns`.
///
/// Several listeners may share one address (`SO_REUSEPORT`): the kernel spreads connections over
/// them, one per worker.
///
/// # Errors
///
/// As `socket(2)`, `bind(2)` and `listen(2)`: above all `EADDRINUSE` when the application holds
/// the port, `EADDRNOTAVAIL` or `EAFNOSUPPORT` when the pod lacks the family, `EPERM` without
/// `CAP_NET_ADMIN`.
pub fn listener(netns: &Netns, addr: SocketAddr, backlog: i32) -> io::Result<Listener> {
    let socket = resetting(netns, addr.ip())?;
    keep_alive(&socket)?;
    transparent(&socket, addr.ip())?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    // Who dials here is mostly on this node; a tunnel that came a long way gets its own.
    congestion::unpaced(netns, &socket);
    if addr.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&addr.into())?;
    socket.listen(backlog)?;
    Ok(Listener::of(socket))
}

/// Makes a non-blocking TCP socket of the family of `to` inside `netns`, to connect from there. It
/// asks a silent peer whether it is still there, and resets its connection when it is closed.
///
/// # Errors
///
/// As `socket(2)`; `EAFNOSUPPORT` when the pod lacks the family.
pub fn connector(netns: &Netns, to: IpAddr) -> io::Result<Socket> {
    let socket = resetting(netns, to)?;
    keep_alive(&socket)?;
    Ok(socket)
}

/// Makes [`connector`]'s socket for a tunnel, whose congestion control is chosen when the path is
/// known ([`Congestion::settle`]): from the one that paces there is no way back, to it there is.
///
/// It leaves from the address `from`, if that is of the family of `to`. With a lane, its port is
/// one that names the worker, so that the tunnels of a node's workers come to as many workers of
/// the other node ([`Lane`]); without, or when none is free, it is the kernel's choice.
///
/// # Errors
///
/// As [`connector`] and `bind(2)`.
pub fn tunnel_connector(
    netns: &Netns,
    from: IpAddr,
    to: IpAddr,
    lane: Option<Lane>,
) -> io::Result<Socket> {
    let socket = connector(netns, to)?;
    congestion::unpaced(netns, &socket);
    if from.is_ipv4() != to.is_ipv4() {
        return Ok(socket);
    }
    if let Some(lane) = lane {
        // Other sockets of ours use these ports towards other destinations.
        socket.set_reuse_address(true)?;
        if dial::bind_in_lane(&socket, from, lane)? {
            return Ok(socket);
        }
    }
    socket.bind(&SocketAddr::new(from, 0).into())?;
    Ok(socket)
}

/// Asks a silent peer whether it is still there. An application's own question reaches only us,
/// and we answer: without this, a peer that is gone without a word would never be missed.
fn keep_alive(socket: &Socket) -> io::Result<()> {
    const QUIET: Duration = Duration::from_secs(180);
    const BETWEEN: Duration = Duration::from_secs(30);
    let keepalive = TcpKeepalive::new().with_time(QUIET).with_interval(BETWEEN);
    socket.set_tcp_keepalive(&keepalive)
}

/// Lets `socket` take addresses that are not this pod's.
///
/// # Errors
///
/// `EPERM` without `CAP_NET_ADMIN` or `CAP_NET_RAW`.
pub fn transparent(socket: &Socket, family_of: IpAddr) -> io::Result<()> {
    if family_of.is_ipv4() {
        socket.set_ip_transparent_v4(true)
    } else {
        socket.set_ip_transparent_v6(true)
    }
}

/// Whether a listener on `addr` inside `netns` would be alone there.
///
/// [`listener`] shares its address with whoever has the same user id and the same wish to share;
/// an application that runs as root may be that. This asks for the address without sharing.
///
/// # Errors
///
/// As [`listener`].
pub fn unclaimed(netns: &Netns, addr: SocketAddr) -> io::Result<()> {
    let socket = new(netns, addr.ip())?;
    socket.set_reuse_address(true)?;
    if addr.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&addr.into())
}

/// A socket that sends without delay, and resets its connection when it is closed: with a zero
/// linger time, close(2) sends RST (tcp(7)). So it is from the first SYN on and whoever closes it,
/// also the kernel for a process that was killed.
fn resetting(netns: &Netns, family_of: IpAddr) -> io::Result<Socket> {
    let socket = new(netns, family_of)?;
    socket.set_tcp_nodelay(true)?;
    socket.set_linger(Some(Duration::ZERO))?;
    Ok(socket)
}

fn new(netns: &Netns, family_of: IpAddr) -> io::Result<Socket> {
    let domain = if family_of.is_ipv4() {
        Domain::IPV4
    } else {
        Domain::IPV6
    };
    let kind = Type::STREAM.nonblocking().cloexec();
    let socket = netns.enter(|| Socket::new(domain, kind, Some(Protocol::TCP)))??;
    socket.set_mark(OWN_MARK)?;
    Ok(socket)
}
