//! Dialling from inside a pod: from which port, and when the connection is there.

use std::cell::Cell;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;

use nix::libc;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::IpBindAddressNoPort;
use socket2::Socket;
use tokio::net::TcpStream;

use crate::sys::netns::Netns;
use crate::sys::socket::app::{AppSocket, Start};
use crate::sys::socket::lane::Lane;
use crate::sys::socket::{congestion, connector, resetting, transparent};

/// Ports that no system hands out by itself unless told so, and few servers listen on: above
/// Linux's range (`net.ipv4.ip_local_port_range`, 32768 to 60999).
pub(crate) const ABOVE: RangeInclusive<u16> = 61000..=65535;
/// The same below Linux's range and below that of RFC 6335 (49152 to 65535), which other systems
/// use.
pub(crate) const BELOW: RangeInclusive<u16> = 20480..=30719;

/// Who is at the other end of a dial.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// An application in the same namespace. It cannot be gone without a word, so it is never
    /// asked whether it is there.
    Application,
    /// This daemon, in another pod of this node. The pod's link may be gone before its word.
    Neighbour,
    /// Anyone else, anywhere.
    Elsewhere,
}

impl Reach {
    /// Makes a socket that is ready to be bound and connected.
    fn socket(self, netns: &Netns, to: IpAddr) -> io::Result<Socket> {
        let socket = match self {
            Self::Application => resetting(netns, to)?,
            Self::Neighbour | Self::Elsewhere => connector(netns, to)?,
        };
        if self != Self::Elsewhere {
            congestion::unpaced(netns, &socket);
            // Keeps the handshake's last packet back until it has bytes to go with, which are
            // most often there (`tcp_rcv_synsent_state_process`); see `AppSocket::begun`.
            socket.set_tcp_quickack(false)?;
        }
        Ok(socket)
    }

    fn start(self) -> Start {
        match self {
            Self::Application => Start::Held,
            Self::Neighbour => Start::HeldOn,
            Self::Elsewhere => Start::Over,
        }
    }
}

/// Connects from inside `netns` to `to`, from the pod's address `from` if there is a choice.
///
/// # Errors
///
/// As `socket(2)`, `bind(2)` and `connect(2)`.
pub async fn connect(
    netns: &Netns,
    from: Option<IpAddr>,
    to: SocketAddr,
    reach: Reach,
) -> io::Result<AppSocket> {
    let socket = reach.socket(netns, to.ip())?;
    if let Some(from) = from {
        setsockopt(&socket, IpBindAddressNoPort, &true)?;
        socket.bind(&SocketAddr::new(from, 0).into())?;
    }
    establish(socket, to, reach).await
}

/// Connects from inside `netns` to the application at `to` as if from `from`, which need not be an
/// address of the pod.
///
/// Two things decide about its port. The pod's other sockets may hold the client's own
/// connections, under the very addresses that this one will have, seen from the other side; so the
/// port is one that the client is unlikely to use, and never `avoid_port`, the one it is known to
/// use. And a port the kernel chooses cannot be used again for a minute after its connection
/// ended (`TIME_WAIT`), which would allow 28,000 connections a minute; a port bound by number can
/// be used at once (`tcp_twsk_unique`).
///
/// To connect may still fail with `EADDRNOTAVAIL`, because the same connection exists, and with
/// `ECONNREFUSED`, because the client has one with the same addresses; then another port is tried.
///
/// # Errors
///
/// As `socket(2)`, `bind(2)` and `connect(2)`; `EPERM` without `CAP_NET_ADMIN`.
pub async fn connect_from(
    netns: &Netns,
    from: IpAddr,
    to: SocketAddr,
    avoid_port: Option<u16>,
) -> io::Result<AppSocket> {
    let way = Way {
        netns,
        from,
        to,
        avoid_port,
        lane: Lane::ALONE,
        reach: Reach::Application,
    };
    let (socket, ()) = way.connect(|_| Some(())).await?;
    Ok(socket)
}

/// Connects from the pod's own address `from` to this daemon in another pod of this node. Before
/// each try `announce` is told the address it will come from, so that whoever accepts it can know
/// it. What `announce` returned is dropped if the try fails; `None` says that another connection
/// is on its way from there, and another port is tried. The worker of `lane` will accept it.
///
/// # Errors
///
/// As [`connect_from`].
pub async fn connect_announced<T>(
    netns: &Netns,
    from: IpAddr,
    to: SocketAddr,
    lane: Lane,
    announce: impl FnMut(SocketAddr) -> Option<T>,
) -> io::Result<(AppSocket, T)> {
    let way = Way {
        netns,
        from,
        to,
        avoid_port: None,
        lane,
        reach: Reach::Neighbour,
    };
    way.connect(announce).await
}

/// A dial by a port of our choice.
struct Way<'a> {
    netns: &'a Netns,
    from: IpAddr,
    to: SocketAddr,
    avoid_port: Option<u16>,
    lane: Lane,
    reach: Reach,
}

impl Way<'_> {
    async fn connect<T>(
        &self,
        mut announce: impl FnMut(SocketAddr) -> Option<T>,
    ) -> io::Result<(AppSocket, T)> {
        let [first, second] = preferred(self.avoid_port);
        let mut range = &first;
        let mut refused = false;
        for attempt in 0..8 {
            if attempt == 4 {
                range = &second;
            }
            let Some((socket, local)) = self.numbered(range)? else {
                continue;
            };
            match self.announced(socket, local, &mut announce).await {
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
        let (socket, local) = self.unnumbered()?;
        self.announced(socket, local, &mut announce).await
    }

    async fn announced<T>(
        &self,
        socket: Socket,
        local: SocketAddr,
        announce: &mut impl FnMut(SocketAddr) -> Option<T>,
    ) -> io::Result<(AppSocket, T)> {
        let announced = announce(local).ok_or(ErrorKind::AddrNotAvailable)?;
        Ok((establish(socket, self.to, self.reach).await?, announced))
    }

    /// A socket that may have any source.
    fn socket(&self) -> io::Result<Socket> {
        let socket = self.reach.socket(self.netns, self.to.ip())?;
        if self.reach != Reach::Neighbour {
            transparent(&socket, self.from)?;
        }
        Ok(socket)
    }

    /// A socket bound to a port of `range`; `None` if none was found in a few tries.
    fn numbered(&self, range: &RangeInclusive<u16>) -> io::Result<Option<(Socket, SocketAddr)>> {
        let socket = self.socket()?;
        // Shares the port with connections to elsewhere, and with ones that have ended.
        socket.set_reuse_address(true)?;
        for _ in 0..8 {
            let port = next_port(range, self.lane);
            if Some(port) == self.avoid_port {
                continue;
            }
            let local = SocketAddr::new(self.from, port);
            match socket.bind(&local.into()) {
                Ok(()) => return Ok(Some((socket, local))),
                // Somebody listens on this port at every address.
                Err(error) if error.kind() == ErrorKind::AddrInUse => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// A socket at a port that the kernel has chosen, when no other is to be had.
    fn unnumbered(&self) -> io::Result<(Socket, SocketAddr)> {
        let socket = self.socket()?;
        socket.bind(&SocketAddr::new(self.from, 0).into())?;
        let local = socket.local_addr()?;
        let local = local.as_socket().ok_or(ErrorKind::AddrNotAvailable)?;
        Ok((socket, local))
    }
}

async fn establish(socket: Socket, to: SocketAddr, reach: Reach) -> io::Result<AppSocket> {
    let there = ask(&socket, to, reach)?;
    let tcp = TcpStream::from_std(socket.into())?;
    if !there {
        tcp.writable().await?;
        if let Some(error) = tcp.take_error()? {
            return Err(error);
        }
    }
    Ok(AppSocket::born(tcp, reach.start()))
}

/// Begins to connect; whether that is done. Within one kernel the whole handshake happens inside
/// connect(2), which has made up its answer before: asked again, it knows.
fn ask(socket: &Socket, to: SocketAddr, reach: Reach) -> io::Result<bool> {
    let to = to.into();
    let times = if reach == Reach::Elsewhere { 1 } else { 2 };
    for _ in 0..times {
        match socket.connect(&to) {
            Ok(()) => return Ok(true),
            Err(error) => match error.raw_os_error() {
                Some(libc::EINPROGRESS | libc::EALREADY) => {}
                _ => return Err(error),
            },
        }
    }
    Ok(false)
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

/// Binds `socket` to a port of `from` that names the worker of `lane`; whether one was found in a few
/// tries.
pub(crate) fn bind_in_lane(socket: &Socket, from: IpAddr, lane: Lane) -> io::Result<bool> {
    for _ in 0..8 {
        let local = SocketAddr::new(from, next_port(&ABOVE, lane));
        match socket.bind(&local.into()) {
            Ok(()) => return Ok(true),
            Err(error) if error.kind() == ErrorKind::AddrInUse => {}
            Err(error) => return Err(error),
        }
    }
    Ok(false)
}

/// The next port of `range` on this thread's way through all that are of `lane`. Threads start
/// anywhere.
fn next_port(range: &RangeInclusive<u16>, lane: Lane) -> u16 {
    thread_local! {
        static TURN: Cell<u64> = Cell::new(RandomState::new().hash_one(()) >> 32);
    }
    let turn = TURN.get();
    TURN.set(turn + 1);
    let length = u64::from(range.end() - range.start()) + 1;
    lane.port(*range.start(), length, turn)
}
