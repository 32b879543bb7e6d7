//! A socket whose two directions end on their own, and whose reset is noticed at any time.
//!
//! Tokio tells of a reset only who reads or writes. A relay may do neither for long: nothing to
//! write, and no room for what it would read. So the write side is always armed: its readiness is
//! taken back after each use and waited for again, which the kernel answers with an event when the
//! connection fails. Writes therefore go straight to the kernel, which knows better than a taken
//! back readiness whether there is room.

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::net::Shutdown;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{BufMut as _, Bytes, BytesMut};
use nix::libc;
use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio_util::io::poll_read_buf;

use crate::deliver::seam::Half;
use crate::pipe::CHUNK;
use crate::sys::socket::AppSocket;

/// Why there is a socket.
const HERE: &str = "taken when the relay is over, never before";
/// Reads up to this are copied out of the thread's buffer, so that they do not pin it.
const SMALL: usize = 8 * 1024;
/// What is left of the thread's buffer is used as long as it is at least this.
const WORTHWHILE: usize = 64 * 1024;

thread_local! {
    /// Where all connections of this thread read into.
    static BUFFER: RefCell<BytesMut> = RefCell::new(BytesMut::new());
}

/// Which of two sockets.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Ends {
    /// The one that was read.
    From,
    /// The one that was written.
    To,
}

/// Empties `buffer`.
fn take(buffer: &mut BytesMut) -> Bytes {
    if buffer.len() > SMALL {
        return buffer.split().freeze();
    }
    let bytes = Bytes::copy_from_slice(buffer);
    buffer.clear();
    bytes
}

/// An application's socket, or one of ours in its place. Closed before [`finish`](Self::finish), it
/// is reset.
#[derive(Debug)]
pub(crate) struct App {
    /// Until it is taken for another use.
    socket: Option<AppSocket>,
    /// Where the other end is this thread's, too.
    half: Option<Half>,
    /// The application's FIN has been read.
    heard_end: bool,
}

impl App {
    pub(crate) fn new(socket: AppSocket) -> Self {
        Self {
            socket: Some(socket),
            half: None,
            heard_end: false,
        }
    }

    /// The other end is this thread's, too.
    pub(crate) fn sew(&mut self, half: Half) {
        half.join();
        self.half = Some(half);
    }

    /// The socket and its half, if both directions have ended and it may be used again.
    pub(crate) fn unpick(&mut self) -> Option<(Half, AppSocket)> {
        let half = self.half.take().filter(Half::is_whole)?;
        Some((half, self.socket.take()?))
    }

    fn socket(&self) -> &AppSocket {
        self.socket.as_ref().expect(HERE)
    }

    fn socket_mut(&mut self) -> &mut AppSocket {
        self.socket.as_mut().expect(HERE)
    }

    /// Whether all has been read, as the other end has said without a FIN.
    pub(crate) fn is_over(&self) -> bool {
        self.half.as_ref().is_some_and(Half::is_over)
    }

    /// Bytes were read from the socket, not by [`read`](Self::read) or [`forward`](Self::forward).
    pub(crate) fn took(&self, count: usize) {
        if let Some(half) = &self.half {
            half.took(count);
        }
    }

    /// Bytes were written to the socket, not by [`write`](Self::write).
    pub(crate) fn wrote(&self, count: usize) {
        if let Some(half) = &self.half {
            half.wrote(count);
        }
    }

    /// Ready when a read might find bytes, a FIN or an error.
    pub(crate) fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.socket().is_unread() || self.is_over() {
            return Poll::Ready(Ok(()));
        }
        if let Some(half) = &self.half {
            half.watch(cx);
        }
        self.tcp().poll_read_ready(cx)
    }

    pub(crate) fn tcp(&self) -> &TcpStream {
        self.socket().tcp()
    }

    /// What could be sent at once has been sent; whether that was anything.
    pub(crate) fn begun(&mut self, sent: bool) {
        self.socket_mut().begun(sent);
    }

    /// Reads by `read`, and waits for readiness after its "not now".
    pub(crate) fn try_read<T>(
        &self,
        read: impl FnOnce(&TcpStream) -> io::Result<T>,
    ) -> io::Result<T> {
        let tcp = self.tcp();
        tcp.try_io(Interest::READABLE, || read(tcp))
    }

    /// The application's FIN was read, by [`try_read`](Self::try_read).
    pub(crate) fn hear_end(&mut self) {
        self.heard_end = true;
        if let Some(half) = self.half.as_ref().filter(|half| !half.is_over()) {
            half.spoil();
        }
    }

    /// Reads what there is, up to `room`, and whether the FIN is behind it. Nothing and no FIN
    /// means that there was nothing after all; the task is woken when there is.
    ///
    /// # Errors
    ///
    /// The connection has failed. Bytes before a reset are void, as they are for any reader that
    /// was not quick enough; and the kernel tells of a reset only once.
    pub(crate) fn read(&mut self, cx: &mut Context<'_>, room: usize) -> io::Result<(Bytes, bool)> {
        BUFFER.with_borrow_mut(|buffer| {
            let end = self.read_into(cx, buffer, room)?;
            Ok((take(buffer), end))
        })
    }

    /// Reads as [`read`](Self::read), and writes at once what `to` has room for; gives how much
    /// was written, and the rest.
    ///
    /// # Errors
    ///
    /// The side that failed, and how.
    pub(crate) fn forward(
        &mut self,
        cx: &mut Context<'_>,
        to: &Self,
    ) -> Result<(usize, Bytes, bool), (Ends, io::Error)> {
        BUFFER.with_borrow_mut(|buffer| {
            let end = self
                .read_into(cx, buffer, CHUNK)
                .map_err(|error| (Ends::From, error))?;
            if buffer.is_empty() {
                return Ok((0, Bytes::new(), end));
            }
            let written = match to.write(&[IoSlice::new(buffer)]) {
                Ok(written) => written,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
                Err(error) => return Err((Ends::To, error)),
            };
            bytes::Buf::advance(buffer, written);
            Ok((written, take(buffer), end))
        })
    }

    /// Fills the empty `buffer` with up to `room` bytes; whether the FIN is behind them.
    fn read_into(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut BytesMut,
        room: usize,
    ) -> io::Result<bool> {
        buffer.clear();
        if self.is_over() {
            self.heard_end = true;
            return Ok(true);
        }
        let Self {
            socket,
            half,
            heard_end,
        } = self;
        let socket = socket.as_mut().expect(HERE);
        if buffer.capacity() < room.min(WORTHWHILE) {
            buffer.reserve(CHUNK);
        }
        let room = room.min(buffer.capacity());
        while buffer.len() < room {
            let most = room - buffer.len();
            let mut spare = (&mut *buffer).limit(most);
            let (count, all) = match poll_read_buf(Pin::new(socket.tcp_mut()), cx, &mut spare) {
                Poll::Ready(read) => {
                    socket.looked();
                    (read?, false)
                }
                Poll::Pending if socket.is_unread() => match socket.read_now(&mut spare) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    read => read.map(|count| (count, count < most))?,
                },
                Poll::Pending => break,
            };
            if count == 0 {
                *heard_end = true;
                if let Some(half) = half {
                    half.spoil();
                }
                return Ok(true);
            }
            if let Some(half) = half {
                half.took(count);
            }
            if all {
                break;
            }
        }
        *heard_end = half.as_ref().is_some_and(Half::is_over);
        Ok(*heard_end)
    }

    /// Writes what there is room for, now.
    pub(crate) fn write(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let sent = SockRef::from(self.tcp()).send_vectored_with_flags(slices, libc::MSG_NOSIGNAL);
        if let (Ok(count), Some(half)) = (&sent, &self.half) {
            half.wrote(*count);
        }
        sent
    }

    /// Waits for room to write, and for failure: ready when either may have come.
    ///
    /// # Errors
    ///
    /// The connection has failed.
    pub(crate) fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let none = || Err::<(), _>(io::ErrorKind::WouldBlock.into());
        let _ = self.tcp().try_io(Interest::WRITABLE, none);
        match self.tcp().poll_write_ready(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Ready(Ok(())) => match self.tcp().take_error()? {
                Some(error) => Poll::Ready(Err(error)),
                None => Poll::Ready(Ok(())),
            },
        }
    }

    /// Waits for failure alone.
    ///
    /// # Errors
    ///
    /// The connection has failed.
    pub(crate) fn poll_failed(&mut self, cx: &mut Context<'_>) -> Result<(), io::Error> {
        if let Some(half) = &mut self.half {
            half.poll_proven(cx)?;
        }
        // Ready without an error means closed in both directions, which the reads tell.
        match self.poll_writable(cx) {
            Poll::Ready(Err(error)) => Err(error),
            _ => Ok(()),
        }
    }

    /// Sends the FIN. If this is the `last` of both directions, that is left to closing, which
    /// [`finish`](Self::finish) allows: a system call less.
    pub(crate) fn end(&self, last: bool) -> io::Result<()> {
        if self.half.as_ref().is_some_and(Half::end) || last && self.heard_end {
            return Ok(());
        }
        match SockRef::from(self.tcp()).shutdown(Shutdown::Write) {
            Err(error) if error.kind() == io::ErrorKind::NotConnected => {
                Err(io::ErrorKind::ConnectionReset.into())
            }
            result => result,
        }
    }

    /// Whether the application's kernel has all that was written, the FIN included.
    pub(crate) fn is_delivered(&self) -> bool {
        self.socket().is_delivered()
    }

    /// Both directions have ended, but for a FIN that closing sends: it is no reset any more.
    pub(crate) fn finish(&self) {
        if !self.half.as_ref().is_some_and(Half::is_whole) {
            self.socket().finish();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn sockets() -> (TcpStream, TcpStream) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let dialled = TcpStream::connect(listener.local_addr().unwrap());
        let (dialled, accepted) = tokio::join!(dialled, listener.accept());
        (dialled.unwrap(), accepted.unwrap().0)
    }

    /// A fresh registration has told of nothing yet.
    fn again(tcp: TcpStream) -> TcpStream {
        TcpStream::from_std(tcp.into_std().unwrap()).unwrap()
    }

    #[tokio::test]
    async fn bytes_that_are_read_before_the_kernel_tells_count() {
        let (dialled, accepted) = sockets().await;
        let (own, other) = Half::pair();
        let mut near = App::new(AppSocket::resetting(dialled).unwrap());
        near.sew(own);
        let mut accepted = AppSocket::resetting(again(accepted)).unwrap();
        accepted.begin_again();
        let mut far = App::new(accepted);
        far.sew(other);
        assert_eq!(near.write(&[IoSlice::new(b"words")]).unwrap(), 5);
        near.end(false).unwrap();
        // The loopback is done with them when the write returns.
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let (bytes, end) = far.read(&mut cx, CHUNK).unwrap();
        assert_eq!((&*bytes, end), (&b"words"[..], true));
        assert!(far.is_over());
    }
}
