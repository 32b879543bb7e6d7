//! A TLS session on a socket, made for few and large system calls.
//!
//! HTTP/2 above sees [`Socket`], a byte stream; whoever drives the connection holds the [`Wire`]
//! below it. What distinguishes this from the usual adapter:
//!
//! - **Reading runs ahead of TLS.** One `recv` takes up to [`Spare::SIZE`] bytes and TLS eats them
//!   from memory, record by record. The buffer is lent and goes back when it is empty, so that an
//!   idle tunnel holds none.
//! - **Writing is put off.** HTTP/2 flushes after each DATA frame. Here that means nothing: what
//!   was written is sealed and kept until the driver has polled all there is and calls
//!   [`Wire::poll_flush`], which writes many records with one `writev`. Small writes share a
//!   record. Past [`HIGH`] a write waits for the socket.
//! - **Turns.** A driver's turn reads at most [`TURN`] bytes before the tasks of its streams run.
//!
//! The socket, its session and all that passes stay on one thread.

use std::cell::{Cell, RefCell};
use std::io;
use std::io::{BufRead as _, IoSlice, Write as _};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use rustls_pki_types::CertificateDer;
use smallvec::SmallVec;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::pipe::Spare;

/// The plaintext of a full TLS record (RFC 8446 §5.1).
const RECORD: usize = 16_384;
/// Sealed bytes that may wait for the socket before HTTP/2 must wait too.
const HIGH: usize = 512 * 1024;
/// Received bytes after which a turn ends.
const TURN: usize = 2 * Spare::SIZE;
/// The end of a write that is kept back to share a record with the next one.
const REMNANT: usize = 1024;

/// The byte stream that HTTP/2 runs on.
pub(crate) struct Socket(Rc<Shared>);

/// The same, as its driver holds it.
pub(crate) struct Wire(Rc<Shared>);

struct Shared {
    session: RefCell<Session>,
    /// A write was turned away because of [`HIGH`].
    starved: Cell<bool>,
}

struct Session {
    tcp: TcpStream,
    tls: rustls::Connection,
    ahead: Option<Ahead>,
    /// Plaintext that waits to fill a record.
    tail: Vec<u8>,
    /// Bytes accepted and not yet taken by the socket, roughly.
    backlog: usize,
    turn: usize,
    received: u64,
    last_received: Instant,
    eof: bool,
    /// The first failure, for whoever has to explain the tunnel's end.
    fault: Option<Fault>,
}

/// Received bytes that TLS has not eaten yet.
struct Ahead {
    buffer: Spare,
    start: usize,
    end: usize,
}

/// What ended a session.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    /// A TLS alert, or bytes that are not TLS.
    Tls(rustls::Error),
    /// The socket failed.
    Socket(io::ErrorKind),
}

/// Does the handshake of `tls` on `tcp`. Has no deadline of its own.
///
/// # Errors
///
/// The socket's error, or one of kind `InvalidData` around a [`rustls::Error`].
pub(crate) async fn handshake(
    tcp: TcpStream,
    tls: rustls::Connection,
) -> io::Result<(Socket, Wire)> {
    let mut session = Session {
        tcp,
        tls,
        ahead: None,
        tail: Vec::new(),
        backlog: 0,
        turn: TURN,
        received: 0,
        last_received: Instant::now(),
        eof: false,
        fault: None,
    };
    session.tls.set_buffer_limit(None);
    std::future::poll_fn(|cx| session.poll_handshake(cx)).await?;
    let shared = Rc::new(Shared {
        session: RefCell::new(session),
        starved: Cell::new(false),
    });
    Ok((Socket(shared.clone()), Wire(shared)))
}

impl Wire {
    /// Begins a turn of the driver.
    pub(crate) fn begin_turn(&self) {
        self.0.session.borrow_mut().turn = TURN;
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
    #[allow(dead_code, reason = "HTTP/2 on the wire itself is to use it")]
    pub(crate) fn poll_receive<E: From<Fault>>(
        &self,
        cx: &mut Context<'_>,
        mut take: impl FnMut(Bytes) -> Result<(), E>,
    ) -> Poll<Result<(), E>> {
        loop {
            // Not borrowed while `take` runs.
            let next = self.0.session.borrow_mut().poll_next(cx);
            match ready!(next)? {
                Some(piece) => take(piece)?,
                None => return Poll::Ready(Ok(())),
            }
        }
    }

    /// How many bytes may be written before what waits for the socket is too much. A writer that
    /// has more than this calls [`starve`](Self::starve) and comes back when it is woken.
    #[allow(dead_code, reason = "HTTP/2 on the wire itself is to use it")]
    pub(crate) fn room(&self) -> usize {
        HIGH.saturating_sub(self.0.session.borrow().backlog)
    }

    /// Has [`poll_flush`](Self::poll_flush) wake its task as soon as there is room.
    #[allow(dead_code, reason = "HTTP/2 on the wire itself is to use it")]
    pub(crate) fn starve(&self) {
        self.0.starved.set(true);
    }

    /// Accepts bytes; they leave with [`poll_flush`](Self::poll_flush). Small writes share a
    /// record. More than [`room`](Self::room) is taken, too, so that a frame need not be split;
    /// a session that has failed drops it.
    #[allow(dead_code, reason = "HTTP/2 on the wire itself is to use it")]
    pub(crate) fn write(&self, pieces: &[IoSlice<'_>]) {
        let mut session = self.0.session.borrow_mut();
        if session.fault.is_none()
            && let Err(error) = session.seal(pieces)
        {
            session.fault = Some(Fault::Socket(error.kind()));
        }
    }

    /// Writes all, tells the peer that nothing more comes, and ends this side of the socket.
    /// Ready when that is done, or cannot be.
    #[allow(dead_code, reason = "HTTP/2 on the wire itself is to use it")]
    pub(crate) fn poll_close(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.session.borrow_mut().poll_close(cx)
    }

    /// Writes what waits. Ready when all is written; otherwise the task is woken to go on.
    pub(crate) fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut session = self.0.session.borrow_mut();
        let flushed = session.poll_drain(cx);
        if self.0.starved.get() && session.backlog < HIGH {
            // There is room again for the write that was turned away, and nobody else knows.
            self.0.starved.set(false);
            cx.waker().wake_by_ref();
        }
        flushed
    }

    /// How many bytes have come from the peer.
    pub(crate) fn received(&self) -> u64 {
        self.0.session.borrow().received
    }

    /// When bytes last came from the peer.
    pub(crate) fn last_received(&self) -> Instant {
        self.0.session.borrow().last_received
    }

    /// Why the session failed, if it did.
    pub(crate) fn fault(&self) -> Option<Fault> {
        self.0.session.borrow().fault.clone()
    }

    /// The certificates that the peer has proven to hold, leaf first.
    pub(crate) fn peer_certificates(&self) -> Vec<CertificateDer<'static>> {
        let session = self.0.session.borrow();
        session
            .tls
            .peer_certificates()
            .map(<[_]>::to_vec)
            .unwrap_or_default()
    }

    /// Whether both sides agreed on HTTP/2 by ALPN.
    pub(crate) fn speaks_h2(&self) -> bool {
        self.0.session.borrow().tls.alpn_protocol() == Some(b"h2")
    }
}

impl Session {
    fn poll_handshake(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            let written = self.poll_drain(cx)?;
            if !self.tls.is_handshaking() {
                return written.map(Ok);
            }
            if self.ahead.is_none() {
                ready!(self.poll_receive(cx))?;
            }
            if self.eof {
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
            self.turn = TURN;
            if let Err(error) = self.decrypt() {
                let _ = self.poll_drain(cx);
                return Poll::Ready(Err(error));
            }
        }
    }

    fn poll_read(&mut self, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = into.filled().len();
        loop {
            self.take_plaintext(into)?;
            if into.remaining() == 0 {
                return Poll::Ready(Ok(()));
            }
            if self.ahead.is_some() && !self.eof {
                if let Err(error) = self.decrypt() {
                    let _ = self.poll_drain(cx);
                    return Poll::Ready(Err(error));
                }
                continue;
            }
            if self.eof || into.filled().len() > before {
                return Poll::Ready(Ok(()));
            }
            ready!(self.poll_receive(cx))?;
        }
    }

    /// The next decrypted bytes; `None` when there will be none.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, Fault>> {
        loop {
            if let Some(fault) = &self.fault {
                return Poll::Ready(Err(fault.clone()));
            }
            let mut reader = self.tls.reader();
            if let Ok(chunk) = reader.fill_buf()
                && !chunk.is_empty()
            {
                let piece = Bytes::copy_from_slice(chunk);
                reader.consume(piece.len());
                return Poll::Ready(Ok(Some(piece)));
            }
            if self.eof {
                return Poll::Ready(Ok(None));
            }
            // What fails here is kept as the fault.
            if self.ahead.is_none() {
                let _ = ready!(self.poll_receive(cx));
            } else if self.decrypt().is_err() {
                let _ = self.poll_drain(cx);
            }
        }
    }

    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_drain(cx))?;
        // Idempotent: rustls queues one close_notify.
        self.tls.send_close_notify();
        ready!(self.poll_drain(cx))?;
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }

    /// Moves decrypted bytes into `into`, as many as fit.
    fn take_plaintext(&mut self, into: &mut ReadBuf<'_>) -> io::Result<()> {
        let mut reader = self.tls.reader();
        while into.remaining() > 0 {
            let count = match reader.fill_buf() {
                Ok(chunk) => {
                    let count = chunk.len().min(into.remaining());
                    into.put_slice(&chunk[..count]);
                    count
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
                // A TCP FIN without close_notify. Streams end by frames, never by this, so it
                // is an end like any other: HTTP/2 fails what was still open.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => 0,
                Err(error) => return Err(error),
            };
            if count == 0 {
                return Ok(());
            }
            reader.consume(count);
        }
        Ok(())
    }

    /// Feeds TLS with what was received.
    fn decrypt(&mut self) -> io::Result<()> {
        let Some(ahead) = &mut self.ahead else {
            return Ok(());
        };
        let mut rest = &ahead.buffer[ahead.start..ahead.end];
        let before = rest.len();
        let read = self.tls.read_tls(&mut rest);
        ahead.start += before - rest.len();
        let stuck = before == rest.len();
        if ahead.start == ahead.end {
            self.ahead = None;
        }
        read.map_err(|error| self.fail_io(error))?;
        match self.tls.process_new_packets() {
            Ok(state) if state.peer_has_closed() => {
                self.eof = true;
                self.ahead = None;
                Ok(())
            }
            Ok(_) if stuck => Err(self.fail(rustls::Error::General("no progress".into()))),
            Ok(_) => Ok(()),
            Err(error) => Err(self.fail(error)),
        }
    }

    fn fail(&mut self, error: rustls::Error) -> io::Error {
        self.fault.get_or_insert(Fault::Tls(error.clone()));
        io::Error::new(io::ErrorKind::InvalidData, error)
    }

    fn fail_io(&mut self, error: io::Error) -> io::Error {
        self.fault.get_or_insert(Fault::Socket(error.kind()));
        error
    }

    /// One `recv`.
    fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.turn == 0 {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let mut buffer = Spare::take();
        let mut into = ReadBuf::new(&mut buffer);
        let result = ready!(Pin::new(&mut self.tcp).poll_read(cx, &mut into));
        let end = into.filled().len();
        if let Err(error) = result {
            self.fault.get_or_insert(Fault::Socket(error.kind()));
            return Poll::Ready(Err(error));
        }
        self.turn = self.turn.saturating_sub(end);
        if end == 0 {
            self.eof = true;
        } else {
            self.received += end as u64;
            self.last_received = Instant::now();
            self.ahead = Some(Ahead {
                buffer,
                start: 0,
                end,
            });
        }
        Poll::Ready(Ok(end))
    }

    /// Accepts a write: seals whole records, keeps a small end back to share one.
    fn seal(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        let total: usize = bufs.iter().map(|buf| buf.len()).sum();
        self.backlog += total;
        if self.tail.len() + total < RECORD {
            if self.tail.capacity() == 0 {
                self.tail.reserve_exact(RECORD);
            }
            bufs.iter().for_each(|buf| self.tail.extend_from_slice(buf));
            return Ok(total);
        }
        let last = bufs.iter().rposition(|buf| !buf.is_empty()).unwrap_or(0);
        let over = (self.tail.len() + total) % RECORD;
        let keep = if over <= REMNANT && over < bufs[last].len() {
            over
        } else {
            0
        };
        let (whole, kept) = bufs[last].split_at(bufs[last].len() - keep);
        let tail = std::mem::take(&mut self.tail);
        let mut slices = SmallVec::<[IoSlice<'_>; 8]>::new();
        slices.push(IoSlice::new(&tail));
        slices.extend(bufs[..last].iter().map(|buf| IoSlice::new(buf)));
        slices.push(IoSlice::new(whole));
        let expected = tail.len() + total - keep;
        if self.tls.writer().write_vectored(&slices)? != expected {
            // rustls takes all as long as its buffer has no limit, and it has none.
            return Err(io::ErrorKind::WriteZero.into());
        }
        self.tail.extend_from_slice(kept);
        Ok(total)
    }

    /// Seals what is kept back and writes until all is written.
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.tail.is_empty() {
            let tail = std::mem::take(&mut self.tail);
            self.tls.writer().write_all(&tail)?;
        }
        while self.tls.wants_write() {
            let mut writer = Writer {
                tcp: &mut self.tcp,
                cx,
            };
            match self.tls.write_tls(&mut writer) {
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Ok(count) => self.backlog = self.backlog.saturating_sub(count),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Poll::Pending,
                Err(error) => {
                    self.fault.get_or_insert(Fault::Socket(error.kind()));
                    return Poll::Ready(Err(error));
                }
            }
        }
        self.backlog = 0;
        Poll::Ready(Ok(()))
    }
}

/// The socket as rustls writes to it: "not now" is an error there.
struct Writer<'a, 'b> {
    tcp: &'a mut TcpStream,
    cx: &'a mut Context<'b>,
}

impl io::Write for Writer<'_, '_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[IoSlice::new(buf)])
    }

    fn write_vectored(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        match Pin::new(&mut *self.tcp).poll_write_vectored(self.cx, bufs) {
            Poll::Ready(result) => result,
            Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.0.session.borrow_mut().poll_read(cx, into)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut session = self.0.session.borrow_mut();
        if session.backlog >= HIGH {
            let _ = session.poll_drain(cx)?;
            if session.backlog >= HIGH {
                self.0.starved.set(true);
                return Poll::Pending;
            }
        }
        Poll::Ready(session.seal(bufs))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// Nothing: the driver flushes once, at the end of its turn.
    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.session.borrow_mut().poll_close(cx)
    }
}
