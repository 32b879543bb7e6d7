//! Two sockets joined without a tunnel, and dials.

use std::io::ErrorKind;

use adit::authorize;
use adit::deliver::{self, Meter, Side};
use adit::sys::netns::Netns;
use adit::sys::socket::{AppSocket, Lane};
use adit::task::{self, Task};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::bed::{self, Ends, flow, identity, loopback, run};
use crate::load::{Noise, read_raggedly, write_raggedly};

/// Two applications with a splice between them.
async fn joined(ends: &std::rc::Rc<Ends>) -> (TcpStream, TcpStream, Task) {
    let (near, captured) = bed::pair().await;
    let (dialled, far) = bed::pair().await;
    let [captured, dialled] = [captured, dialled].map(|tcp| AppSocket::resetting(tcp).unwrap());
    let ends = ends.clone();
    let task = task::spawn_local("splice", async move {
        let permit = authorize::outbound(flow(loopback(1), identity("web")));
        let meter = Meter::default();
        ends.add(Ok(deliver::splice(&permit, captured, dialled, &meter).await));
    });
    (near, far, task)
}

#[test]
fn every_byte_arrives_both_ways() {
    run(async {
        let ends = std::rc::Rc::default();
        let (mut near, mut far, _task) = joined(&ends).await;
        let mut noise = Noise(11);
        let (up, down) = (noise.bytes(20_000_000), noise.bytes(15_000_001));
        let (near_read, near_write) = near.split();
        let (far_read, far_write) = far.split();
        tokio::join!(
            write_raggedly(near_write, &up, 2),
            read_raggedly(far_read, &up, 3),
            write_raggedly(far_write, &down, 4),
            read_raggedly(near_read, &down, 5),
        );
        let end = ends.next().await.unwrap();
        assert_eq!(
            (end.sent, end.received, end.reason()),
            (20_000_000, 15_000_001, None)
        );
    });
}

#[test]
fn each_direction_ends_on_its_own() {
    run(async {
        let ends = std::rc::Rc::default();
        let (mut near, mut far, _task) = joined(&ends).await;
        far.shutdown().await.unwrap();
        assert_eq!(near.read(&mut [0]).await.unwrap(), 0);
        near.write_all(b"still").await.unwrap();
        drop(near);
        let mut got = String::new();
        far.read_to_string(&mut got).await.unwrap();
        assert_eq!(got, "still");
        let end = ends.next().await.unwrap();
        assert_eq!((end.by, end.reason()), (Side::Far, None));
    });
}

#[test]
fn resets_pass_both_ways_while_idle() {
    run(async {
        let ends = std::rc::Rc::default();
        let (near, mut far, _task) = joined(&ends).await;
        near.set_zero_linger().unwrap();
        drop(near);
        assert_eq!(
            far.read_u8().await.unwrap_err().kind(),
            ErrorKind::ConnectionReset
        );
        let end = ends.next().await.unwrap();
        assert_eq!((end.by, end.reason()), (Side::Near, Some("reset")));

        let (mut near, far, _task) = joined(&ends).await;
        far.set_zero_linger().unwrap();
        drop(far);
        assert_eq!(
            near.read_u8().await.unwrap_err().kind(),
            ErrorKind::ConnectionReset
        );
        assert_eq!(ends.next().await.unwrap().by, Side::Far);
    });
}

#[test]
fn a_full_pipe_hides_no_reset() {
    run(async {
        let ends = std::rc::Rc::default();
        let (near, far, _task) = joined(&ends).await;
        let chunk = vec![7; 65536];
        let full = async {
            loop {
                near.writable().await.unwrap();
                let _ = near.try_write(&chunk);
            }
        };
        let _ = tokio::time::timeout(std::time::Duration::from_millis(400), full).await;
        near.set_zero_linger().unwrap();
        drop(near);
        assert_eq!(ends.next().await.unwrap().reason(), Some("reset"));
        drop(far);
    });
}

#[test]
fn a_dropped_splice_resets_both_sides() {
    run(async {
        let ends = std::rc::Rc::default();
        let (mut near, mut far, task) = joined(&ends).await;
        near.write_all(b"x").await.unwrap();
        far.read_u8().await.unwrap();
        drop(task);
        assert_eq!(
            near.read_u8().await.unwrap_err().kind(),
            ErrorKind::ConnectionReset
        );
        assert_eq!(
            far.read_u8().await.unwrap_err().kind(),
            ErrorKind::ConnectionReset
        );
    });
}

#[test]
fn both_families_keep_the_address_they_are_dialled_from() {
    run(async {
        let netns = Netns::current().unwrap();
        for ip in ["127.0.0.1", "::1"] {
            let ip: std::net::IpAddr = ip.parse().unwrap();
            let listener = tokio::net::TcpListener::bind((ip, 0)).await.unwrap();
            let to = listener.local_addr().unwrap();
            let permit = authorize::outbound(flow(to, identity("web")));
            let dialled = deliver::dial(&permit, &netns, Some(ip)).await.unwrap();
            assert_eq!(dialled.tcp().local_addr().unwrap().ip(), ip);
        }
    });
}

#[test]
fn a_dial_says_what_is_wrong() {
    run(async {
        let netns = Netns::current().unwrap();
        let (listener, addr) = bed::listen().await;
        let permit = authorize::outbound(flow(addr, identity("web")));
        let dialled = deliver::dial(&permit, &netns, Some(loopback(0).ip()))
            .await
            .unwrap();
        assert_eq!(dialled.tcp().local_addr().unwrap().ip(), loopback(0).ip());
        let from = loopback(0).ip();
        let announced = deliver::dial_announced(&permit, &netns, from, addr, Lane::ALONE, Some);
        let (dialled, local) = announced.await.unwrap();
        assert_eq!(dialled.tcp().local_addr().unwrap(), local);
        drop(listener);
        let error = deliver::dial(&permit, &netns, None).await.unwrap_err();
        assert_eq!(error.reason(), "refused");
    });
}
