//! A tunnel that this side makes: connected, driven, and asked for streams.
//!
//! [`connect`] does TCP, TLS and the HTTP/2 preface and gives a [`Tunnel`] for the
//! [`pool`](crate::tunnel::pool) and a [`Driver`] to be run beside it. A tunnel that is
//! [retired](Tunnel::retire) opens nothing more and ends when its last stream does.

use std::cell::Cell;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rustls::ClientConfig;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::Instant;

use crate::mesh::TunnelAddr;
use crate::sys::socket::{Lane, tunnel_connector};
use crate::tunnel::connect::ConnectHead;
use crate::tunnel::error::Error;
use crate::tunnel::http2::Role;
use crate::tunnel::io as wire;
use crate::tunnel::link::{Link, Place};
use crate::tunnel::pace::{End, Pace};
use crate::tunnel::pool::Origin;
use crate::tunnel::{Limits, tls, waiting};

/// A tunnel as the pool sees it.
pub(crate) struct Tunnel {
    link: Rc<Link>,
    most: usize,
    retired: Cell<bool>,
}

impl Tunnel {
    /// Whether one more stream may be opened.
    pub(crate) fn has_room(&self) -> bool {
        let http = self.link.http.borrow();
        !self.retired.get() && http.may_open() && http.held() < self.most.min(http.peer_streams())
    }

    /// Whether this is its link.
    pub(crate) fn is_on(&self, link: &Rc<Link>) -> bool {
        Rc::ptr_eq(&self.link, link)
    }

    /// How many streams it carries.
    pub(crate) fn streams(&self) -> usize {
        self.link.streams()
    }

    /// Why it ended, if it did.
    pub(crate) fn end(&self) -> Option<Error> {
        self.link.end()
    }

    /// Queues a CONNECT. No I/O happens until the driver's turn.
    pub(crate) fn open(&self, head: &ConnectHead) -> Result<Place, Error> {
        if self.retired.get() || !self.link.http.borrow().may_open() {
            return Err(self.end().unwrap_or(Error::Closed));
        }
        self.link.open(head)
    }

    /// Opens nothing more; ends when its last stream does.
    pub(crate) fn retire(&self) {
        self.retired.set(true);
        self.link.wake_driver();
    }

    /// Records that this side ends it at once.
    pub(crate) fn closed(&self) {
        self.retire();
        self.link.ended(Error::Closed);
    }
}

/// Makes a tunnel from `origin` to `via`, within the handshake deadline.
pub(crate) async fn connect(
    origin: &Origin,
    via: TunnelAddr,
    config: Arc<ClientConfig>,
    limits: &Limits,
    lane: Lane,
) -> Result<(Rc<Tunnel>, Driver), Error> {
    let work = async {
        let tcp = dial(origin, via.get(), limits, lane).await?;
        handshake(tcp, config, limits).await
    };
    match tokio::time::timeout(limits.handshake, work).await {
        Ok(result) => result,
        Err(_) => Err(Error::Timeout(limits.handshake)),
    }
}

async fn dial(
    origin: &Origin,
    via: SocketAddr,
    limits: &Limits,
    lane: Lane,
) -> Result<TcpStream, Error> {
    let made = |lane| {
        let made = || -> io::Result<TcpSocket> {
            let socket = tunnel_connector(&origin.netns, origin.address, via.ip(), lane)?;
            watch(SockRef::from(&socket), limits)?;
            Ok(TcpSocket::from_std_stream(socket.into()))
        };
        made().map_err(|error| Error::Socket(Arc::new(error)))
    };
    let mut connected = made(Some(lane))?.connect(via).await;
    if let Err(error) = &connected
        && error.kind() == io::ErrorKind::AddrNotAvailable
    {
        // There is a connection from that very port to that very place.
        connected = made(None)?.connect(via).await;
    }
    let tcp = connected.map_err(|error| match error.kind() {
        io::ErrorKind::TimedOut => Error::Timeout(limits.handshake),
        _ => Error::Connect(Arc::new(error)),
    })?;
    limits
        .congestion
        .settle(&origin.netns, &SockRef::from(&tcp));
    Ok(tcp)
}

/// Lets the kernel notice a peer that takes nothing, and a path that forgot us.
pub(crate) fn watch(socket: SockRef<'_>, limits: &Limits) -> io::Result<()> {
    const PROBE: Duration = Duration::from_secs(30);
    // What was written last, a GOAWAY for one, is to arrive.
    socket.set_linger(None)?;
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_user_timeout(Some(limits.dead))?;
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(PROBE).with_interval(PROBE))
}

async fn handshake(
    tcp: TcpStream,
    config: Arc<ClientConfig>,
    limits: &Limits,
) -> Result<(Rc<Tunnel>, Driver), Error> {
    let ends = waiting::Ends::of(&tcp).map_err(|error| Error::Socket(Arc::new(error)))?;
    let tls = rustls::client::UnbufferedClientConnection::new(config, tls::server_name())
        .map_err(Error::Tls)?;
    let wire = wire::handshake(tcp, tls.into())
        .await
        .map_err(Error::of_handshake)?;
    if !wire.speaks_h2() {
        return Err(Error::Tls(rustls::Error::NoApplicationProtocol));
    }
    let pace = Pace::new(wire, Role::Client, ends, limits);
    let tunnel = Rc::new(Tunnel {
        link: pace.link.clone(),
        most: limits.streams,
        retired: Cell::new(false),
    });
    let driver = Driver {
        pace,
        tunnel: tunnel.clone(),
        idle: limits.idle,
    };
    Ok((tunnel, driver))
}

/// Drives a tunnel until it ends. Dropped earlier, it resets all streams.
pub(crate) struct Driver {
    pace: Pace,
    tunnel: Rc<Tunnel>,
    idle: Duration,
}

impl Future for Driver {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self.get_mut();
        if let Poll::Ready(End::Closed | End::Broken(_)) = this.pace.poll_turn(cx) {
            this.tunnel.retire();
            return Poll::Ready(());
        }
        let link = &this.pace.link;
        let idle = |since| Instant::now() >= since + this.idle;
        if !this.tunnel.retired.get() && link.idle_since().is_some_and(idle) {
            this.tunnel.retire();
        }
        let http = link.http.borrow();
        let done = http.is_done() || this.tunnel.retired.get() && http.is_quiet();
        drop(http);
        if !done && !this.pace.is_closing() {
            return Poll::Pending;
        }
        ready!(this.pace.poll_close(cx));
        this.tunnel.retire();
        Poll::Ready(())
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.pace.link.ended(Error::Closed);
    }
}
