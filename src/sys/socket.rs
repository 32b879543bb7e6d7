//! Sockets inside pods: transparent listeners, and the daemon's own connections.
//!
//! Every socket the daemon makes inside a pod carries [`OWN_MARK`], by which the pod's rules tell
//! the daemon's packets from the application's.

use std::io;
use std::net::{IpAddr, SocketAddr};

use socket2::{Domain, Protocol, Socket, Type};

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
pub fn listener(netns: &Netns, addr: SocketAddr, backlog: i32) -> io::Result<Socket> {
    let socket = new(netns, addr.ip())?;
    transparent(&socket, addr.ip())?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    if addr.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&addr.into())?;
    socket.listen(backlog)?;
    Ok(socket)
}

/// Makes a non-blocking TCP socket of the family of `to` inside `netns`, to connect from there.
///
/// # Errors
///
/// As `socket(2)`; `EAFNOSUPPORT` when the pod lacks the family.
pub fn connector(netns: &Netns, to: IpAddr) -> io::Result<Socket> {
    let socket = new(netns, to)?;
    socket.set_tcp_nodelay(true)?;
    Ok(socket)
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

/// Placeholder of capture's: a socket bound to `from`, ready to be connected to `to`.
///
/// # Errors
///
/// As `socket(2)` and `bind(2)`.
pub fn spoofed(
    netns: &Netns,
    from: IpAddr,
    to: SocketAddr,
    _avoid_port: Option<u16>,
) -> io::Result<Socket> {
    let socket = connector(netns, to.ip())?;
    transparent(&socket, from)?;
    socket.bind(&SocketAddr::new(from, 0).into())?;
    Ok(socket)
}
