//! The clients: what they send, and what they write down. All run in the client's namespace, in
//! this process, and are bounded in time.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use socket2::{Domain, Socket, Type};

use crate::carrier::{Carrier, Place};
use crate::echo;

/// What a short connection exchanges.
pub(crate) const MESSAGE: [u8; 64] = [0x5a; 64];
/// How long anything may take before the measurement fails.
const PATIENCE: Duration = Duration::from_secs(10);

/// What was measured within a window of time.
#[derive(Debug, Default)]
pub(crate) struct Measured {
    pub(crate) elapsed: Duration,
    /// Bytes, exchanges or connections.
    pub(crate) count: u64,
    /// Processor time of the carrier's programs.
    pub(crate) cpu: Duration,
    /// Sorted, in nanoseconds.
    latencies: Vec<u32>,
}

impl Measured {
    /// How many a second.
    pub(crate) fn rate(&self) -> f64 {
        self.count as f64 / self.elapsed.as_secs_f64()
    }

    /// Seconds of processor time for each one of the count.
    pub(crate) fn cost(&self) -> f64 {
        self.cpu.as_secs_f64() / self.count as f64
    }

    /// The latency that this share of all did not exceed, in microseconds.
    pub(crate) fn percentile(&self, share: f64) -> f64 {
        let last = self.latencies.len() - 1;
        let at = (last as f64 * share).round() as usize;
        f64::from(self.latencies[at.min(last)]) / 1000.0
    }
}

/// A window of time that has begun.
struct Window<'a> {
    carrier: &'a Carrier,
    cpu: Duration,
    begin: Instant,
    latencies: Vec<u32>,
}

impl<'a> Window<'a> {
    fn open(carrier: &'a Carrier) -> Result<Self> {
        let cpu = carrier.cpu()?;
        let latencies = Vec::with_capacity(1 << 20);
        Ok(Self {
            carrier,
            cpu,
            begin: Instant::now(),
            latencies,
        })
    }

    fn record(&mut self, latency: Duration) {
        let nanoseconds = u32::try_from(latency.as_nanos()).unwrap_or(u32::MAX);
        self.latencies.push(nanoseconds);
    }

    fn close(mut self, count: u64) -> Result<Measured> {
        let elapsed = self.begin.elapsed();
        let cpu = self.carrier.cpu()? - self.cpu;
        ensure!(count > 0, "nothing came through");
        self.latencies.sort_unstable();
        Ok(Measured {
            elapsed,
            count,
            cpu,
            latencies: self.latencies,
        })
    }

    /// The same, where each one of the count has its latency.
    fn finish(self) -> Result<Measured> {
        let count = u64::try_from(self.latencies.len())?;
        self.close(count)
    }
}

fn warm_up(time: Duration) -> Duration {
    (time / 4).min(Duration::from_millis(500))
}

/// Connects, with a bound to everything.
pub(crate) fn dial(to: SocketAddr) -> Result<TcpStream> {
    let stream =
        TcpStream::connect_timeout(&to, PATIENCE).with_context(|| format!("dialling {to}"))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// Sends as much as will go, over some connections at once; counts what has arrived.
pub(crate) fn bulk(
    carrier: &Carrier,
    place: Place,
    connections: usize,
    time: Duration,
) -> Result<Measured> {
    let to = carrier.address(place, echo::SINK);
    let servers = carrier.servers(place);
    let stop = AtomicBool::new(false);
    let send = || -> Result<()> {
        let mut stream = dial(to)?;
        let chunk = vec![0x5a; echo::CHUNK];
        while !stop.load(Ordering::Relaxed) {
            stream.write_all(&chunk)?;
        }
        Ok(())
    };
    let measure = || -> Result<Measured> {
        std::thread::sleep(warm_up(time));
        let window = Window::open(carrier)?;
        let before = servers.sunk();
        std::thread::sleep(time);
        window.close(servers.sunk() - before)
    };
    let measured = carrier.client().netns.enter(|| {
        std::thread::scope(|scope| {
            let senders: Vec<_> = (0..connections).map(|_| scope.spawn(send)).collect();
            let measured = measure();
            stop.store(true, Ordering::Relaxed);
            for sender in senders {
                sender.join().expect("a sender does not panic")?;
            }
            measured
        })
    })?;
    settle(|| servers.sunk());
    Ok(measured)
}

/// Waits until what is still under way has arrived, so that it burdens nobody else's measurement.
fn settle(count: impl Fn() -> u64) {
    let end = Instant::now() + PATIENCE;
    let mut last = count();
    loop {
        std::thread::sleep(Duration::from_millis(50));
        let now = count();
        if now == last || Instant::now() > end {
            return;
        }
        last = now;
    }
}

/// Sends a message over one connection and waits for its echo, again and again.
pub(crate) fn ping(
    carrier: &Carrier,
    place: Place,
    size: usize,
    time: Duration,
) -> Result<Measured> {
    let to = carrier.address(place, echo::BLOCKING);
    carrier.client().netns.enter(|| {
        let mut stream = dial(to)?;
        let message = vec![0x5a; size];
        let mut answer = vec![0; size];
        let mut exchange = || -> Result<Duration> {
            let begin = Instant::now();
            stream.write_all(&message)?;
            stream.read_exact(&mut answer)?;
            Ok(begin.elapsed())
        };
        let warm = Instant::now() + warm_up(time);
        while Instant::now() < warm {
            exchange()?;
        }
        let mut window = Window::open(carrier)?;
        while window.begin.elapsed() < time {
            let latency = exchange()?;
            window.record(latency);
        }
        window.finish()
    })
}

/// One connection of [`ping_many`]: how much of the echo is awaited, and since when.
struct Pending {
    stream: TcpStream,
    missing: usize,
    since: Instant,
}

/// The same over many connections at once, each with one message under way.
pub(crate) fn ping_many(
    carrier: &Carrier,
    place: Place,
    connections: usize,
    size: usize,
    time: Duration,
) -> Result<Measured> {
    let to = carrier.address(place, echo::MANY);
    carrier.client().netns.enter(|| {
        let message = vec![0x5a; size];
        let mut buffer = vec![0; size];
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let mut all = Vec::new();
        for token in 0..connections {
            let stream = dial(to)?;
            stream.set_nonblocking(true)?;
            let event = EpollEvent::new(EpollFlags::EPOLLIN, u64::try_from(token)?);
            epoll.add(stream.as_fd(), event)?;
            all.push(Pending {
                stream,
                missing: size,
                since: Instant::now(),
            });
        }
        for pending in &mut all {
            pending.stream.write_all(&message)?;
        }
        let mut events = vec![EpollEvent::empty(); connections];
        let warm = Instant::now() + warm_up(time);
        let mut window = None;
        loop {
            let count = wait(&epoll, &mut events)?;
            let now = Instant::now();
            for event in &events[..count] {
                let pending = &mut all[usize::try_from(event.data())?];
                if !read_some(&mut pending.stream, &mut buffer, &mut pending.missing)? {
                    continue;
                }
                if let Some(window) = &mut window {
                    Window::record(window, now - pending.since);
                }
                pending.missing = size;
                pending.since = now;
                pending.stream.write_all(&message)?;
            }
            match &window {
                None if now > warm => window = Some(Window::open(carrier)?),
                Some(open) if open.begin.elapsed() >= time => break,
                _ => {}
            }
        }
        window.context("it was opened above")?.finish()
    })
}

/// Reads towards the whole echo; whether it is whole.
fn read_some(stream: &mut TcpStream, buffer: &mut [u8], missing: &mut usize) -> Result<bool> {
    match stream.read(&mut buffer[..*missing]) {
        Ok(0) => bail!("the connection ended in the middle"),
        Ok(n) => {
            *missing -= n;
            Ok(*missing == 0)
        }
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn wait(epoll: &Epoll, events: &mut [EpollEvent]) -> Result<usize> {
    match epoll.wait(events, EpollTimeout::from(10_000_u16)) {
        Ok(0) => bail!("nothing came for 10 s"),
        Ok(count) => Ok(count),
        Err(nix::errno::Errno::EINTR) => Ok(0),
        Err(error) => Err(error.into()),
    }
}

/// The ports of short connections, in turn.
fn ports() -> impl Iterator<Item = u16> {
    echo::SHORT.cycle()
}

/// Connects, makes one exchange and closes, one connection after the other. The latency is that of
/// the whole.
pub(crate) fn connect(carrier: &Carrier, place: Place, time: Duration) -> Result<Measured> {
    carrier.client().netns.enter(|| {
        let mut ports = ports();
        let mut once = || -> Result<Duration> {
            let to = carrier.address(place, ports.next().context("it goes on for ever")?);
            let begin = Instant::now();
            let mut stream = TcpStream::connect(to)?;
            stream.write_all(&MESSAGE)?;
            let mut answer = [0; MESSAGE.len()];
            stream.read_exact(&mut answer)?;
            drop(stream);
            Ok(begin.elapsed())
        };
        let warm = Instant::now() + warm_up(time);
        while Instant::now() < warm {
            once()?;
        }
        let mut window = Window::open(carrier)?;
        while window.begin.elapsed() < time {
            let latency = once()?;
            window.record(latency);
        }
        window.finish()
    })
}

/// One connection of [`connect_many`].
struct Short {
    stream: TcpStream,
    begin: Instant,
    sent: bool,
    missing: usize,
}

/// The same with some connections at once. The latency is that from the call of `connect` to the
/// first byte of the answer.
pub(crate) fn connect_many(
    carrier: &Carrier,
    place: Place,
    at_once: usize,
    time: Duration,
) -> Result<Measured> {
    carrier.client().netns.enter(|| {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let mut ports = ports();
        let mut open = |token: usize| -> Result<Short> {
            let to = carrier.address(place, ports.next().context("it goes on for ever")?);
            let short = begin(to)?;
            let interest = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLET;
            epoll.add(
                short.stream.as_fd(),
                EpollEvent::new(interest, u64::try_from(token)?),
            )?;
            Ok(short)
        };
        let mut all = (0..at_once).map(&mut open).collect::<Result<Vec<_>>>()?;
        let mut events = vec![EpollEvent::empty(); at_once];
        let warm = Instant::now() + warm_up(time);
        let mut window = None;
        loop {
            let count = wait(&epoll, &mut events)?;
            let now = Instant::now();
            for event in &events[..count] {
                let token = usize::try_from(event.data())?;
                if !all[token].advance(event.events())? {
                    continue;
                }
                if let Some(window) = &mut window {
                    Window::record(window, all[token].begin.elapsed());
                }
                // The old one is closed by this, before or after the new one is opened.
                all[token] = open(token)?;
            }
            match &window {
                None if now > warm => window = Some(Window::open(carrier)?),
                Some(open) if open.begin.elapsed() >= time => break,
                _ => {}
            }
        }
        window.context("it was opened above")?.finish()
    })
}

fn begin(to: SocketAddr) -> Result<Short> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM.nonblocking(), None)?;
    let begin = Instant::now();
    match socket.connect(&to.into()) {
        Err(error) if error.raw_os_error() != Some(nix::libc::EINPROGRESS) => {
            return Err(error).with_context(|| format!("dialling {to}"));
        }
        _ => {}
    }
    Ok(Short {
        stream: socket.into(),
        begin,
        sent: false,
        missing: MESSAGE.len(),
    })
}

impl Short {
    /// Does what can be done; whether the exchange is complete.
    fn advance(&mut self, events: EpollFlags) -> Result<bool> {
        if let Some(error) = self.stream.take_error()? {
            return Err(error).context("a short connection failed");
        }
        if !self.sent && events.contains(EpollFlags::EPOLLOUT) {
            self.stream.write_all(&MESSAGE)?;
            self.sent = true;
        }
        if self.sent && events.contains(EpollFlags::EPOLLIN) {
            let mut buffer = [0; MESSAGE.len()];
            return read_some(&mut self.stream, &mut buffer, &mut self.missing);
        }
        Ok(false)
    }
}
