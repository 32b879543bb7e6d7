//! Measurements, for people: `cargo test --release --test tunnel -- --ignored --nocapture speed`.
//!
//! Four threads, as on two nodes: the writing application, the worker of its node, the worker of
//! the other node, the reading application.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use adit::deliver::{self, Meter};
use adit::task;
use nix::sys::resource::{UsageWho, getrusage};

use crate::bed::{self, Bed};

fn cpu() -> f64 {
    used(UsageWho::RUSAGE_THREAD)
}

fn whole() -> f64 {
    used(UsageWho::RUSAGE_SELF)
}

fn used(who: UsageWho) -> f64 {
    let usage = getrusage(who).unwrap();
    let seconds = |t: nix::sys::time::TimeVal| t.tv_sec() as f64 + t.tv_usec() as f64 / 1e6;
    seconds(usage.user_time()) + seconds(usage.system_time())
}

fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/statm").unwrap();
    status.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

/// Runs a bed's inbound side on a thread, and gives its address and certificate to the caller.
struct Nodes {
    captured: SocketAddr,
}

/// Two workers on two threads; connections to `captured` reach `app`.
fn nodes(app: SocketAddr, tunnelled: bool) -> Nodes {
    let (tell, told) = std::sync::mpsc::channel();
    let (back, bed_via) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        tokio::task::LocalSet::new().block_on(&runtime, async {
            let bed = Bed::new(app).await;
            let certificate = bed.origin.borrow().certificate.clone();
            back.send((bed.via.get(), certificate)).unwrap();
            std::future::pending::<()>().await;
        });
    });
    let (via, certificate) = bed_via.recv().unwrap();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        tokio::task::LocalSet::new().block_on(&runtime, async {
            let bed = Bed::new(app).await;
            bed.via.set(via);
            bed.origin.borrow_mut().certificate = certificate;
            let (listener, addr) = bed::listen().await;
            tell.send(addr).unwrap();
            loop {
                let (captured, _) = listener.accept().await.unwrap();
                captured.set_nodelay(true).unwrap();
                let bed = bed.clone();
                let permit = std::rc::Rc::new(bed.permit());
                if tunnelled {
                    let carry = async move {
                        let stream = Box::pin(bed.open()).await.unwrap();
                        let meter = Meter::default();
                        deliver::relay(&permit, captured, stream, &meter).await;
                    };
                    eprint_once(size_of_val(&carry));
                    task::spawn_local("carry", carry).detach();
                    continue;
                }
                task::spawn_local("carry", async move {
                    let meter = Meter::default();
                    {
                        let netns = adit::sys::netns::Netns::current().unwrap();
                        let far = deliver::dial(&permit, &netns, None).await.unwrap();
                        deliver::splice(&permit, captured, far, &meter).await;
                    }
                })
                .detach();
            }
        });
    });
    Nodes {
        captured: told.recv().unwrap(),
    }
}

fn eprint_once(size: usize) {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| eprintln!("    an outbound connection's future has {size} bytes"));
}

fn bulk(name: &str, to: impl Fn(SocketAddr) -> SocketAddr, connections: usize) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = to(listener.local_addr().unwrap());
    let total = std::env::var("GIB").map_or(6, |gib| gib.parse().unwrap()) << 30_u64;
    let writers: Vec<_> = (0..connections)
        .map(|_| {
            std::thread::spawn(move || {
                let mut near = TcpStream::connect(at).unwrap();
                let chunk = vec![1; 1 << 18];
                for _ in 0..total / connections as u64 / chunk.len() as u64 {
                    near.write_all(&chunk).unwrap();
                }
                cpu()
            })
        })
        .collect();
    let (start, before) = (Instant::now(), whole());
    let readers: Vec<_> = (0..connections)
        .map(|_| {
            let (mut far, _) = listener.accept().unwrap();
            std::thread::spawn(move || {
                let mut buffer = vec![0; 1 << 18];
                let mut got = 0;
                loop {
                    match far.read(&mut buffer).unwrap() {
                        0 => return (got, cpu()),
                        count => got += count as u64,
                    }
                }
            })
        })
        .collect();
    let (mut got, mut apps) = (0, 0.0);
    for reader in readers {
        let (bytes, cpu) = reader.join().unwrap();
        got += bytes;
        apps += cpu;
    }
    for writer in writers {
        apps += writer.join().unwrap();
    }
    let proxies = whole() - before - apps;
    let seconds = start.elapsed().as_secs_f64();
    let gib = got as f64 / (1_u64 << 30) as f64;
    let (speed, cost) = (gib / seconds, proxies / gib);
    eprintln!("{name}, {connections}: {speed:.2} GiB/s, {cost:.2} CPU s per GiB in the workers");
}

fn ping_pong(name: &str, to: impl Fn(SocketAddr) -> SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = to(listener.local_addr().unwrap());
    std::thread::spawn(move || {
        let (mut far, _) = listener.accept().unwrap();
        far.set_nodelay(true).unwrap();
        let mut buffer = [0; 64];
        while far.read_exact(&mut buffer).is_ok() {
            far.write_all(&buffer).unwrap();
        }
    });
    let mut near = TcpStream::connect(at).unwrap();
    near.set_nodelay(true).unwrap();
    let mut times = Vec::new();
    for _ in 0..20_000 {
        let start = Instant::now();
        near.write_all(&[5; 64]).unwrap();
        near.read_exact(&mut [0; 64]).unwrap();
        times.push(start.elapsed());
    }
    times.sort();
    eprintln!("{name}: p50 {:?}, p99 {:?}", times[10_000], times[19_800]);
}

#[test]
#[ignore = "a measurement"]
fn speed_of_bulk() {
    bulk("direct", |app| app, 1);
    bulk("relay", |app| nodes(app, true).captured, 1);
    bulk("relay", |app| nodes(app, true).captured, 8);
    bulk("splice", |app| nodes(app, false).captured, 1);
    ping_pong("direct", |app| app);
    ping_pong("relay", |app| nodes(app, true).captured);
    ping_pong("splice", |app| nodes(app, false).captured);
}

#[test]
#[ignore = "a measurement"]
fn speed_of_idling() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = nodes(listener.local_addr().unwrap(), true).captured;
    let mut held = Vec::new();
    let mut open = |count: usize| {
        for _ in 0..count {
            let mut near = TcpStream::connect(at).unwrap();
            let (mut far, _) = listener.accept().unwrap();
            near.write_all(b"x").unwrap();
            far.read_exact(&mut [0]).unwrap();
            held.push((near, far));
        }
        std::thread::sleep(Duration::from_millis(200));
        resident()
    };
    let before = open(200);
    let after = open(2500);
    eprintln!(
        "an idle connection holds {} bytes, both ends together",
        (after - before) / 2500
    );
}
