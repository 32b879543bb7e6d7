//! Applications: what runs inside the pods. Plain blocking sockets, made in the pod's namespace.

use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use socket2::{Domain, SockRef, Socket, Type};

use super::namespace::Namespace;

/// How long an application waits for anything before it says that it got nothing.
const PATIENCE: Duration = Duration::from_secs(10);

/// One end of a TCP connection.
#[derive(Debug)]
pub(crate) struct Conn {
    stream: TcpStream,
}

impl Conn {
    fn new(stream: TcpStream) -> Self {
        stream.set_nodelay(true).expect("a TCP socket takes it");
        stream.set_read_timeout(Some(PATIENCE)).expect("not zero");
        stream.set_write_timeout(Some(PATIENCE)).expect("not zero");
        Self { stream }
    }

    /// Dials from inside `namespace`.
    pub(crate) fn dial(
        namespace: &Namespace,
        from: Option<SocketAddr>,
        to: SocketAddr,
        patience: Duration,
    ) -> io::Result<Self> {
        namespace.enter(|| {
            let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
            if let Some(from) = from {
                socket.set_reuse_address(true)?;
                socket.bind(&from.into())?;
            }
            socket.connect_timeout(&to.into(), patience)?;
            Ok(Self::new(socket.into()))
        })
    }

    /// Another handle on the same connection, for a second thread.
    pub(crate) fn share(&self) -> Self {
        Self {
            stream: self.stream.try_clone().expect("a descriptor is free"),
        }
    }

    /// The socket itself.
    pub(crate) fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// How long a read or a write waits from now on.
    pub(crate) fn patience(&self, time: Duration) {
        self.stream.set_read_timeout(Some(time)).expect("not zero");
        self.stream.set_write_timeout(Some(time)).expect("not zero");
    }

    /// The other end's address, as this end sees it.
    pub(crate) fn peer(&self) -> SocketAddr {
        plain(self.stream.peer_addr().expect("it is connected"))
    }

    /// This end's address.
    pub(crate) fn local(&self) -> SocketAddr {
        plain(self.stream.local_addr().expect("it is bound"))
    }

    /// Sends all of `bytes`.
    #[track_caller]
    pub(crate) fn send(&self, bytes: &[u8]) {
        (&self.stream)
            .write_all(bytes)
            .unwrap_or_else(|e| panic!("sending {} bytes failed: {e}", bytes.len()));
    }

    /// Sends what the connection still takes, for ends that may be gone.
    pub(crate) fn try_send(&self, bytes: &[u8]) -> io::Result<()> {
        (&self.stream).write_all(bytes)
    }

    /// Reads exactly `bytes`, and panics when anything else comes.
    #[track_caller]
    pub(crate) fn expect(&self, bytes: &[u8]) {
        let mut got = vec![0; bytes.len()];
        (&self.stream)
            .read_exact(&mut got)
            .unwrap_or_else(|e| panic!("waiting for {} bytes: {e}", bytes.len()));
        assert!(got == bytes, "other bytes came than were sent");
    }

    /// Reads up to a line feed, which it leaves off.
    pub(crate) fn line(&self) -> io::Result<String> {
        let mut line = Vec::new();
        loop {
            let mut byte = [0];
            if (&self.stream).read(&mut byte)? == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            if byte == [b'\n'] {
                return Ok(String::from_utf8_lossy(&line).into_owned());
            }
            line.push(byte[0]);
        }
    }

    /// Whether bytes pass both ways, with an application at the other end that echoes.
    pub(crate) fn echoes(&self, bytes: &[u8]) -> io::Result<()> {
        (&self.stream).write_all(bytes)?;
        let mut got = vec![0; bytes.len()];
        (&self.stream).read_exact(&mut got)?;
        if got == bytes {
            Ok(())
        } else {
            Err(ErrorKind::InvalidData.into())
        }
    }

    /// Says that nothing more will be sent.
    pub(crate) fn finish(&self) {
        self.stream
            .shutdown(Shutdown::Write)
            .expect("it is connected");
    }

    /// Ends the connection with a reset.
    pub(crate) fn reset(self) {
        SockRef::from(&self.stream)
            .set_linger(Some(Duration::ZERO))
            .expect("a TCP socket takes it");
    }

    /// How the connection ends, when nothing but its end is awaited.
    pub(crate) fn ending(&self) -> Outcome {
        let mut byte = [0];
        match (&self.stream).read(&mut byte) {
            Ok(0) => Outcome::Closed,
            Ok(_) => Outcome::Served(format!("byte {:#04x}", byte[0]), self.peer()),
            Err(e) => Outcome::of(&e),
        }
    }

    /// How the connection ends, passing over bytes that are still on their way.
    pub(crate) fn last_ending(&self) -> Outcome {
        let mut buffer = [0; 4096];
        loop {
            match (&self.stream).read(&mut buffer) {
                Ok(0) => return Outcome::Closed,
                Ok(_) => {}
                Err(e) => return Outcome::of(&e),
            }
        }
    }
}

/// How a call from one application to another went.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The application of this name answered, and saw the caller at this address.
    Served(String, SocketAddr),
    /// The connection was reset after it had opened.
    Reset,
    /// The connection was refused before it opened.
    Refused,
    /// The connection was closed without a word.
    Closed,
    /// Nothing came.
    Silence,
    /// The network said that there is no way.
    Unreachable,
    /// Something else.
    Failed(String),
}

impl Outcome {
    /// The outcome that an error of a socket means.
    pub(crate) fn of(error: &io::Error) -> Self {
        match error.kind() {
            // A socket destroyed by the administrator (sock_diag) ends in an abort at its own side.
            ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::ConnectionAborted => {
                Self::Reset
            }
            ErrorKind::ConnectionRefused => Self::Refused,
            ErrorKind::UnexpectedEof => Self::Closed,
            ErrorKind::TimedOut | ErrorKind::WouldBlock => Self::Silence,
            ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable => Self::Unreachable,
            _ => Self::Failed(error.to_string()),
        }
    }

    /// Calls a server made by [`Listener::greet`] and says how it went.
    pub(crate) fn of_call(namespace: &Namespace, to: SocketAddr, patience: Duration) -> Self {
        Self::of_connection(Conn::dial(namespace, None, to, patience), patience)
    }

    /// The same, from a connection that is being made elsewhere.
    pub(crate) fn of_connection(conn: io::Result<Conn>, patience: Duration) -> Self {
        let greeting = conn.and_then(|conn| {
            conn.patience(patience);
            conn.line()
        });
        match greeting {
            Ok(line) => line
                .split_once(' ')
                .and_then(|(name, addr)| Some(Self::Served(name.to_owned(), addr.parse().ok()?)))
                .unwrap_or(Self::Failed(format!("no greeting: {line:?}"))),
            Err(e) => Self::of(&e),
        }
    }

    /// The application that answered.
    pub(crate) fn by(&self) -> Option<&str> {
        match self {
            Self::Served(by, _) => Some(by),
            _ => None,
        }
    }

    /// Whether somebody answered.
    pub(crate) fn served(&self) -> bool {
        self.by().is_some()
    }

    /// Whether the caller was told at once that it may not: reset or refused.
    pub(crate) fn refused(&self) -> bool {
        matches!(self, Self::Reset | Self::Refused)
    }

    /// Panics unless the application `by` answered and saw the caller at `from`.
    #[track_caller]
    pub(crate) fn assert_served(&self, by: &str, from: IpAddr) {
        let Self::Served(name, addr) = self else {
            panic!("{by} should have answered, but: {self:?}");
        };
        assert_eq!(
            (name.as_str(), addr.ip()),
            (by, from),
            "who answered, and whom it saw"
        );
    }

    /// Panics unless the call was reset or refused.
    #[track_caller]
    pub(crate) fn assert_refused(&self) {
        assert!(
            self.refused(),
            "the call should have been refused, but: {self:?}"
        );
    }
}

impl fmt::Debug for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Served(by, from) => write!(f, "served by {by}, which saw {from}"),
            Self::Reset => f.write_str("reset"),
            Self::Refused => f.write_str("refused"),
            Self::Closed => f.write_str("closed without a word"),
            Self::Silence => f.write_str("silence"),
            Self::Unreachable => f.write_str("no route"),
            Self::Failed(why) => write!(f, "failed: {why}"),
        }
    }
}

/// A listening socket of an application, served by the test itself.
#[derive(Debug)]
pub(crate) struct Listener {
    socket: TcpListener,
}

impl Listener {
    /// Listens inside `namespace` on every address, or on `addr` alone.
    pub(crate) fn open(namespace: &Namespace, addr: SocketAddr) -> io::Result<Self> {
        namespace.enter(|| {
            let socket = Socket::new(Domain::for_address(addr), Type::STREAM, None)?;
            socket.set_reuse_address(true)?;
            socket.bind(&addr.into())?;
            socket.listen(1024)?;
            socket.set_read_timeout(Some(PATIENCE))?;
            let socket = socket.into();
            Ok(Self { socket })
        })
    }

    /// Listens on every address of a pod that has IPv6, or of one that has not.
    pub(crate) fn wildcard(namespace: &Namespace, v6: bool, port: u16) -> Self {
        let any = if v6 {
            IpAddr::V6(Ipv6Addr::UNSPECIFIED)
        } else {
            IpAddr::V4(Ipv4Addr::UNSPECIFIED)
        };
        Self::open(namespace, SocketAddr::new(any, port))
            .unwrap_or_else(|e| panic!("cannot listen on port {port}: {e}"))
    }

    /// The next connection; panics when none comes.
    #[track_caller]
    pub(crate) fn accept(&self) -> Conn {
        self.try_accept(PATIENCE)
            .unwrap_or_else(|| panic!("no connection within {PATIENCE:?}"))
    }

    /// The next connection, if one comes within `patience`.
    pub(crate) fn try_accept(&self, patience: Duration) -> Option<Conn> {
        SockRef::from(&self.socket)
            .set_read_timeout(Some(patience))
            .expect("not zero");
        // The time limit is the kernel's for accept(2), which std does not say.
        self.socket
            .accept()
            .ok()
            .map(|(stream, _)| Conn::new(stream))
    }

    /// Serves every connection with `serve`, on a thread of its own, until the server is dropped.
    pub(crate) fn serve(self, serve: impl Fn(Conn) + Send + Sync + 'static) -> Server {
        let handle = self.socket.try_clone().expect("a descriptor is free");
        SockRef::from(&handle)
            .set_read_timeout(None)
            .expect("a socket takes it");
        let callers = Arc::new(Mutex::new(Vec::new()));
        let (seen, serve) = (Arc::clone(&callers), Arc::new(serve));
        std::thread::spawn(move || {
            while let Ok((stream, from)) = self.socket.accept() {
                seen.lock().expect("no holder panics").push(plain(from));
                let serve = Arc::clone(&serve);
                std::thread::spawn(move || serve(Conn::new(stream)));
            }
        });
        Server { handle, callers }
    }

    /// Serves as a greeter: says its own name and the caller's address, then echoes.
    pub(crate) fn greet(self, name: &str) -> Server {
        let name = name.to_owned();
        self.serve(move |conn| {
            if conn
                .try_send(format!("{name} {}\n", conn.peer()).as_bytes())
                .is_ok()
            {
                echo(&conn);
            }
        })
    }

    /// Serves as an echo that says nothing of its own.
    pub(crate) fn echo(self) -> Server {
        self.serve(|conn| echo(&conn))
    }
}

/// A running server of an application; it stops to listen when dropped.
#[derive(Debug)]
pub(crate) struct Server {
    handle: TcpListener,
    callers: Arc<Mutex<Vec<SocketAddr>>>,
}

impl Server {
    /// The addresses that have connected so far, as the application saw them.
    pub(crate) fn callers(&self) -> Vec<SocketAddr> {
        self.callers.lock().expect("no holder panics").clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = SockRef::from(&self.handle).shutdown(Shutdown::Both);
    }
}

fn echo(conn: &Conn) {
    // An idle connection is not an error: the test says when it ends.
    conn.stream
        .set_read_timeout(None)
        .expect("a socket takes it");
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match (&conn.stream).read(&mut buffer) {
            Ok(0) => return conn.finish(),
            Ok(n) if conn.try_send(&buffer[..n]).is_ok() => {}
            _ => return,
        }
    }
}

/// An IPv4 address that came through an IPv6 socket, as IPv4.
fn plain(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

/// Bytes in which no run repeats at a distance of a buffer or a frame: its length is prime.
static PATTERN: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let bytes = (0..1_048_573).map(|_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    });
    bytes.collect()
});

/// The stretch of the endless pattern of `seed` that begins at `at`, at most `len` long.
fn pattern(seed: u64, at: u64, len: u64) -> &'static [u8] {
    let size = u64::try_from(PATTERN.len()).expect("a length is an u64");
    let start = (seed * 104_729 + at) % size;
    let end = size.min(start + len);
    let index = |n: u64| usize::try_from(n).expect("it is within the pattern");
    &PATTERN[index(start)..index(end)]
}

/// Sends `bytes` of the pattern of seed `send` and ends its side, while it reads the same amount
/// of the pattern of seed `receive` and then the end of the other side. Every byte is compared.
pub(crate) fn exchange(conn: &Conn, send: u64, receive: u64, bytes: u64) -> Result<(), String> {
    conn.patience(Duration::from_secs(60));
    std::thread::scope(|scope| {
        let sender = scope.spawn(|| {
            let mut at = 0;
            while at < bytes {
                let chunk = pattern(send, at, (bytes - at).min(256 * 1024));
                conn.try_send(chunk)
                    .map_err(|e| format!("sending at {at}: {e}"))?;
                at += chunk.len() as u64;
            }
            conn.stream
                .shutdown(Shutdown::Write)
                .map_err(|e| format!("finishing: {e}"))
        });
        let received = compare(conn, receive, bytes);
        sender.join().expect("the sender does not panic")?;
        received
    })
}

fn compare(conn: &Conn, seed: u64, bytes: u64) -> Result<(), String> {
    let mut buffer = vec![0; 256 * 1024];
    let mut at = 0;
    loop {
        let n = (&conn.stream)
            .read(&mut buffer)
            .map_err(|e| format!("receiving at {at}: {e}"))?;
        if n == 0 {
            return if at == bytes {
                Ok(())
            } else {
                Err(format!("the end came at {at} of {bytes}"))
            };
        }
        let mut rest = &buffer[..n];
        while !rest.is_empty() {
            let want = pattern(seed, at, rest.len() as u64);
            let (got, more) = rest.split_at(want.len());
            if got != want {
                return Err(format!(
                    "changed bytes between {at} and {}",
                    at + want.len() as u64
                ));
            }
            at += want.len() as u64;
            rest = more;
        }
        if at > bytes {
            return Err(format!("{at} bytes came where {bytes} were sent"));
        }
    }
}
