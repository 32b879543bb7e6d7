//! A tunnel that this side makes: connected, driven, and asked for streams.
//!
//! [`connect`] does TCP, TLS and the HTTP/2 preface and gives a [`Tunnel`] for the
//! [`pool`](crate::tunnel::pool) and a [`Driver`] to be run beside it. A tunnel that is
//! [retired](Tunnel::retire) opens nothing more and ends when its last stream does.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use h2::SendStream;
use h2::client::{ResponseFuture, SendRequest};
use http::Request;
use rustls::ClientConfig;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::Instant;

use crate::mesh::TunnelAddr;
use crate::pipe::{CHUNK, FRAME};
use crate::sys::socket::tunnel_connector;
use crate::tunnel::error::Error;
use crate::tunnel::io::{self as wire, Socket};
use crate::tunnel::pace::{Load, Pace, Place};
use crate::tunnel::pool::Origin;
use crate::tunnel::window;
use crate::tunnel::{Limits, tls};

/// Streams that a peer is assumed to take until its SETTINGS say otherwise.
const STREAMS_ASSUMED: usize = 100;
/// Streams that were reset and are remembered, so that late frames for them are no error.
const RESETS_REMEMBERED: usize = 256;

/// A tunnel as the pool sees it.
pub(crate) struct Tunnel {
    requests: RefCell<Option<SendRequest<Bytes>>>,
    load: Rc<Load>,
    most: usize,
    retired: Cell<bool>,
}

/// A stream whose CONNECT is queued.
pub(crate) struct Opened {
    pub(crate) response: ResponseFuture,
    pub(crate) send: SendStream<Bytes>,
    pub(crate) place: Place,
}

impl Tunnel {
    /// Whether one more stream may be opened.
    pub(crate) fn has_room(&self) -> bool {
        let mut requests = self.requests.borrow_mut();
        let Some(sender) = requests.as_mut() else {
            return false;
        };
        let mut cx = Context::from_waker(std::task::Waker::noop());
        if let Poll::Ready(Err(_)) = sender.poll_ready(&mut cx) {
            // GOAWAY, or broken: what is open goes on, nothing new begins.
            *requests = None;
            return false;
        }
        self.load.streams() < self.most.min(sender.current_max_send_streams())
    }

    /// Whether this place is on it.
    pub(crate) fn carries(&self, place: &Place) -> bool {
        place.is_on(&self.load)
    }

    /// How many streams it carries.
    pub(crate) fn streams(&self) -> usize {
        self.load.streams()
    }

    /// Why it ended, if it did.
    pub(crate) fn end(&self) -> Option<Error> {
        self.load.end()
    }

    /// Queues a CONNECT. No I/O happens until the driver's turn.
    pub(crate) fn open(&self, request: Request<()>) -> Result<Opened, Error> {
        let requests = self.requests.borrow();
        let sender = requests
            .as_ref()
            .ok_or_else(|| self.end().unwrap_or(Error::Closed))?;
        let opened = sender.clone().send_request(request, false);
        let (response, send) = opened.map_err(Error::of_stream)?;
        Ok(Opened {
            response,
            send,
            place: self.load.place(),
        })
    }

    /// Opens nothing more; ends when its last stream does.
    pub(crate) fn retire(&self) {
        self.retired.set(true);
        *self.requests.borrow_mut() = None;
    }

    /// Records that this side ends it at once.
    pub(crate) fn closed(&self) {
        self.load.ended(Error::Closed);
        self.retire();
    }
}

/// Makes a tunnel from `origin` to `via`, within the handshake deadline.
pub(crate) async fn connect(
    origin: &Origin,
    via: TunnelAddr,
    config: Arc<ClientConfig>,
    limits: &Limits,
) -> Result<(Rc<Tunnel>, Driver), Error> {
    let work = async {
        let tcp = dial(origin, via.get(), limits).await?;
        handshake(tcp, config, limits).await
    };
    match tokio::time::timeout(limits.handshake, work).await {
        Ok(result) => result,
        Err(_) => Err(Error::Timeout(limits.handshake)),
    }
}

async fn dial(origin: &Origin, via: SocketAddr, limits: &Limits) -> Result<TcpStream, Error> {
    let made = || -> io::Result<TcpSocket> {
        let socket = tunnel_connector(&origin.netns, via.ip())?;
        watch(SockRef::from(&socket), limits)?;
        if origin.address.is_ipv4() == via.is_ipv4() {
            socket.bind(&SocketAddr::new(origin.address, 0).into())?;
        }
        Ok(TcpSocket::from_std_stream(socket.into()))
    };
    let socket = made().map_err(|error| Error::Socket(Arc::new(error)))?;
    let connected = socket.connect(via).await;
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
    let tls = rustls::client::UnbufferedClientConnection::new(config, tls::server_name())
        .map_err(Error::Tls)?;
    let (socket, wire) = wire::handshake(tcp, tls.into())
        .await
        .map_err(Error::of_handshake)?;
    if !wire.speaks_h2() {
        return Err(Error::Tls(rustls::Error::NoApplicationProtocol));
    }
    let begun = builder(limits).handshake::<_, Bytes>(socket).await;
    let (requests, mut connection) = begun.map_err(Error::of_stream)?;
    let load = Load::new();
    let ping = connection.ping_pong().expect("asked for once");
    let pace = Pace::new(wire, load.clone(), ping, limits);
    let tunnel = Rc::new(Tunnel {
        requests: RefCell::new(Some(requests)),
        load,
        most: limits.streams,
        retired: Cell::new(false),
    });
    let driver = Driver {
        connection: Box::new(connection),
        pace,
        tunnel: tunnel.clone(),
        idle: limits.idle,
    };
    Ok((tunnel, driver))
}

fn builder(limits: &Limits) -> h2::client::Builder {
    let mut builder = h2::client::Builder::new();
    builder
        .enable_push(false)
        .initial_window_size(window::INITIAL)
        .initial_connection_window_size(window::CONNECTION)
        .max_frame_size(u32::try_from(FRAME).expect("a frame is small"))
        .max_header_list_size(limits.header_list)
        .initial_max_send_streams(STREAMS_ASSUMED)
        .max_concurrent_reset_streams(RESETS_REMEMBERED)
        .max_send_buffer_size(CHUNK)
        .data_frame_budget(window::SMALL_FRAMES);
    builder
}

/// Drives a tunnel until it ends. Dropped earlier, it resets all streams.
pub(crate) struct Driver {
    connection: Box<h2::client::Connection<Socket, Bytes>>,
    pace: Pace,
    tunnel: Rc<Tunnel>,
    idle: Duration,
}

impl Future for Driver {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self.get_mut();
        this.pace.begin();
        if let Poll::Ready(result) = Pin::new(&mut *this.connection).poll(cx) {
            let end = match result {
                Ok(()) => Error::Lost(io::ErrorKind::ConnectionAborted),
                Err(error) => Error::of_connection(this.pace.wire.fault(), error),
            };
            return this.end(cx, end);
        }
        let connection = &mut this.connection;
        let finished = this
            .pace
            .finish(cx, |size| connection.set_initial_window_size(size));
        if let Poll::Ready(error) = finished {
            return this.end(cx, error);
        }
        let idle = |since| Instant::now() >= since + this.idle;
        if !this.tunnel.retired.get() && this.tunnel.load.idle_since().is_some_and(idle) {
            // The connection closes itself once nobody can open a stream on it.
            this.tunnel.retire();
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }
}

impl Driver {
    fn end(&mut self, cx: &mut Context<'_>, error: Error) -> Poll<()> {
        self.tunnel.load.ended(error);
        self.tunnel.retire();
        let _ = self.pace.wire.poll_flush(cx);
        Poll::Ready(())
    }
}
