//! A TLS session on a socket, made for few and large system calls.
//!
//! Whoever drives an HTTP/2 connection holds the [`Wire`] below it. What distinguishes it from the
//! usual adapter:
//!
//! - **Reading is in place.** One `recv` takes up to [`Spare::SIZE`] bytes; all records in them are
//!   opened where they are, and [`Wire::poll_receive`] hands out parts of that buffer. It is lent
//!   and goes back when the last part is dropped, so that an idle tunnel holds none.
//! - **Writing is put off.** What was written is sealed and kept until the driver has polled all
//!   there is and calls [`Wire::poll_flush`], which writes many records with one `writev`. Small
//!   writes share a record. Past [`HIGH`] a writer waits for the socket.
//! - **Turns.** A driver's turn reads at most [`TURN`] bytes before the tasks of its streams run.
//!
//! The socket, its session and all that passes stay on one thread.

use std::cell::{Cell, RefCell};
use std::io;
use std::io::IoSlice;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use rustls_pki_types::CertificateDer;
use tokio::io::{AsyncRead as _, AsyncReadExt as _, AsyncWrite as _, AsyncWriteExt as _, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::pipe::Spare;
use crate::tunnel::record::{Handshake, Inbox, Negotiated, Negotiation, Pieces, Records};

/// Sealed bytes that may wait for the socket before HTTP/2 must wait too.
const HIGH: usize = 512 * 1024;
/// Received bytes after which a turn ends.
const TURN: usize = 2 * Spare::SIZE;
/// What one `recv` takes during a handshake.
const HANDSHAKE: usize = 8 * 1024;

/// An established session, as its driver holds it.
pub(crate) struct Wire {
    session: RefCell<Session>,
    /// A writer was turned away because of [`HIGH`].
    starved: Cell<bool>,
}

struct Session {
    tcp: TcpStream,
    records: Records,
    certificates: Vec<CertificateDer<'static>>,
    speaks_h2: bool,
    inbox: Inbox,
    /// The beginning of a record.
    partial: Vec<u8>,
    /// The socket took no more when it was last asked.
    blocked: bool,
    turn: usize,
    received: u64,
    last_received: Instant,
    eof: bool,
    /// The first failure, for whoever has to explain the tunnel's end.
    fault: Option<Fault>,
}

/// What ended a session.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    /// A TLS alert, or bytes that are not TLS.
    Tls(rustls::Error),
    /// The socket failed.
    Socket(io::ErrorKind),
}

impl From<Fault> for io::Error {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Tls(error) => Self::new(io::ErrorKind::InvalidData, error),
            Fault::Socket(kind) => kind.into(),
        }
    }
}

/// Does the handshake of `tls` on `tcp`. Has no deadline of its own.
///
/// # Errors
///
/// The socket's error, or one of kind `InvalidData` around a [`rustls::Error`].
pub(crate) async fn handshake(mut tcp: TcpStream, tls: Handshake) -> io::Result<Wire> {
    let mut negotiation = Negotiation::new(tls);
    let mut received = 0;
    let mut buffer = vec![0; HANDSHAKE];
    loop {
        let advanced = negotiation.advance();
        let written = write_out(&mut tcp, &mut negotiation).await;
        if advanced.map_err(Fault::Tls)? {
            written?;
            break;
        }
        written?;
        let count = tcp.read(&mut buffer).await?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        received += count as u64;
        negotiation.receive(&buffer[..count]);
    }
    let negotiated = negotiation.finish().map_err(Fault::Tls)?;
    Ok(Wire {
        session: RefCell::new(Session::new(tcp, negotiated, received)),
        starved: Cell::new(false),
    })
}

async fn write_out(tcp: &mut TcpStream, negotiation: &mut Negotiation) -> io::Result<()> {
    while !negotiation.outgoing().is_empty() {
        let count = tcp.write(negotiation.outgoing()).await?;
        if count == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        negotiation.written(count);
    }
    Ok(())
}

impl Wire {
    /// Begins a turn of the driver.
    pub(crate) fn begin_turn(&self) {
        self.session.borrow_mut().turn = TURN;
    }

    /// Gives `take` what the peer has sent, in order, in pieces that may end anywhere.
    ///
    /// Ready with `Ok` when nothing more will come: the peer has ended its side, by close_notify
    /// or by FIN. Pending when there is nothing now, or when this turn has read enough; the task
    /// is woken to go on. `take` may write to this wire.
    ///
    /// # Errors
    ///
    /// The session failed; or what `take` said, after which some bytes are lost and the session
    /// is good for nothing but writing and closing.
    pub(crate) fn poll_receive<E: From<Fault>>(
        &self,
        cx: &mut Context<'_>,
        mut take: impl FnMut(Bytes) -> Result<(), E>,
    ) -> Poll<Result<(), E>> {
        loop {
            // Not borrowed while `take` runs.
            let next = self.session.borrow_mut().poll_next(cx);
            match ready!(next)? {
                Some(piece) => take(piece)?,
                None => return Poll::Ready(Ok(())),
            }
        }
    }

    /// How many bytes may be written before what waits for the socket is too much. A writer that
    /// has more than this calls [`starve`](Self::starve) and comes back when it is woken.
    pub(crate) fn room(&self) -> usize {
        HIGH.saturating_sub(self.session.borrow().records.waiting())
    }

    /// Has [`poll_flush`](Self::poll_flush) wake its task as soon as there is room.
    pub(crate) fn starve(&self) {
        self.starved.set(true);
    }

    /// Accepts bytes; they leave with [`poll_flush`](Self::poll_flush). Small writes share a
    /// record. More than [`room`](Self::room) is taken, too, so that a frame need not be split;
    /// a session that has failed drops it.
    pub(crate) fn write(&self, pieces: &[IoSlice<'_>]) {
        self.session.borrow_mut().write(pieces);
    }

    /// Writes all, tells the peer that nothing more comes, and ends this side of the socket.
    /// Ready when that is done, or cannot be.
    pub(crate) fn poll_close(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.session.borrow_mut().poll_close(cx)
    }

    /// Writes what waits. Ready when all is written; otherwise the task is woken to go on.
    pub(crate) fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut session = self.session.borrow_mut();
        let flushed = session.poll_drain(cx);
        if self.starved.get() && session.records.waiting() < HIGH {
            // There is room again for the writer that was turned away, and nobody else knows.
            self.starved.set(false);
            cx.waker().wake_by_ref();
        }
        flushed
    }

    /// How many bytes have come from the peer.
    pub(crate) fn received(&self) -> u64 {
        self.session.borrow().received
    }

    /// When bytes last came from the peer.
    pub(crate) fn last_received(&self) -> Instant {
        self.session.borrow().last_received
    }

    /// Why the session failed, if it did.
    pub(crate) fn fault(&self) -> Option<Fault> {
        self.session.borrow().fault.clone()
    }

    /// The certificates that the peer has proven to hold, leaf first.
    pub(crate) fn peer_certificates(&self) -> Vec<CertificateDer<'static>> {
        self.session.borrow().certificates.clone()
    }

    /// Whether both sides agreed on HTTP/2 by ALPN.
    pub(crate) fn speaks_h2(&self) -> bool {
        self.session.borrow().speaks_h2
    }
}

impl Session {
    /// Begins where the handshake ended.
    fn new(tcp: TcpStream, negotiated: Negotiated, received: u64) -> Self {
        let mut session = Self {
            tcp,
            records: negotiated.records,
            certificates: negotiated.certificates,
            speaks_h2: negotiated.speaks_h2,
            inbox: Inbox::new(),
            partial: Vec::new(),
            blocked: false,
            turn: TURN,
            received,
            last_received: Instant::now(),
            eof: false,
            fault: None,
        };
        let rest = negotiated.rest;
        if !rest.is_empty() {
            let mut buffer = Spare::take();
            buffer[..rest.len()].copy_from_slice(&rest);
            session.open(buffer, rest.len());
        }
        session
    }

    /// The next plaintext; `None` when there will be none.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, Fault>> {
        loop {
            if let Some(piece) = self.inbox.take() {
                return Poll::Ready(Ok(Some(piece)));
            }
            if let Some(fault) = &self.fault {
                return Poll::Ready(Err(fault.clone()));
            }
            if self.eof {
                return Poll::Ready(Ok(None));
            }
            ready!(self.poll_receive(cx));
        }
    }

    /// One `recv`, and what follows from it.
    fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.turn == 0 {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let mut buffer = Spare::take();
        let before = self.partial.len();
        let mut into = ReadBuf::new(&mut buffer[before..]);
        let result = ready!(Pin::new(&mut self.tcp).poll_read(cx, &mut into));
        let count = into.filled().len();
        match result {
            Err(error) => {
                self.fault.get_or_insert(Fault::Socket(error.kind()));
            }
            // A FIN without close_notify, even within a record. Streams end by frames, never by
            // this, so it is an end like any other: HTTP/2 fails what was still open.
            Ok(()) if count == 0 => self.eof = true,
            Ok(()) => {
                self.turn = self.turn.saturating_sub(count);
                self.received += count as u64;
                self.last_received = Instant::now();
                buffer[..before].copy_from_slice(&self.partial);
                self.open(buffer, before + count);
                if self.fault.is_some() {
                    // The alert, as far as it goes.
                    let _ = self.poll_drain(cx);
                }
            }
        }
        Poll::Ready(())
    }

    /// Opens what was received, and keeps the beginning of a record for later.
    fn open(&mut self, mut buffer: Spare, end: usize) {
        let mut pieces = Pieces::new();
        let opened = self.records.open(&mut buffer[..end], &mut pieces);
        self.partial = Vec::new();
        match opened {
            Ok(used) => {
                self.partial.extend_from_slice(&buffer[used..end]);
                self.eof = self.records.ended();
            }
            Err(error) => self.fail(error),
        }
        self.inbox.fill(buffer, pieces);
    }

    fn fail(&mut self, error: rustls::Error) {
        self.fault.get_or_insert(Fault::Tls(error));
    }

    /// Accepts plaintext.
    fn write(&mut self, pieces: &[IoSlice<'_>]) {
        if self.fault.is_none()
            && let Err(error) = self.records.write(pieces)
        {
            self.fail(error);
        }
    }

    /// Writes until all is written. A record that is still open is sealed when the socket can
    /// take it: while it cannot, small writes go on sharing it.
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            if !self.blocked
                && let Err(error) = self.records.seal()
            {
                self.fail(error.clone());
                return Poll::Ready(Err(Fault::Tls(error).into()));
            }
            let sealed = self.records.sealed();
            if sealed.is_empty() {
                if !std::mem::take(&mut self.blocked) {
                    return Poll::Ready(Ok(()));
                }
                continue;
            }
            let result = Pin::new(&mut self.tcp).poll_write_vectored(cx, &sealed);
            drop(sealed);
            self.blocked = result.is_pending();
            match ready!(result) {
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Ok(count) => self.records.written(count),
                Err(error) => {
                    self.fault.get_or_insert(Fault::Socket(error.kind()));
                    return Poll::Ready(Err(error));
                }
            }
        }
    }

    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.records.close();
        ready!(self.poll_drain(cx))?;
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }
}

#[cfg(test)]
pub(crate) mod tests;
