//! A pod and a peer to capture between, and a stand-in for the daemon.

use std::cell::RefCell;
use std::io;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::process::Command;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use adit::capture;
use adit::capture::{Accepted, Capture, Options, Port, WorkerListeners};
use adit::sys::netns::Netns;
use adit::sys::socket::{self, Listener, Reach};
use socket2::{Domain, Socket, Type};

/// The addresses of one family.
#[derive(Clone, Copy)]
pub(crate) struct Addresses {
    pub(crate) pod: IpAddr,
    pub(crate) peer: IpAddr,
    pub(crate) loopback: IpAddr,
}

pub(crate) const V4: Addresses = Addresses {
    pod: IpAddr::V4(Ipv4Addr::new(10, 9, 0, 2)),
    peer: IpAddr::V4(Ipv4Addr::new(10, 9, 0, 1)),
    loopback: IpAddr::V4(Ipv4Addr::LOCALHOST),
};

pub(crate) const V6: Addresses = Addresses {
    pod: IpAddr::V6(Ipv6Addr::new(0xfd09, 0, 0, 0, 0, 0, 0, 2)),
    peer: IpAddr::V6(Ipv6Addr::new(0xfd09, 0, 0, 0, 0, 0, 0, 1)),
    loopback: IpAddr::V6(Ipv6Addr::LOCALHOST),
};

/// How long a connect may take before it counts as cut off, where that is expected.
const BRIEF: Duration = Duration::from_millis(600);
/// How long everything else may take, on a busy machine and if a packet has to be sent again.
const PATIENCE: Duration = Duration::from_secs(8);

/// Two namespaces, joined by a veth pair; removed when dropped.
pub(crate) struct Net {
    pub(crate) pod: String,
    pub(crate) peer: String,
}

impl Net {
    /// With both families.
    pub(crate) fn new() -> Self {
        let net = Self::without_v6();
        net.add_v6();
        net
    }

    /// With IPv6 switched off in the pod.
    pub(crate) fn without_v6() -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let name = format!(
            "capture-{}-{}",
            std::process::id(),
            COUNT.fetch_add(1, Ordering::Relaxed)
        );
        let net = Self {
            pod: format!("{name}-pod"),
            peer: format!("{name}-peer"),
        };
        let (pod, peer) = (&net.pod, &net.peer);
        sh(&format!("ip netns add {pod} && ip netns add {peer}"));
        net.inside(
            "sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1",
        );
        sh(&format!(
            "ip -n {pod} link set lo up && ip -n {peer} link set lo up &&
             ip -n {peer} link add eth0 type veth peer name eth0 netns {pod} &&
             ip -n {pod} addr add 10.9.0.2/24 dev eth0 && ip -n {peer} addr add 10.9.0.1/24 dev eth0 &&
             ip -n {peer} addr add fd09::1/64 dev eth0 nodad &&
             ip -n {pod} link set eth0 up && ip -n {peer} link set eth0 up &&
             ip -n {pod} route add default via 10.9.0.1"
        ));
        net
    }

    /// Switches IPv6 on in the pod.
    pub(crate) fn add_v6(&self) {
        let pod = &self.pod;
        self.inside("sysctl -qw net.ipv6.conf.all.disable_ipv6=0");
        sh(&format!(
            "ip -n {pod} addr add fd09::2/64 dev eth0 nodad &&
             ip -n {pod} -6 route add default via fd09::1"
        ));
        // The link-local addresses are not usable at once, and their routes come and go until
        // they are.
        let begun = Instant::now();
        let peer = &self.peer;
        let tentative =
            format!("ip -n {pod} -6 addr show tentative; ip -n {peer} -6 addr show tentative");
        while !sh(&tentative).is_empty() {
            assert!(begun.elapsed() < Duration::from_secs(10));
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Runs a command line in the pod.
    pub(crate) fn inside(&self, command: &str) -> String {
        sh(&format!("ip netns exec {} sh -c '{command}'", self.pod))
    }

    pub(crate) fn sysctl(&self, setting: &str) {
        self.inside(&format!("sysctl -qw {setting}"));
    }

    /// A fresh handle of the pod's namespace.
    pub(crate) fn netns(&self) -> Netns {
        namespace(&self.pod)
    }

    pub(crate) fn addresses(&self) -> [IpAddr; 2] {
        [V4.pod, V6.pod]
    }

    pub(crate) fn is_pods(&self, ip: IpAddr) -> bool {
        ip.is_loopback() || self.addresses().contains(&ip)
    }

    pub(crate) fn enrol(&self) -> Capture {
        capture::enrol(&self.netns(), &self.addresses(), &options()).unwrap()
    }

    /// Everything that capture changes in the kernel.
    pub(crate) fn state(&self) -> String {
        self.inside("nft list ruleset; ip rule; ip -6 rule; ip route show table all; ip -6 route show table all; sysctl -a 2>/dev/null | grep -E \"ip_forward|rp_filter|nonlocal|route_localnet\"; ss -ltnH | grep -E \":150(01|06|08) \" || true")
    }

    pub(crate) fn no_conntrack(&self) {
        assert_eq!(self.inside("conntrack -C").trim(), "0");
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for name in [&self.pod, &self.peer] {
            let _ = Command::new("ip").args(["netns", "del", name]).status();
        }
    }
}

pub(crate) fn options() -> Options {
    Options {
        workers: 1,
        existing: capture::Existing::Keep,
        fresh: false,
    }
}

fn sh(command: &str) -> String {
    let output = Command::new("sh").args(["-c", command]).output().unwrap();
    assert!(
        output.status.success(),
        "{command}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

fn namespace(name: &str) -> Netns {
    Netns::open(&Path::new("/run/netns").join(name)).unwrap()
}

fn application(netns: &str, ip: IpAddr) -> Socket {
    let domain = if ip.is_ipv4() {
        Domain::IPV4
    } else {
        Domain::IPV6
    };
    let socket = namespace(netns).enter(|| Socket::new(domain, Type::STREAM, None));
    let socket = socket.unwrap().unwrap();
    socket.set_reuse_address(true).unwrap();
    socket
}

/// An application's call.
pub(crate) fn connect(netns: &str, to: SocketAddr) -> io::Result<TcpStream> {
    connect_as(netns, None, to)
}

/// An application's call from an address of its choice.
pub(crate) fn connect_as(
    netns: &str,
    from: Option<SocketAddr>,
    to: SocketAddr,
) -> io::Result<TcpStream> {
    let socket = application(netns, to.ip());
    if let Some(from) = from {
        socket.bind(&from.into())?;
    }
    finish(socket, to, PATIENCE)
}

/// An application's call that is expected to be cut off.
pub(crate) fn connect_briefly(netns: &str, to: SocketAddr) -> io::Result<TcpStream> {
    finish(application(netns, to.ip()), to, BRIEF)
}

fn finish(socket: Socket, to: SocketAddr, limit: Duration) -> io::Result<TcpStream> {
    socket.connect_timeout(&to.into(), limit)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket.into())
}

/// An application's datagram socket.
pub(crate) fn datagrams(netns: &str, addr: SocketAddr) -> UdpSocket {
    let socket = namespace(netns)
        .enter(|| UdpSocket::bind(addr))
        .unwrap()
        .unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// The daemon's call to an application of the pod, as if from `from`.
pub(crate) fn dial(
    net: &Net,
    from: IpAddr,
    to: SocketAddr,
    avoid: Option<u16>,
) -> io::Result<TcpStream> {
    let netns = net.netns();
    let stream = runtime().block_on(async {
        let dialled = socket::connect_from(&netns, from, to, avoid);
        tokio::time::timeout(PATIENCE, dialled).await?
    })?;
    let stream = stream.into_tcp().into_std()?;
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// The first line that a [`Server`] says: who it thinks has called.
pub(crate) fn first_line(stream: &mut TcpStream) -> SocketAddr {
    let mut line = String::new();
    let mut byte = [0];
    while byte != *b"\n" {
        stream.read_exact(&mut byte).expect("no first line");
        line.push(char::from(byte[0]));
    }
    line.trim().parse().unwrap()
}

/// An application that says who has called it, and then repeats what it hears.
pub(crate) struct Server {
    pub(crate) addr: SocketAddr,
    received: Arc<AtomicUsize>,
    ended: Arc<AtomicUsize>,
    stop: Socket,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    pub(crate) fn new(netns: &str, ip: IpAddr, port: u16) -> Self {
        let addr = SocketAddr::new(ip, port);
        let socket = application(netns, ip);
        socket.bind(&addr.into()).unwrap();
        socket.listen(1024).unwrap();
        let stop = socket.try_clone().unwrap();
        let listener: TcpListener = socket.into();
        let received = Arc::new(AtomicUsize::new(0));
        let ended = Arc::new(AtomicUsize::new(0));
        let counters = (Arc::clone(&received), Arc::clone(&ended));
        let thread = std::thread::spawn(move || {
            while let Ok((stream, peer)) = listener.accept() {
                let (received, ended) = (Arc::clone(&counters.0), Arc::clone(&counters.1));
                std::thread::spawn(move || {
                    let _ = echo(stream, peer, &received);
                    ended.fetch_add(1, Ordering::Relaxed);
                });
            }
        });
        Self {
            addr,
            received,
            ended,
            stop,
            thread: Some(thread),
        }
    }

    /// How many bytes have arrived, over all connections.
    pub(crate) fn received(&self) -> usize {
        self.received.load(Ordering::Relaxed)
    }

    /// Whether a connection ends within `limit`.
    pub(crate) fn ended(&self, limit: Duration) -> bool {
        let begun = Instant::now();
        while begun.elapsed() < limit {
            if self.ended.load(Ordering::Relaxed) > 0 {
                return true;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        false
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.stop.shutdown(std::net::Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn echo(mut stream: TcpStream, peer: SocketAddr, received: &AtomicUsize) -> io::Result<()> {
    stream.write_all(format!("{peer}\n").as_bytes())?;
    let mut reader = BufReader::new(stream.try_clone()?);
    loop {
        let heard = reader.fill_buf()?;
        if heard.is_empty() {
            return Ok(());
        }
        stream.write_all(heard)?;
        let length = heard.len();
        received.fetch_add(length, Ordering::Relaxed);
        reader.consume(length);
    }
}

/// What a [`Proxy`] has seen.
#[derive(Default)]
struct Seen {
    captured: AtomicUsize,
    refused: AtomicUsize,
    outbound: Mutex<Option<SocketAddr>>,
    inbound: Mutex<Option<SocketAddr>>,
}

/// Stands for the daemon: carries what is captured to where it was going; at the tunnel port it
/// repeats what it hears. Dropped, it is a daemon that was killed.
pub(crate) struct Proxy {
    seen: Arc<Seen>,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Proxy {
    pub(crate) fn new(mut capture: Capture) -> Self {
        let listeners = capture.take_listeners();
        Self::run(capture.netns().clone(), listeners)
    }

    pub(crate) fn serve(net: &Net, listeners: Vec<WorkerListeners>) -> Self {
        Self::run(net.netns(), listeners)
    }

    fn run(netns: Netns, listeners: Vec<WorkerListeners>) -> Self {
        let seen = Arc::new(Seen::default());
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let (ready, is_ready) = mpsc::channel();
        let shared = Arc::clone(&seen);
        let thread = std::thread::spawn(move || {
            let local = tokio::task::LocalSet::new();
            let serving = async {
                let tasks = Rc::new(RefCell::new(Vec::new()));
                for mut worker in listeners {
                    for port in Port::ALL {
                        for listener in worker.on(port).drain(..) {
                            let task = serve(netns.clone(), listener, port, Arc::clone(&shared));
                            tasks.borrow_mut().push(tokio::task::spawn_local(task));
                        }
                    }
                }
                ready.send(()).unwrap();
                let _ = stopped.await;
            };
            runtime().block_on(local.run_until(serving));
        });
        is_ready.recv().unwrap();
        Self {
            seen,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    /// How many connections were captured.
    pub(crate) fn count(&self) -> usize {
        self.seen.captured.load(Ordering::Relaxed)
    }

    /// How many were refused.
    pub(crate) fn refused(&self) -> usize {
        self.seen.refused.load(Ordering::Relaxed)
    }

    pub(crate) fn last_outbound(&self) -> Option<SocketAddr> {
        *self.seen.outbound.lock().unwrap()
    }

    pub(crate) fn last_inbound(&self) -> Option<SocketAddr> {
        *self.seen.inbound.lock().unwrap()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        drop(self.stop.take());
        let thread = self.thread.take().unwrap();
        if thread.join().is_err() && !std::thread::panicking() {
            panic!("the proxy panicked");
        }
    }
}

async fn serve(netns: Netns, listener: Listener, port: Port, seen: Arc<Seen>) {
    let listener = listener.accepting().unwrap();
    loop {
        let captured = match capture::accept(&listener, port).await.unwrap() {
            Accepted::Captured(captured) => captured,
            Accepted::Refused(_) => {
                seen.refused.fetch_add(1, Ordering::Relaxed);
                continue;
            }
        };
        assert!(captured.socket.tcp().nodelay().unwrap());
        seen.captured.fetch_add(1, Ordering::Relaxed);
        let to = captured.original_dst.get();
        let netns = netns.clone();
        match port {
            Port::Outbound => *seen.outbound.lock().unwrap() = Some(to),
            Port::Inbound => *seen.inbound.lock().unwrap() = Some(to),
            Port::Tunnel => {}
        }
        tokio::task::spawn_local(async move {
            let mut socket = captured.socket.into_tcp();
            let dialled = match port {
                Port::Outbound => socket::connect(&netns, None, to, Reach::Elsewhere).await,
                Port::Inbound => {
                    let source = captured.source;
                    socket::connect_from(&netns, source.ip(), to, Some(source.port())).await
                }
                Port::Tunnel => {
                    let (mut reader, mut writer) = socket.split();
                    let _ = tokio::io::copy(&mut reader, &mut writer).await;
                    return;
                }
            };
            match dialled {
                Ok(other) => {
                    let mut other = other.into_tcp();
                    let _ = tokio::io::copy_bidirectional(&mut socket, &mut other).await;
                }
                Err(_) => socket.set_zero_linger().unwrap(),
            }
        });
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}
