//! Sockets whose end must be meant.
//!
//! An application must never take for an end in order what is none: a refusal, a dial that was
//! given up, a relay that was cut, a daemon that was killed. So its socket resets its connection
//! whenever it is closed, and only [`AppSocket::finish`] takes that back. The type cannot be made
//! without: an accepted socket inherits it from its [`Listener`], a dialled one has it before its
//! SYN, any other gets it on the way in.

use std::io;
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use bytes::BufMut;
use nix::libc;
use socket2::{SockRef, Socket};
use tokio::net::{TcpListener, TcpStream};

/// A connection to an application, or on its way to one. It sends without delay (`TCP_NODELAY`),
/// and dropping it resets it (`SO_LINGER`, zero).
#[derive(Debug)]
pub struct AppSocket {
    tcp: TcpStream,
    start: Start,
}

/// What is particular about a connection that has just been made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Start {
    /// It was accepted: its first bytes may have come while it waited for that.
    Accepted,
    /// It was dialled, and the last packet of its handshake waits for bytes to go with. Later
    /// acknowledgements must not wait: a peer that does not send without delay (RFC 896) wants
    /// them before it says the rest of what it has to say.
    Held,
    /// The same, and later ones may wait as well: the peer is this daemon.
    HeldOn,
    /// Nothing.
    Over,
}

impl AppSocket {
    /// Takes over a socket that was made elsewhere.
    ///
    /// # Errors
    ///
    /// As `setsockopt(2)`: none that a connected socket gives.
    pub fn resetting(tcp: TcpStream) -> io::Result<Self> {
        tcp.set_zero_linger()?;
        Ok(Self::born(tcp, Start::Over))
    }

    /// A socket that has had a zero linger time from its birth.
    pub(crate) fn born(tcp: TcpStream, start: Start) -> Self {
        Self { tcp, start }
    }

    /// The socket, to read, write and wait.
    #[must_use]
    pub fn tcp(&self) -> &TcpStream {
        &self.tcp
    }

    /// The same, to be read by who needs it pinned.
    pub(crate) fn tcp_mut(&mut self) -> &mut TcpStream {
        &mut self.tcp
    }

    /// Whether nothing has come, and the connection stands: the kernel is asked, because what it
    /// has told may be old.
    pub(crate) fn is_quiet(&self) -> bool {
        let peeked = SockRef::from(&self.tcp).peek(&mut [MaybeUninit::uninit()]);
        peeked.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
    }

    /// Another use of the connection begins: its first bytes may be there before the kernel tells.
    pub(crate) fn begin_again(&mut self) {
        self.start = Start::Accepted;
    }

    /// Whether nobody has looked yet at what came before the connection was accepted. The kernel
    /// tells of it only in a while; it may be read now.
    pub(crate) fn is_unread(&self) -> bool {
        self.start == Start::Accepted
    }

    /// Somebody has.
    pub(crate) fn looked(&mut self) {
        if self.start == Start::Accepted {
            self.start = Start::Over;
        }
    }

    /// Reads, whether or not the kernel has told of anything: at most as much as `into` has room
    /// for in one piece; 0 is the FIN.
    pub(crate) fn read_now(&mut self, into: &mut impl BufMut) -> io::Result<usize> {
        self.looked();
        // SAFETY: the kernel writes initialised bytes, and only as many as it says.
        let count = unsafe {
            let room = into.chunk_mut().as_uninit_slice_mut();
            let count = SockRef::from(&self.tcp).recv(room)?;
            into.advance_mut(count);
            count
        };
        Ok(count)
    }

    /// The connection is not new any more. Call it when what there is to send at once has been
    /// sent, and say whether that was anything: it took the last packet of the handshake along,
    /// which goes alone otherwise.
    pub(crate) fn begun(&mut self, sent: bool) {
        let goes_alone = match std::mem::replace(&mut self.start, Start::Over) {
            Start::Held => true,
            Start::HeldOn => !sent,
            Start::Accepted | Start::Over => false,
        };
        if goes_alone {
            // Cannot fail on a TCP socket; if it did, the kernel's timer would do it, 200 ms later.
            let _ = SockRef::from(&self.tcp).set_tcp_quickack(true);
        }
    }

    /// Whether the other end has everything that was written to it, the FIN included. Not before
    /// does a reset take nothing from a reader that is slow: its kernel keeps what it has.
    pub(crate) fn is_delivered(&self) -> bool {
        let mut unacknowledged: libc::c_int = 0;
        // SAFETY: the kernel writes one int there (tcp(7): SIOCOUTQ).
        let asked =
            unsafe { libc::ioctl(self.tcp.as_raw_fd(), libc::TIOCOUTQ, &mut unacknowledged) };
        asked == 0 && unacknowledged == 0
    }

    /// Both directions have ended, or are ended by closing: dropping it is no reset any more. What
    /// was written before is still delivered, as is the FIN.
    pub(crate) fn finish(&self) {
        // A socket that cannot be set is broken already.
        let _ = SockRef::from(&self.tcp).set_linger(None);
    }

    /// The bare socket, for another protocol than an application's own. It still resets when
    /// dropped, until its linger time is cleared.
    #[must_use]
    pub fn into_tcp(mut self) -> TcpStream {
        self.begun(false);
        self.tcp
    }
}

/// A listener all of whose connections are [`AppSocket`]s.
#[derive(Debug)]
pub struct Listener(std::net::TcpListener);

impl Listener {
    /// `socket` listens, and has a zero linger time that its connections inherit.
    pub(crate) fn of(socket: Socket) -> Self {
        Self(socket.into())
    }

    /// Takes over a listener that another process made as [`listener`](crate::sys::socket::listener)
    /// does. The socket is one, whoever holds it: what it is set to and what waits in it stay.
    ///
    /// # Errors
    ///
    /// `InvalidInput` for what is no listener that accepts without waiting and resets; else as
    /// `getsockopt(2)`.
    pub fn adopt(fd: OwnedFd) -> io::Result<Self> {
        let socket = Socket::from(fd);
        let fits = socket.is_listener()?
            && socket.nonblocking()?
            && socket.linger()? == Some(Duration::ZERO);
        if fits {
            Ok(Self(socket.into()))
        } else {
            Err(io::ErrorKind::InvalidInput.into())
        }
    }

    /// Where it listens.
    ///
    /// # Errors
    ///
    /// As `getsockname(2)`.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }

    /// Accepts on this thread's runtime.
    ///
    /// # Errors
    ///
    /// As `epoll_ctl(2)`.
    ///
    /// # Panics
    ///
    /// Outside of a runtime.
    pub fn accepting(self) -> io::Result<Acceptor> {
        TcpListener::from_std(self.0).map(Acceptor)
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsFd for Acceptor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A [`Listener`] on a runtime.
#[derive(Debug)]
pub struct Acceptor(TcpListener);

impl Acceptor {
    /// Accepts the next connection, and tells who dialled.
    ///
    /// # Errors
    ///
    /// As `accept(2)`.
    pub async fn accept(&self) -> io::Result<(AppSocket, SocketAddr)> {
        let (tcp, source) = self.0.accept().await?;
        Ok((AppSocket::born(tcp, Start::Accepted), source))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::netns::Netns;
    use crate::sys::socket::{Reach, connect, listener};

    fn resets(socket: &AppSocket) -> bool {
        SockRef::from(socket.tcp()).linger().unwrap() == Some(Duration::ZERO)
    }

    /// The promise of the type, asked of the kernel.
    #[tokio::test]
    async fn every_way_to_a_socket_makes_one_that_resets() {
        let netns = Netns::current().unwrap();
        for ip in ["127.0.0.1", "::1"] {
            let addr = SocketAddr::new(ip.parse().unwrap(), 0);
            let made = listener(&netns, addr, 8);
            let listener = made.expect("needs root, as all that makes transparent sockets");
            let to = SockRef::from(&listener).local_addr().unwrap();
            let to = to.as_socket().unwrap();
            let acceptor = listener.accepting().unwrap();
            for reach in [Reach::Application, Reach::Neighbour, Reach::Elsewhere] {
                let mut dialled = connect(&netns, None, to, reach).await.unwrap();
                dialled.begun(false);
                let (accepted, source) = acceptor.accept().await.unwrap();
                assert!(resets(&dialled) && resets(&accepted), "{reach:?}");
                assert!(accepted.tcp().nodelay().unwrap() && dialled.tcp().nodelay().unwrap());
                assert_eq!(source, dialled.tcp().local_addr().unwrap());
            }
            let other = TcpStream::connect(to).await.unwrap();
            assert!(resets(&AppSocket::resetting(other).unwrap()));
        }
    }
}
