//! A tunnel that a peer made: accepted, driven, and asked for what arrives.
//!
//! [`Incoming::next`] drives the connection: whoever holds an `Incoming` must keep calling it, and
//! must do the work of a request elsewhere. It may be dropped and called again at any time.
//!
//! How many handshakes run at once is for the caller to bound; each has a deadline.

use std::io;
use std::sync::Arc;
use std::task::{Context, Poll};

use rustls::ServerConfig;
use socket2::SockRef;
use tokio::net::TcpStream;

use crate::mesh::Identity;
use crate::tunnel::client::watch;
use crate::tunnel::connect::{ConnectHead, Status};
use crate::tunnel::error::Error;
use crate::tunnel::http2::Role;
use crate::tunnel::io as wire;
use crate::tunnel::link::Place;
use crate::tunnel::pace::{End, Pace};
use crate::tunnel::stream::{RESET, Stream};
use crate::tunnel::{Limits, tls, waiting};

/// A peer's tunnel.
pub struct Incoming {
    pace: Pace,
    peer: Identity,
    /// Requests were given out since the last turn, whose tasks have not run yet.
    fresh: bool,
}

/// One CONNECT request. Dropped without an answer, it is reset.
pub struct Request {
    head: ConnectHead,
    /// Until it is answered.
    place: Option<Place>,
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
    let ends = waiting::Ends::of(&tcp).map_err(|error| Error::Socket(Arc::new(error)))?;
    let tls = rustls::server::UnbufferedServerConnection::new(config).map_err(Error::Tls)?;
    let wire = wire::handshake(tcp, tls.into())
        .await
        .map_err(Error::of_handshake)?;
    let peer = tls::peer_identity(&wire.peer_certificates()).map_err(Error::Peer)?;
    if !wire.speaks_h2() {
        return Err(Error::Tls(rustls::Error::NoApplicationProtocol));
    }
    let mut incoming = Incoming {
        pace: Pace::new(wire, Role::Server, ends, limits),
        peer,
        fresh: false,
    };
    std::future::poll_fn(|cx| incoming.poll_greeted(cx)).await?;
    Ok(incoming)
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
        self.pace.link.streams()
    }

    /// Asks the peer to open nothing more (two-step GOAWAY, RFC 9113 §6.8). What it opens before
    /// it knows is still served, and [`next`](Self::next) gives `None` when the last stream ends.
    pub fn drain(&mut self) {
        self.pace.link.http.borrow_mut().drain();
        self.pace.link.wake_driver();
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
        if let Some(request) = self.arrival() {
            return Poll::Ready(Some(Ok(request)));
        }
        if std::mem::take(&mut self.fresh) {
            // The tasks of those requests run first, so that what they say leaves together.
            self.pace.put_off(cx);
            return Poll::Pending;
        }
        match self.pace.poll_turn(cx) {
            Poll::Ready(End::Closed) => return Poll::Ready(None),
            Poll::Ready(End::Broken(error)) => return Poll::Ready(Some(Err(error))),
            Poll::Pending => {}
        }
        match self.arrival() {
            Some(request) => Poll::Ready(Some(Ok(request))),
            None => self.poll_done(cx),
        }
    }

    fn arrival(&mut self) -> Option<Request> {
        let link = &self.pace.link;
        let (slot, fields) = link.http.borrow_mut().next_arrival()?;
        self.fresh = true;
        Some(Request {
            head: ConnectHead::read(&fields),
            place: Some(link.place(slot)),
        })
    }

    /// The first turns, until the peer has greeted.
    fn poll_greeted(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        let turn = self.pace.poll_turn(cx);
        match turn {
            _ if self.pace.link.http.borrow().is_greeted() => Poll::Ready(Ok(())),
            Poll::Pending => Poll::Pending,
            Poll::Ready(End::Broken(error)) => Poll::Ready(Err(error)),
            Poll::Ready(End::Closed) => Poll::Ready(Err(Error::Lost(io::ErrorKind::UnexpectedEof))),
        }
    }

    /// Closes the wire when no stream is left and none may come.
    fn poll_done(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Request, Error>>> {
        if !self.pace.is_closing() && !self.pace.link.http.borrow().is_done() {
            return Poll::Pending;
        }
        self.pace.poll_close(cx).map(|()| None)
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        self.pace.link.ended(Error::Closed);
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
        let place = self.place.take().ok_or(Error::Closed)?;
        if place.answer(200, false) {
            return Ok(Stream::open(place));
        }
        Err(place
            .fate()
            .map_or(Error::Closed, |fate| place.explain(fate)))
    }

    /// Answers with a status and ends the stream: nothing will be carried.
    pub fn refuse(mut self, status: Status) {
        if let Some(place) = self.place.take() {
            // When it cannot be sent, the client has gone and needs no answer.
            place.answer(status.code(), true);
        }
    }

    /// Ready when the client has given up meanwhile, and how: a dial for it can be dropped.
    pub async fn abandoned(&mut self) -> Error {
        let Some(place) = &self.place else {
            return Error::Closed;
        };
        let look = |cx: &mut Context<'_>| place.poll(cx, |http, slot| http.fate(slot));
        let fate = std::future::poll_fn(look).await;
        place.explain(fate)
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        if let Some(place) = &self.place {
            place.reset(RESET);
        }
    }
}
