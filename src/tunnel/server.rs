//! A tunnel that a peer made: accepted, driven, and asked for what arrives.
//!
//! [`Incoming::next`] drives the connection: whoever holds an `Incoming` must keep calling it, and
//! must do the work of a request elsewhere. It may be dropped and called again at any time.
//!
//! How many handshakes run at once is for the caller to bound; each has a deadline.

use std::future::Future as _;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;
use http::{Response, StatusCode};
use rustls::ServerConfig;
use socket2::SockRef;
use tokio::net::TcpStream;

use crate::mesh::Identity;
use crate::pipe::{CHUNK, FRAME};
use crate::tunnel::client::watch;
use crate::tunnel::connect::{ConnectHead, Status};
use crate::tunnel::error::Error;
use crate::tunnel::io::{self as wire, Socket, Wire};
use crate::tunnel::pace::{Load, Pace, Place};
use crate::tunnel::stream::{RESET, Stream};
use crate::tunnel::{Limits, tls, window};

/// Streams that the peer reset before we looked at them; more end the connection (rapid reset).
const RESETS_PENDING: usize = 100;
/// Streams that we reset and remember, so that late frames for them are no error.
const RESETS_REMEMBERED: usize = 256;

/// A peer's tunnel.
pub struct Incoming {
    connection: Box<h2::server::Connection<Socket, Bytes>>,
    pace: Pace,
    load: Rc<Load>,
    peer: Identity,
    draining: bool,
}

/// One CONNECT request. Dropped without an answer, it is reset.
pub struct Request {
    head: ConnectHead,
    /// Until it is answered.
    open: Option<Open>,
}

struct Open {
    body: RecvStream,
    respond: SendResponse<Bytes>,
    place: Place,
}

/// Makes `tcp` a tunnel: TLS, the peer's identity, HTTP/2.
///
/// # Errors
///
/// The peer is too slow, not trusted, or does not speak the protocol.
pub async fn accept(
    tcp: TcpStream,
    config: Arc<ServerConfig>,
    limits: &Limits,
) -> Result<Incoming, Error> {
    match tokio::time::timeout(limits.handshake, handshake(tcp, config, limits)).await {
        Ok(result) => result,
        Err(_) => Err(Error::Timeout(limits.handshake)),
    }
}

async fn handshake(
    tcp: TcpStream,
    config: Arc<ServerConfig>,
    limits: &Limits,
) -> Result<Incoming, Error> {
    watch(SockRef::from(&tcp), limits).map_err(|error| Error::Socket(Arc::new(error)))?;
    let tls = rustls::server::UnbufferedServerConnection::new(config).map_err(Error::Tls)?;
    let (socket, wire) = wire::handshake(tcp, tls.into())
        .await
        .map_err(Error::of_handshake)?;
    let peer = tls::peer_identity(&wire.peer_certificates()).map_err(Error::Peer)?;
    if !wire.speaks_h2() {
        return Err(Error::Tls(rustls::Error::NoApplicationProtocol));
    }
    let mut connection = Box::new(preface(socket, &wire, limits).await?);
    let ping = connection.ping_pong().expect("asked for once");
    let load = Load::new();
    let pace = Pace::new(wire, load.clone(), ping, limits);
    Ok(Incoming {
        connection,
        pace,
        load,
        peer,
        draining: false,
    })
}

/// The HTTP/2 preface; what h2 writes leaves only when the wire is flushed.
async fn preface(
    socket: Socket,
    wire: &Wire,
    limits: &Limits,
) -> Result<h2::server::Connection<Socket, Bytes>, Error> {
    let mut handshake = std::pin::pin!(builder(limits).handshake(socket));
    let done = std::future::poll_fn(|cx| {
        wire.begin_turn();
        let done = handshake.as_mut().poll(cx);
        match wire.poll_flush(cx) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(Error::Lost(error.kind()))),
            _ => done.map_err(|error| Error::of_connection(wire.fault(), error)),
        }
    });
    done.await
}

fn builder(limits: &Limits) -> h2::server::Builder {
    let mut builder = h2::server::Builder::new();
    builder
        .initial_window_size(window::INITIAL)
        .initial_connection_window_size(window::CONNECTION)
        .max_frame_size(u32::try_from(FRAME).expect("a frame is small"))
        .max_header_list_size(limits.header_list)
        .max_concurrent_streams(limits.incoming_streams)
        .max_concurrent_reset_streams(RESETS_REMEMBERED)
        .max_pending_accept_reset_streams(RESETS_PENDING)
        .max_send_buffer_size(CHUNK)
        .data_frame_budget(window::SMALL_FRAMES);
    builder
}

impl Incoming {
    /// Who the peer has proven to be.
    #[must_use]
    pub fn peer(&self) -> &Identity {
        &self.peer
    }

    /// How many streams are open.
    #[must_use]
    pub fn streams(&self) -> usize {
        self.load.streams()
    }

    /// Asks the peer to open nothing more (two-step GOAWAY, RFC 9113 §6.8). What it opens before
    /// it knows is still served, and [`next`](Self::next) gives `None` when the last stream ends.
    pub fn drain(&mut self) {
        if !self.draining {
            self.draining = true;
            self.connection.graceful_shutdown();
        }
    }

    /// The next request; `None` when the tunnel has ended in order. Drives all its streams.
    ///
    /// # Errors
    ///
    /// The tunnel broke, with all its streams. There is nothing more to come.
    pub async fn next(&mut self) -> Option<Result<Request, Error>> {
        std::future::poll_fn(|cx| self.poll_next(cx)).await
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Request, Error>>> {
        self.pace.begin();
        let accepted = self.connection.poll_accept(cx);
        let connection = &mut self.connection;
        if let Poll::Ready(Some(Ok((request, respond)))) = accepted {
            // The caller comes back for more, and the flush with it.
            let head = ConnectHead::read(&request);
            let open = Open {
                body: request.into_body(),
                respond,
                place: self.load.place(),
            };
            return Poll::Ready(Some(Ok(Request {
                head,
                open: Some(open),
            })));
        }
        let lost = self
            .pace
            .finish(cx, |size| connection.set_initial_window_size(size));
        match (accepted, lost) {
            (Poll::Ready(None), _) => {
                self.load
                    .ended(Error::Lost(io::ErrorKind::ConnectionAborted));
                Poll::Ready(None)
            }
            (Poll::Ready(Some(Err(error))), _) => {
                let error = Error::of_connection(self.pace.wire.fault(), error);
                self.load.ended(error.clone());
                Poll::Ready(Some(Err(error)))
            }
            (_, Poll::Ready(error)) => {
                self.load.ended(error.clone());
                self.connection.abrupt_shutdown(h2::Reason::NO_ERROR);
                Poll::Ready(Some(Err(error)))
            }
            _ => Poll::Pending,
        }
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        self.load.ended(Error::Closed);
    }
}

impl Request {
    /// What it asks for.
    #[must_use]
    pub fn head(&self) -> &ConnectHead {
        &self.head
    }

    /// Answers 200: the application is connected.
    ///
    /// # Errors
    ///
    /// The stream was reset or the tunnel lost meanwhile.
    pub fn accept(mut self) -> Result<Stream, Error> {
        let Some(Open {
            body,
            mut respond,
            place,
        }) = self.open.take()
        else {
            return Err(Error::Closed);
        };
        let sent = respond.send_response(response(StatusCode::OK), false);
        let send = sent.map_err(|error| place.explain(error))?;
        Ok(Stream::accepted_from(send, body, place))
    }

    /// Answers with a status and ends the stream: nothing will be carried.
    pub fn refuse(mut self, status: Status) {
        if let Some(mut open) = self.open.take() {
            // When it cannot be sent, the client has gone and needs no answer.
            let _ = open.respond.send_response(response(status.code()), true);
        }
    }

    /// Ready when the client has given up meanwhile, and how: a dial for it can be dropped.
    pub async fn abandoned(&mut self) -> Error {
        let Some(open) = &mut self.open else {
            return Error::Closed;
        };
        match std::future::poll_fn(|cx| open.respond.poll_reset(cx)).await {
            Ok(reason) => open.place.end().unwrap_or(Error::Reset(reason)),
            Err(error) => open.place.explain(error),
        }
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        if let Some(open) = &mut self.open {
            open.respond.send_reset(RESET);
        }
    }
}

fn response(status: StatusCode) -> Response<()> {
    let mut response = Response::new(());
    *response.status_mut() = status;
    response
}
