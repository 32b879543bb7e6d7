//! Much data, many streams, slow readers.

use std::rc::Rc;
use std::time::{Duration, Instant};

use adit::task;
use adit::tunnel::{self, Limits, Waiting};
use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};

use crate::bed::{self, Bed, run, sleep, until};
use crate::peer;

/// Numbers that look random and repeat from a seed.
pub(crate) struct Noise(pub(crate) u64);

impl Noise {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub(crate) fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len.div_ceil(8))
            .flat_map(|_| self.next().to_le_bytes())
            .take(len)
            .collect()
    }
}

/// Writes `all` in pieces of every size, with pauses, then the FIN.
pub(crate) async fn write_raggedly(mut to: impl AsyncWrite + Unpin, all: &[u8], seed: u64) {
    let mut noise = Noise(seed);
    let mut rest = all;
    while !rest.is_empty() {
        let draw = noise.next();
        let most = [1, 100, 5000, 300_000][(draw % 4) as usize];
        let count = (1 + (draw >> 8) as usize % most).min(rest.len());
        to.write_all(&rest[..count]).await.unwrap();
        rest = &rest[count..];
        if draw.is_multiple_of(7) {
            tokio::task::yield_now().await;
        }
    }
    to.shutdown().await.unwrap();
}

/// Reads to the FIN in pieces of every size and compares.
pub(crate) async fn read_raggedly(mut from: impl AsyncRead + Unpin, expect: &[u8], seed: u64) {
    let mut noise = Noise(seed);
    let mut buffer = vec![0; 200_000];
    let mut at = 0;
    loop {
        let most = 1 + noise.next() as usize % [3, 999, 200_000][(noise.next() % 3) as usize];
        let count = from.read(&mut buffer[..most]).await.unwrap();
        if count == 0 {
            break;
        }
        assert!(
            buffer[..count] == expect[at..at + count],
            "changed near byte {at}"
        );
        at += count;
    }
    assert_eq!(at, expect.len(), "bytes lost at the end");
}

#[test]
fn every_byte_arrives_both_ways() {
    run(async {
        let (listener, app) = bed::listen().await;
        let bed = Bed::new(app).await;
        let mut noise = Noise(1);
        let (up, down) = (noise.bytes(20_000_000), noise.bytes(15_000_001));
        let mut near = bed.connect().await;
        let (mut far, _) = listener.accept().await.unwrap();
        let (near_read, near_write) = near.split();
        let (far_read, far_write) = far.split();
        tokio::join!(
            write_raggedly(near_write, &up, 2),
            read_raggedly(far_read, &up, 3),
            write_raggedly(far_write, &down, 4),
            read_raggedly(near_read, &down, 5),
        );
        let end = bed.outbound.next().await.unwrap();
        assert_eq!(
            (end.sent, end.received, end.reason()),
            (20_000_000, 15_000_001, None)
        );
        let end = bed.inbound.next().await.unwrap();
        assert_eq!(
            (end.sent, end.received, end.reason()),
            (15_000_001, 20_000_000, None)
        );
    });
}

#[test]
fn streams_that_fill_the_wire_together_all_go_on() {
    run(async {
        let (listener, app) = bed::listen().await;
        let bed = Bed::new(app).await;
        let all = Noise(9).bytes(6_000_000);
        let mut pairs = Vec::new();
        for _ in 0..8 {
            let near = bed.connect().await;
            pairs.push((near, listener.accept().await.unwrap().0));
        }
        let pass = async |mut from: WriteHalf<'_>, mut to: ReadHalf<'_>| {
            let write = async {
                from.write_all(&all).await.unwrap();
                from.shutdown().await.unwrap();
            };
            let mut got = Vec::new();
            let (read, ()) = tokio::join!(to.read_to_end(&mut got), write);
            read.unwrap();
            assert!(got == all);
        };
        let exchanges = pairs.iter_mut().map(async |(near, far)| {
            let ((near_read, near_write), (far_read, far_write)) = (near.split(), far.split());
            tokio::join!(pass(near_write, far_read), pass(far_write, near_read));
        });
        futures_util::future::join_all(exchanges).await;
        assert_eq!(bed.tunnels.get(), 1, "all on one tunnel");
    });
}

#[test]
fn a_thousand_connections_at_once() {
    run(async {
        let (listener, app) = bed::listen().await;
        peer::echo(listener);
        let bed = Bed::new(app).await;
        let exchange = async |bed: Rc<Bed>, seed: u64| {
            let mut near = bed.connect().await;
            let all = Noise(seed + 1).bytes(3000);
            near.write_all(&all).await.unwrap();
            near.shutdown().await.unwrap();
            let mut got = Vec::new();
            let read = near.read_to_end(&mut got).await;
            assert!(
                got == all,
                "connection {seed}: {read:?} after {} bytes",
                got.len()
            );
        };
        let all = (0..1000).map(|seed| exchange(bed.clone(), seed));
        let all = futures_util::future::join_all(all);
        let ends = async {
            for _ in 0..1000 {
                let end = bed.outbound.next().await.unwrap();
                assert!(end.fault.is_none(), "{:?}", (end, bed.inbound.next().await));
            }
        };
        tokio::join!(all, ends);
        let (tunnels, streams) = bed.pool.load();
        assert!(
            tunnels <= 10 && streams == 0,
            "{tunnels} tunnels, {streams} streams"
        );
    });
}

/// Fills a connection until nothing moves any more; how much went in.
async fn fill(near: &TcpStream) -> usize {
    let chunk = vec![7; 65536];
    let mut sent = 0;
    loop {
        let ready = tokio::time::timeout(Duration::from_millis(300), near.writable()).await;
        if ready.is_err() {
            return sent;
        }
        sent += near.try_write(&chunk).unwrap_or(0);
    }
}

#[test]
fn slow_readers_cost_nobody_else_anything() {
    run(async {
        let (listener, app) = bed::listen().await;
        let bed = Bed::new(app).await;
        let mut stalled = Vec::new();
        for _ in 0..30 {
            let near = bed.connect().await;
            let (far, _) = listener.accept().await.unwrap();
            fill(&near).await;
            stalled.push((near, far));
        }
        peer::echo(listener);
        let mut near = bed.connect().await;
        let start = Instant::now();
        for round in 0..200_u32 {
            let all = vec![round as u8; 20_000];
            near.write_all(&all).await.unwrap();
            let mut got = vec![0; all.len()];
            near.read_exact(&mut got).await.unwrap();
            assert!(got == all);
        }
        assert!(start.elapsed() < Duration::from_secs(10));
        assert_eq!(bed.tunnels.get(), 1, "all on one tunnel");
        // And a reader that wakes up gets all of it.
        let (near, mut far) = stalled.pop().unwrap();
        let reading = async {
            let mut got = 0;
            let mut buffer = vec![0; 65536];
            loop {
                match far.read(&mut buffer).await.unwrap() {
                    0 => return got,
                    count => got += count,
                }
            }
        };
        let task = task::spawn_local("end", async move { drop(near) });
        assert!(reading.await > 100_000);
        drop(task);
    });
}

/// Sends up to `most` bytes, until nothing moves for a second or the connection is reset; how many.
/// Who has sent all says so.
async fn stuff(near: &mut TcpStream, most: usize) -> usize {
    let chunk = vec![7; 65536];
    let mut sent = 0;
    while sent < most {
        let ready = tokio::time::timeout(Duration::from_secs(1), near.writable()).await;
        let now = &chunk[..chunk.len().min(most - sent)];
        match ready.map(|_| near.try_write(now)) {
            Ok(Ok(count)) => sent += count,
            Ok(Err(error)) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            _ => return sent,
        }
    }
    let _ = near.shutdown().await;
    sent
}

#[test]
fn what_waits_for_readers_is_bounded_and_those_who_read_lose_nothing() {
    const MOST: usize = 4 << 20;
    run(async {
        let (listener, app) = bed::listen().await;
        let small = socket2::SockRef::from(&listener).set_recv_buffer_size(4096);
        small.unwrap();
        let limits = Limits {
            waiting: Waiting::new(MOST, 1),
            ..Limits::default()
        };
        let waiting = limits.waiting.clone();
        let bed = Bed::with(app, limits).await;
        let mut pairs = Vec::new();
        for _ in 0..100 {
            pairs.push(bed.joined(&listener).await);
        }
        let (mut near, mut far) = pairs.pop().unwrap();
        // Some have said all they had to say, and some of these were answered by an end.
        for (_, far) in pairs.iter_mut().step_by(4) {
            far.shutdown().await.unwrap();
        }
        let stuffing = pairs.iter_mut().enumerate().map(|(at, (near, _))| {
            let most = if at % 2 == 0 { 200_000 } else { usize::MAX };
            stuff(near, most)
        });
        let stuffing = futures_util::future::join_all(stuffing);
        let reading = async {
            for round in 0..300_u32 {
                let all = vec![round as u8; 20_000];
                let mut got = vec![0; all.len()];
                let both = tokio::join!(near.write_all(&all), far.read_exact(&mut got));
                assert!(both.0.is_ok() && both.1.is_ok(), "{round}: {both:?}");
                assert!(got == all);
                assert!(waiting.bytes() <= MOST + MOST / 4, "{}", waiting.bytes());
                sleep(5).await;
            }
        };
        let (sent, ()) = tokio::join!(stuffing, reading);
        // Little that was all there was can be with its application by now.
        while bed.inbound.next().await.unwrap().reason() != Some("unread") {}
        let mut reset = 0;
        for ((near, far), sent) in pairs.iter_mut().zip(sent) {
            let _ = near.shutdown().await;
            let mut got = Vec::new();
            match far.read_to_end(&mut got).await {
                Ok(count) => assert_eq!(count, sent, "an end before its time"),
                Err(_) => reset += 1,
            }
        }
        assert!((1..90).contains(&reset), "{reset} of those who do not read");
        let shed = tunnel::take_shed().expect("there were too many");
        assert_eq!(shed.streams, reset);
        drop((pairs, near, far));
        until(|| waiting.bytes() == 0).await;
    });
}

/// The h2 crate's budget for small frames would kill the connection after some hundred of these.
#[test]
fn single_bytes_to_a_stalled_reader_kill_no_tunnel() {
    run(async {
        let (listener, app) = bed::listen().await;
        socket2::SockRef::from(&listener)
            .set_recv_buffer_size(4096)
            .unwrap();
        let bed = Bed::new(app).await;
        let client = bed.trust.issue("client").await;
        let mut requests = peer::connect(bed.via.get(), &client)
            .await
            .ready()
            .await
            .unwrap();
        let (response, mut stalled) = requests
            .send_request(peer::connect_request(app), false)
            .unwrap();
        let (mut far, _) = listener.accept().await.unwrap();
        let _body = response.await.unwrap();
        let count = 150_000;
        peer::send(&mut stalled, Bytes::from(vec![3; count]), 1).await;
        peer::echo(listener);
        requests = requests.ready().await.unwrap();
        let (response, mut send) = requests
            .send_request(peer::connect_request(app), false)
            .unwrap();
        let mut body = response.await.unwrap().into_body();
        send.send_data(Bytes::from_static(b"still here"), true)
            .unwrap();
        assert_eq!(peer::drain(&mut body).await.unwrap(), b"still here");
        stalled.send_data(Bytes::new(), true).unwrap();
        let mut got = Vec::new();
        far.read_to_end(&mut got).await.unwrap();
        assert_eq!(got.len(), count);
    });
}

/// Ours as the sender: no burst of tiny frames, no empty ones.
#[test]
fn single_byte_writes_arrive_through_a_peer_with_the_default_budget() {
    run(async {
        let (bed, listener, server) = Bed::before_a_peer().await;
        let mut near = bed.connect().await;
        let mut peer = peer::accept(&listener, &server).await;
        let (request, mut respond) = peer.accept().await.unwrap().unwrap();
        let mut send = respond
            .send_response(http::Response::new(()), false)
            .unwrap();
        peer::drive(peer);
        for _ in 0..20_000 {
            near.write_all(b"x").await.unwrap();
        }
        near.shutdown().await.unwrap();
        sleep(100).await;
        let got = peer::drain(&mut request.into_body()).await.unwrap();
        assert_eq!(got.len(), 20_000);
        send.send_data(Bytes::new(), true).unwrap();
        assert_eq!(bed.outbound.next().await.unwrap().reason(), None);
    });
}
