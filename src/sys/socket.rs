//! Sockets inside pods: transparent listeners, and the daemon's own connections.
//!
//! Every socket the daemon makes inside a pod carries [`OWN_MARK`], by which the pod's rules tell
//! the daemon's packets from the application's.

use std::cell::Cell;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};
use tokio::net::{TcpSocket, TcpStream};

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
    // What it accepts inherits these, as it does the mark: system calls less per connection.
    socket.set_tcp_nodelay(true)?;
    keep_alive(&socket)?;
    if addr.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&addr.into())?;
    socket.listen(backlog)?;
    Ok(socket)
}

/// Makes a non-blocking TCP socket of the family of `to` inside `netns`, to connect from there.
///
/// Closing it resets its connection (close(2) with a zero linger time sends RST, tcp(7)), from the
/// first SYN on and whoever closes it: an application must never take a dial that was given up
/// for an end in order. Who has an end in order to tell clears the linger time first.
///
/// # Errors
///
/// As `socket(2)`; `EAFNOSUPPORT` when the pod lacks the family.
pub fn connector(netns: &Netns, to: IpAddr) -> io::Result<Socket> {
    let socket = new(netns, to)?;
    socket.set_tcp_nodelay(true)?;
    socket.set_linger(Some(Duration::ZERO))?;
    keep_alive(&socket)?;
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

/// Ports that no system hands out by itself unless told so, and few servers listen on: above
/// Linux's range (`net.ipv4.ip_local_port_range`, 32768 to 60999).
const ABOVE: RangeInclusive<u16> = 61000..=65535;
/// The same below Linux's range and below that of RFC 6335 (49152 to 65535), which other systems
/// use.
const BELOW: RangeInclusive<u16> = 20480..=30719;

/// Makes a non-blocking TCP socket inside `netns` that will connect to `to` as if it came from
/// `from`, which need not be an address of the pod. It is bound, and ready to be connected.
///
/// Two things decide about its port. The pod's other sockets may hold the client's own
/// connections, under the very addresses that this one will have, seen from the other side; so the
/// port is one that the client is unlikely to use, and never `avoid_port`, the one it is known to
/// use. And a port the kernel chooses cannot be used again for a minute after its connection
/// ended (`TIME_WAIT`), which would allow 28,000 connections a minute; a port bound by number can
/// be used at once (`tcp_twsk_unique`).
///
/// To connect may still fail with `EADDRNOTAVAIL`, because the same connection exists, and with
/// `ECONNREFUSED`, because the client has one with the same addresses; another call brings
/// another port. [`connect_from`] does all that.
///
/// # Errors
///
/// As `socket(2)` and `bind(2)`: `EPERM` without `CAP_NET_ADMIN`.
pub fn spoofed(
    netns: &Netns,
    from: IpAddr,
    to: SocketAddr,
    avoid_port: Option<u16>,
) -> io::Result<Socket> {
    let [range, _] = preferred(avoid_port);
    match numbered(netns, from, to, avoid_port, &range)? {
        Some(socket) => Ok(socket),
        None => unnumbered(netns, from, to),
    }
}

/// Connects from inside `netns` to `to` as if from `from`, at a port that is free (see
/// [`spoofed`]).
///
/// # Errors
///
/// As `connect(2)`; as [`spoofed`].
pub async fn connect_from(
    netns: &Netns,
    from: IpAddr,
    to: SocketAddr,
    avoid_port: Option<u16>,
) -> io::Result<TcpStream> {
    let (stream, ()) = connect_announced(netns, from, to, avoid_port, |_| Some(())).await?;
    Ok(stream)
}

/// As [`connect_from`]; before each try `announce` is told the address it will come from, so that
/// whoever accepts it can know it. What `announce` returned is dropped if the try fails; `None`
/// says that another connection is on its way from there, and another port is tried.
///
/// # Errors
///
/// As [`connect_from`].
pub async fn connect_announced<T>(
    netns: &Netns,
    from: IpAddr,
    to: SocketAddr,
    avoid_port: Option<u16>,
    mut announce: impl FnMut(SocketAddr) -> Option<T>,
) -> io::Result<(TcpStream, T)> {
    let [first, second] = preferred(avoid_port);
    let mut range = &first;
    let mut refused = false;
    for attempt in 0..8 {
        if attempt == 4 {
            range = &second;
        }
        let Some(socket) = numbered(netns, from, to, avoid_port, range)? else {
            continue;
        };
        match connect(socket, to, &mut announce).await {
            Err(error) if error.kind() == ErrorKind::AddrNotAvailable => {}
            // Either nobody listens, or this was the port of a connection of the client's: the
            // rules refuse that. Only one of the two happens again, elsewhere.
            Err(error) if error.kind() == ErrorKind::ConnectionRefused && !refused => {
                refused = true;
                range = &second;
            }
            done => return done,
        }
    }
    connect(unnumbered(netns, from, to)?, to, &mut announce).await
}

async fn connect<T>(
    socket: Socket,
    to: SocketAddr,
    announce: &mut impl FnMut(SocketAddr) -> Option<T>,
) -> io::Result<(TcpStream, T)> {
    let socket = TcpSocket::from_std_stream(socket.into());
    let announced = announce(socket.local_addr()?).ok_or(ErrorKind::AddrNotAvailable)?;
    Ok((socket.connect(to).await?, announced))
}

/// Where to look for a port, in this order. Where the client is known to have connections of its
/// own here, what other systems use is avoided first.
fn preferred(avoid_port: Option<u16>) -> [RangeInclusive<u16>; 2] {
    if avoid_port.is_some() {
        [BELOW, ABOVE]
    } else {
        [ABOVE, BELOW]
    }
}

/// A socket bound to a port of `range`; `None` if none was found in a few tries.
fn numbered(
    netns: &Netns,
    from: IpAddr,
    to: SocketAddr,
    avoid_port: Option<u16>,
    range: &RangeInclusive<u16>,
) -> io::Result<Option<Socket>> {
    let socket = connector(netns, to.ip())?;
    transparent(&socket, from)?;
    // Shares the port with connections to elsewhere, and with ones that have ended.
    socket.set_reuse_address(true)?;
    for _ in 0..8 {
        let port = next_port(range);
        if Some(port) == avoid_port {
            continue;
        }
        match socket.bind(&SocketAddr::new(from, port).into()) {
            Ok(()) => return Ok(Some(socket)),
            // Somebody listens on this port at every address.
            Err(error) if error.kind() == ErrorKind::AddrInUse => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

/// A socket at a port that the kernel has chosen, when no other is to be had.
fn unnumbered(netns: &Netns, from: IpAddr, to: SocketAddr) -> io::Result<Socket> {
    let socket = connector(netns, to.ip())?;
    transparent(&socket, from)?;
    socket.bind(&SocketAddr::new(from, 0).into())?;
    Ok(socket)
}

/// The next port of `range` on this thread's way through all of them, in leaps: who met a port that
/// somebody uses should not meet that one's neighbours next. Threads start anywhere.
fn next_port(range: &RangeInclusive<u16>) -> u16 {
    /// A prime, and so no divisor of the ranges' lengths: the way leads to every port.
    const LEAP: u64 = 1999;
    thread_local! {
        static TURN: Cell<u64> = Cell::new(RandomState::new().hash_one(()) >> 32);
    }
    let turn = TURN.get();
    TURN.set(turn + 1);
    let length = u64::from(range.end() - range.start()) + 1;
    let offset = turn * LEAP % length;
    range.start() + u16::try_from(offset).expect("shorter than all ports")
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_port_of_a_range_has_its_turn() {
        for range in [ABOVE, BELOW] {
            let all: std::collections::HashSet<_> =
                range.clone().map(|_| next_port(&range)).collect();
            assert_eq!(all.len(), range.clone().count());
            assert!(all.iter().all(|port| range.contains(port)));
        }
    }
}
