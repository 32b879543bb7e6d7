//! Which tunnel carries which stream, and when tunnels go.

use std::io::ErrorKind;
use std::time::Duration;

use adit::tunnel::Limits;
use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::bed::{self, Bed, run, sleep, until};
use crate::peer;

#[test]
fn connections_share_a_tunnel_up_to_its_limit() {
    run(async {
        let (listener, app) = bed::listen().await;
        peer::echo(listener);
        let limits = Limits {
            incoming_streams: 100,
            ..Limits::default()
        };
        let bed = Bed::with(app, limits).await;
        let mut nears = Vec::new();
        for _ in 0..250 {
            nears.push(bed.connect().await);
        }
        for near in &mut nears {
            near.write_all(b"x").await.unwrap();
            near.read_exact(&mut [0]).await.unwrap();
        }
        assert_eq!(bed.pool.load(), (3, 250));
        assert_eq!(bed.tunnels.get(), 3);
        drop(nears);
        until(|| bed.pool.load().1 == 0).await;
        let mut near = bed.connect().await;
        near.write_all(b"x").await.unwrap();
        near.read_exact(&mut [0]).await.unwrap();
        assert_eq!(bed.tunnels.get(), 3, "ended streams make room");
    });
}

#[test]
fn a_tunnel_without_streams_closes_after_a_while() {
    run(async {
        let (listener, app) = bed::listen().await;
        peer::echo(listener);
        let limits = Limits {
            idle: Duration::from_millis(300),
            quiet: Duration::from_millis(100),
            ..Limits::default()
        };
        let bed = Bed::with(app, limits).await;
        let mut near = bed.connect().await;
        near.write_all(b"x").await.unwrap();
        near.read_exact(&mut [0]).await.unwrap();
        sleep(600).await;
        assert_eq!(bed.pool.load(), (1, 1), "one with a stream stays");
        drop(near);
        sleep(150).await;
        assert_eq!(bed.pool.load(), (1, 0), "kept for the next one");
        until(|| bed.pool.load() == (0, 0)).await;
    });
}

#[test]
fn a_tunnel_whose_destination_is_gone_is_cut() {
    run(async {
        let (listener, app) = bed::listen().await;
        let bed = Bed::new(app).await;
        let mut near = bed.connect().await;
        let (mut far, _) = listener.accept().await.unwrap();
        bed.pool.retain(|_| true);
        near.write_all(b"x").await.unwrap();
        far.read_exact(&mut [0]).await.unwrap();
        let via = bed.via.get();
        bed.pool.retain(|key| key.via.get() != via);
        assert_eq!(
            near.read_u8().await.unwrap_err().kind(),
            ErrorKind::ConnectionReset
        );
        assert_eq!(
            far.read_u8().await.unwrap_err().kind(),
            ErrorKind::ConnectionReset
        );
        assert_eq!(
            bed.outbound.next().await.unwrap().reason(),
            Some("tunnel_closed")
        );
        assert_eq!(bed.pool.load(), (0, 0));
    });
}

#[test]
fn a_new_certificate_makes_new_tunnels_and_ends_no_stream() {
    run(async {
        let (listener, app) = bed::listen().await;
        peer::echo(listener);
        let bed = Bed::new(app).await;
        let mut before = bed.connect().await;
        before.write_all(b"x").await.unwrap();
        before.read_exact(&mut [0]).await.unwrap();
        let renewed = bed.trust.issue("client").await;
        bed.origin.borrow_mut().certificate = renewed;
        let mut after = bed.connect().await;
        for near in [&mut after, &mut before] {
            near.write_all(b"x").await.unwrap();
            near.read_exact(&mut [0]).await.unwrap();
        }
        assert_eq!(bed.pool.load(), (2, 2));
    });
}

#[test]
fn a_draining_peer_finishes_what_it_has_and_gets_nothing_new() {
    run(async {
        let (listener, app) = bed::listen().await;
        peer::echo(listener);
        let bed = Bed::new(app).await;
        let mut before = bed.connect().await;
        before.write_all(b"x").await.unwrap();
        before.read_exact(&mut [0]).await.unwrap();
        bed.drain.notify_waiters();
        sleep(100).await;
        let mut after = bed.connect().await;
        for near in [&mut after, &mut before] {
            near.write_all(b"x").await.unwrap();
            near.read_exact(&mut [0]).await.unwrap();
        }
        assert_eq!(bed.tunnels.get(), 2);
        let much = vec![5; 3_000_000];
        let (mut read, mut write) = before.split();
        let mut got = vec![0; much.len()];
        let (wrote, read) = tokio::join!(write.write_all(&much), read.read_exact(&mut got));
        wrote.unwrap();
        read.unwrap();
        assert!(got == much);
        drop(before);
        assert_eq!(bed.outbound.next().await.unwrap().reason(), None);
        until(|| bed.pool.load() == (1, 1)).await;
    });
}

/// `refuse` turns the first stream away; what was sent on it must arrive on the second.
async fn check_retry(refuse: impl AsyncFn(peer::Server)) {
    let (_listener, app) = bed::listen().await;
    let bed = Bed::new(app).await;
    let (listener, via) = bed::listen().await;
    bed.via.set(via);
    let server = bed.trust.issue("web").await;
    let mut near = bed.connect().await;
    near.write_all(b"sent early").await.unwrap();
    near.shutdown().await.unwrap();
    let first = peer::accept(&listener, &server).await;
    let serve = async {
        let mut peer = peer::accept(&listener, &server).await;
        let (request, mut respond) = peer.accept().await.unwrap().unwrap();
        let mut send = respond
            .send_response(http::Response::new(()), false)
            .unwrap();
        peer::drive(peer);
        assert_eq!(
            peer::drain(&mut request.into_body()).await.unwrap(),
            b"sent early"
        );
        send.send_data(Bytes::from_static(b"heard"), true).unwrap();
    };
    tokio::select! {
        () = serve => {}
        () = async { refuse(first).await; std::future::pending().await } => {}
    }
    let mut heard = String::new();
    near.read_to_string(&mut heard).await.unwrap();
    assert_eq!(heard, "heard");
    let end = bed.outbound.next().await.unwrap();
    assert_eq!((end.sent, end.received, end.reason()), (10, 5, None));
}

#[test]
fn a_refused_stream_is_opened_once_more_elsewhere() {
    run(check_retry(async |mut peer: peer::Server| {
        let (request, mut respond) = peer.accept().await.unwrap().unwrap();
        let mut body = request.into_body();
        tokio::select! {
            _ = peer.accept() => {}
            _ = body.data() => {}
        }
        respond.send_reset(h2::Reason::REFUSED_STREAM);
        let _ = peer.accept().await;
    }));
}

#[test]
fn a_stream_behind_a_goaway_is_opened_once_more_elsewhere() {
    run(check_retry(async |mut peer: peer::Server| {
        // GOAWAY with last id 0: no stream was looked at.
        peer.abrupt_shutdown(h2::Reason::NO_ERROR);
        let _ = std::future::poll_fn(|cx| peer.poll_closed(cx)).await;
    }));
}

#[test]
fn a_stream_that_is_refused_twice_fails() {
    run(async {
        let (bed, listener, server) = Bed::before_a_peer().await;
        let mut near = bed.connect().await;
        for _ in 0..2 {
            let mut peer = peer::accept(&listener, &server).await;
            let (_request, mut respond) = peer.accept().await.unwrap().unwrap();
            respond.send_reset(h2::Reason::REFUSED_STREAM);
            peer::drive(peer);
        }
        assert_eq!(
            near.read_u8().await.unwrap_err().kind(),
            ErrorKind::ConnectionReset
        );
        assert_eq!(bed.outbound.next().await.unwrap().reason(), Some("reset"));
    });
}

#[test]
fn what_is_sent_again_waits_for_room_also_behind_the_answer() {
    run(async {
        let (_listener, app) = bed::listen().await;
        let bed = Bed::with(
            app,
            Limits {
                streams: 1,
                ..Limits::default()
            },
        )
        .await;
        let (listener, via) = bed::listen().await;
        bed.via.set(via);
        let server = bed.trust.issue("web").await;
        // Two tunnels, each with a stream; the second is known to have small windows.
        let mut tunnels = Vec::new();
        for window in [65_535, 4] {
            let near = bed.connect().await;
            let mut peer = peer::accept_narrow(&listener, &server, window).await;
            let (request, mut respond) = peer.accept().await.unwrap().unwrap();
            let send = respond.send_response(http::Response::new(()), true);
            tunnels.push((near, peer, request, send));
        }
        let (_, second, ..) = &mut tunnels[1];
        let idle = std::future::poll_fn(|cx| second.poll_closed(cx));
        let _ = tokio::time::timeout(Duration::from_millis(100), idle).await;
        for (near, peer, request, _) in &mut tunnels {
            near.shutdown().await.unwrap();
            let body = request.body_mut();
            tokio::select! {
                _ = peer.accept() => panic!("nothing more was asked for"),
                done = peer::drain(body) => assert_eq!(done.unwrap(), b""),
            }
            bed.outbound.next().await.unwrap();
        }
        let (_, mut second, ..) = tunnels.pop().unwrap();
        let (_, mut first, ..) = tunnels.pop().unwrap();
        let mut near = bed.connect().await;
        near.write_all(b"sent early").await.unwrap();
        let (_request, mut respond) = first.accept().await.unwrap().unwrap();
        respond.send_reset(h2::Reason::REFUSED_STREAM);
        peer::drive(first);
        let (request, mut respond) = second.accept().await.unwrap().unwrap();
        let mut send = respond
            .send_response(http::Response::new(()), false)
            .unwrap();
        peer::drive(second);
        send.send_data(Bytes::from_static(b"hi"), false).unwrap();
        let mut hi = [0; 2];
        near.read_exact(&mut hi).await.unwrap();
        near.write_all(b", and late").await.unwrap();
        near.shutdown().await.unwrap();
        let got = peer::drain(&mut request.into_body()).await.unwrap();
        assert_eq!(String::from_utf8(got).unwrap(), "sent early, and late");
        send.send_data(Bytes::new(), true).unwrap();
        let end = bed.outbound.next().await.unwrap();
        assert_eq!((end.sent, end.received, end.reason()), (20, 2, None));
    });
}
