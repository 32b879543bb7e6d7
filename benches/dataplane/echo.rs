//! The servers of a pod: threads of this process that stand in its namespace.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Result;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use socket2::{Domain, Socket, Type};

use crate::support::netns::Netns;

/// Takes bytes and forgets them; one thread per connection.
pub(crate) const SINK: u16 = 7001;
/// Sends back what comes; one thread per connection.
pub(crate) const BLOCKING: u16 = 7002;
/// Sends back what comes; one thread for all connections.
pub(crate) const MANY: u16 = 7003;
/// The same on many ports, so that short connections do not run out of addresses.
pub(crate) const SHORT: std::ops::Range<u16> = 7010..7026;

/// For the programs that hold many connections; nothing in this process listens there.
pub(crate) const HELD: std::ops::Range<u16> = 7030..7036;

/// How much is read and written at once.
pub(crate) const CHUNK: usize = 256 << 10;

/// All ports.
pub(crate) fn ports() -> impl Iterator<Item = u16> {
    [SINK, BLOCKING, MANY].into_iter().chain(SHORT).chain(HELD)
}

/// What runs in a pod, until this process ends.
#[derive(Debug)]
pub(crate) struct Servers {
    sunk: Arc<AtomicU64>,
}

impl Servers {
    /// Starts them all.
    pub(crate) fn start(netns: &Netns) -> Result<Self> {
        let sunk = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&sunk);
        serve(netns, SINK, move |stream| sink(stream, &counter))?;
        serve(netns, BLOCKING, echo)?;
        let listeners = std::iter::once(MANY)
            .chain(SHORT)
            .map(|port| listen(netns, port))
            .collect::<Result<Vec<_>>>()?;
        netns.spawn(move || echo_all(&listeners).expect("epoll works"))?;
        Ok(Self { sunk })
    }

    /// How many bytes the sink has taken.
    pub(crate) fn sunk(&self) -> u64 {
        self.sunk.load(Ordering::Relaxed)
    }
}

fn listen(netns: &Netns, port: u16) -> Result<TcpListener> {
    netns.enter(|| bind(port))
}

/// Listens where this thread stands.
pub(crate) fn bind(port: u16) -> Result<TcpListener> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)).into())?;
    socket.listen(4096)?;
    Ok(socket.into())
}

/// Accepts on a thread, and works on a further one for each connection.
fn serve(
    netns: &Netns,
    port: u16,
    work: impl Fn(TcpStream) + Clone + Send + 'static,
) -> Result<()> {
    let listener = listen(netns, port)?;
    netns.spawn(move || {
        for stream in listener.incoming().flatten() {
            let work = work.clone();
            std::thread::spawn(move || work(stream));
        }
    })?;
    Ok(())
}

fn sink(mut stream: TcpStream, counter: &AtomicU64) {
    let mut buffer = vec![0; CHUNK];
    while let Ok(n @ 1..) = stream.read(&mut buffer) {
        counter.fetch_add(n as u64, Ordering::Relaxed);
    }
}

fn echo(mut stream: TcpStream) {
    let _ = stream.set_nodelay(true);
    let mut buffer = [0; 16 << 10];
    while let Ok(n @ 1..) = stream.read(&mut buffer) {
        if stream.write_all(&buffer[..n]).is_err() {
            return;
        }
    }
}

/// Serves all connections of all listeners on this thread. Messages are small: what a socket does
/// not take at once ends its connection.
pub(crate) fn echo_all(listeners: &[TcpListener]) -> Result<()> {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    for (token, listener) in (0..).zip(listeners) {
        listener.set_nonblocking(true)?;
        epoll.add(
            listener.as_fd(),
            EpollEvent::new(EpollFlags::EPOLLIN, token),
        )?;
    }
    let first = listeners.len();
    let mut streams: Vec<Option<TcpStream>> = Vec::new();
    let mut free: Vec<usize> = Vec::new();
    let mut events = vec![EpollEvent::empty(); 256];
    let mut buffer = [0; 16 << 10];
    loop {
        let count = match epoll.wait(&mut events, EpollTimeout::NONE) {
            Err(nix::errno::Errno::EINTR) => continue,
            other => other?,
        };
        for event in &events[..count] {
            let token = usize::try_from(event.data())?;
            if let Some(listener) = listeners.get(token) {
                while let Ok((stream, _)) = listener.accept() {
                    stream.set_nonblocking(true)?;
                    stream.set_nodelay(true)?;
                    let slot = free.pop().unwrap_or_else(|| {
                        streams.push(None);
                        streams.len() - 1
                    });
                    let data = u64::try_from(first + slot)?;
                    epoll.add(stream.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN, data))?;
                    streams[slot] = Some(stream);
                }
            } else {
                let slot = token - first;
                let over = match &mut streams[slot] {
                    Some(stream) => !answer(stream, &mut buffer),
                    None => false,
                };
                if over {
                    streams[slot] = None;
                    free.push(slot);
                }
            }
        }
    }
}

/// Whether the connection goes on.
fn answer(stream: &mut TcpStream, buffer: &mut [u8]) -> bool {
    match stream.read(buffer) {
        Ok(0) => false,
        Ok(n) => stream.write_all(&buffer[..n]).is_ok(),
        Err(error) => matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted),
    }
}
