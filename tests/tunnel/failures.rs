//! What cannot be opened, and what dies.

use std::future::Future as _;
use std::io::ErrorKind;
use std::time::{Duration, Instant};

use adit::tunnel::{Limits, Status};
use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::bed::{self, Bed, run, sleep};
use crate::peer::{self, Wire};

fn quick() -> Limits {
    Limits {
        handshake: Duration::from_millis(400),
        quiet: Duration::from_millis(200),
        dead: Duration::from_millis(400),
        ..Limits::default()
    }
}

/// A connection attempt ends with a reset, and with this reason.
async fn check_reset(bed: &std::rc::Rc<Bed>, expect: &str) {
    let mut near = bed.connect().await;
    let _ = near.write_all(b"question").await;
    let error = near.read_u8().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    let end = bed.outbound.next().await;
    match end {
        Ok(end) => {
            assert_eq!(end.reason(), Some(expect));
            assert_eq!(end.sent, 0, "bytes that nobody took do not count");
        }
        Err(reason) => assert_eq!(reason, expect),
    }
}

#[test]
fn every_refusal_resets_the_application() {
    run(async {
        let (_listener, app) = bed::listen().await;
        let bed = Bed::new(app).await;
        for (status, reason) in [
            (Status::Denied, "denied"),
            (Status::DialFailed, "dial_failed"),
            (Status::BadRequest, "bad_request"),
        ] {
            bed.refuse.set(Some(status));
            check_reset(&bed, reason).await;
        }
    });
}

#[test]
fn an_application_that_is_not_there_is_a_failed_dial() {
    run(async {
        let (listener, app) = bed::listen().await;
        drop(listener);
        let bed = Bed::new(app).await;
        check_reset(&bed, "dial_failed").await;
        assert_eq!(bed.inbound.next().await.unwrap_err(), "refused");
    });
}

#[test]
fn any_other_status_is_a_refusal() {
    run(async {
        let (bed, listener, server) = Bed::before_a_peer().await;
        let mut near = bed.connect().await;
        let mut peer = peer::accept(&listener, &server).await;
        let (_request, mut respond) = peer.accept().await.unwrap().unwrap();
        let mut response = http::Response::new(());
        *response.status_mut() = http::StatusCode::CREATED;
        let _send = respond.send_response(response, false).unwrap();
        peer::drive(peer);
        assert_eq!(
            near.read_u8().await.unwrap_err().kind(),
            ErrorKind::ConnectionReset
        );
        assert_eq!(bed.outbound.next().await.unwrap().reason(), Some("refused"));
    });
}

#[test]
fn a_server_that_is_somebody_else_is_not_spoken_to() {
    run(async {
        let (_listener, app) = bed::listen().await;
        let bed = Bed::new(app).await;
        bed.expected.replace(bed::identity("database"));
        check_reset(&bed, "tls_failed").await;
    });
}

#[test]
fn a_client_that_the_server_does_not_trust_is_told_so() {
    run(async {
        let (_listener, app) = bed::listen().await;
        let bed = Bed::new(app).await;
        // Trusts the server's authority, but shows a certificate of another one.
        let certificate = bed::stranger(&bed.origin.borrow().certificate);
        bed.origin.borrow_mut().certificate = std::sync::Arc::new(certificate);
        check_reset(&bed, "tls_failed").await;
    });
}

#[test]
fn a_closed_tunnel_port_is_told_to_all_who_wait() {
    run(async {
        let (_listener, app) = bed::listen().await;
        let bed = Bed::new(app).await;
        let (closed, via) = bed::listen().await;
        drop(closed);
        bed.via.set(via);
        let opens = (0..32).map(|_| bed.open());
        for opened in futures_util::future::join_all(opens).await {
            assert_eq!(opened.err().unwrap().reason(), "connect_failed");
        }
        assert_eq!(bed.pool.load(), (0, 0));
    });
}

#[test]
fn a_silent_server_fails_all_who_wait_at_once_and_blocks_nobody_else() {
    run(async {
        let (listener, app) = bed::listen().await;
        peer::echo(listener);
        let bed = Bed::with(app, quick()).await;
        let good = bed.via.get();
        let (silent, via) = bed::listen().await;
        bed.via.set(via);
        let start = Instant::now();
        let opens = futures_util::future::join_all((0..32).map(|_| bed.open()));
        let other = async {
            sleep(20).await;
            bed.via.set(good);
            let mut near = bed.connect().await;
            near.write_all(b"x").await.unwrap();
            near.read_exact(&mut [0]).await.unwrap();
            start.elapsed()
        };
        let (opens, other) = tokio::join!(opens, other);
        for opened in opens {
            assert_eq!(opened.err().unwrap().reason(), "timeout");
        }
        assert!(
            start.elapsed() < Duration::from_millis(700),
            "one deadline for all"
        );
        assert!(
            other < Duration::from_millis(350),
            "another destination waited {other:?}"
        );
        let (_one, _) = silent.accept().await.unwrap();
        let more = tokio::time::timeout(Duration::from_millis(50), silent.accept()).await;
        assert!(more.is_err(), "there was one handshake for all");
    });
}

#[test]
fn a_silent_client_is_dropped_at_the_deadline() {
    run(async {
        let (_listener, app) = bed::listen().await;
        let bed = Bed::with(app, quick()).await;
        let mut client = tokio::net::TcpStream::connect(bed.via.get()).await.unwrap();
        let start = Instant::now();
        assert!(matches!(client.read(&mut [0; 64]).await, Ok(0) | Err(_)));
        assert!(start.elapsed() > Duration::from_millis(300));
        assert!(start.elapsed() < Duration::from_millis(900));
    });
}

#[test]
fn the_death_of_a_tunnel_resets_both_applications() {
    run(async {
        let (listener, app) = bed::listen().await;
        let bed = Bed::new(app).await;
        let wire = Wire::of(&bed).await;
        let (mut near, mut far) = bed.joined(&listener).await;
        wire.cut();
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
            Some("tunnel_lost")
        );
        // The next connection gets a tunnel of its own.
        let _near = bed.connect().await;
        listener.accept().await.unwrap();
        assert_eq!(wire.connections.get(), 2);
    });
}

/// No FIN that is not the peer's own may pass for the end of a stream.
#[test]
fn a_fin_below_tls_is_no_end_of_a_stream() {
    run(async {
        let (listener, app) = bed::listen().await;
        let bed = Bed::new(app).await;
        let wire = Wire::of(&bed).await;
        let (mut near, mut far) = bed.joined(&listener).await;
        far.write_all(b"y").await.unwrap();
        near.read_exact(&mut [0]).await.unwrap();
        sleep(50).await;
        wire.end();
        for app in [&mut near, &mut far] {
            let error = app.read_u8().await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        }
        let end = bed.outbound.next().await.unwrap();
        assert_eq!(end.reason(), Some("tunnel_lost"));
    });
}

/// Nor may the orderly end of a tunnel, close_notify and all.
#[test]
fn the_end_of_a_tunnel_is_no_end_of_a_stream() {
    run(async {
        let (bed, listener, server) = Bed::before_a_peer().await;
        let mut near = bed.connect().await;
        let mut peer = peer::accept(&listener, &server).await;
        let (request, mut respond) = peer.accept().await.unwrap().unwrap();
        let response = http::Response::new(());
        let mut send = respond.send_response(response, false).unwrap();
        send.send_data(Bytes::from_static(b"half"), false).unwrap();
        let closing = async {
            let soon = sleep(50);
            let mut soon = std::pin::pin!(soon);
            let mut told = false;
            std::future::poll_fn(|cx| {
                if !told && soon.as_mut().poll(cx).is_ready() {
                    told = true;
                    peer.abrupt_shutdown(h2::Reason::NO_ERROR);
                }
                peer.poll_closed(cx)
            })
            .await
        };
        let reading = async {
            near.read_exact(&mut [0; 4]).await.unwrap();
            near.read_u8().await.unwrap_err().kind()
        };
        let (_, kind) = tokio::join!(closing, reading);
        assert_eq!(kind, ErrorKind::ConnectionReset);
        drop((request, send));
    });
}

#[test]
fn a_peer_that_gives_no_sign_of_life_is_given_up() {
    run(async {
        let (listener, app) = bed::listen().await;
        let bed = Bed::with(app, quick()).await;
        let wire = Wire::of(&bed).await;
        let (mut near, mut far) = bed.joined(&listener).await;
        // Silent for longer than the patience, but alive: PINGs keep it.
        sleep(1200).await;
        near.write_all(b"y").await.unwrap();
        far.read_exact(&mut [0]).await.unwrap();
        wire.swallow();
        let start = Instant::now();
        assert_eq!(
            near.read_u8().await.unwrap_err().kind(),
            ErrorKind::ConnectionReset
        );
        assert_eq!(
            far.read_u8().await.unwrap_err().kind(),
            ErrorKind::ConnectionReset
        );
        assert!(
            start.elapsed() > Duration::from_millis(300),
            "{:?}",
            start.elapsed()
        );
        assert!(
            start.elapsed() < Duration::from_millis(1000),
            "{:?}",
            start.elapsed()
        );
        assert_eq!(
            bed.outbound.next().await.unwrap().reason(),
            Some("tunnel_silent")
        );
    });
}

#[test]
fn a_request_that_is_never_answered_ends_at_its_deadline() {
    run(async {
        let (_listener, app) = bed::listen().await;
        let limits = Limits {
            answer: Duration::from_millis(200),
            ..Limits::default()
        };
        let bed = Bed::with(app, limits).await;
        let (listener, via) = bed::listen().await;
        bed.via.set(via);
        let server = bed.trust.issue("web").await;
        let mut near = bed.connect().await;
        let mut peer = peer::accept(&listener, &server).await;
        let held = peer.accept().await.unwrap().unwrap();
        peer::drive(peer);
        assert_eq!(
            near.read_u8().await.unwrap_err().kind(),
            ErrorKind::ConnectionReset
        );
        assert_eq!(bed.outbound.next().await.unwrap().reason(), Some("timeout"));
        drop(held);
    });
}

#[test]
fn bytes_travel_before_the_answer() {
    run(async {
        let (bed, listener, server) = Bed::before_a_peer().await;
        let mut near = bed.connect().await;
        let much = vec![9; 1 << 20];
        let writing = near.write_all(&much);
        let serving = async {
            let mut peer = peer::accept(&listener, &server).await;
            let (request, mut respond) = peer.accept().await.unwrap().unwrap();
            let mut body = request.into_body();
            peer::drive(peer);
            let mut early = 0;
            while let Ok(Some(bytes)) =
                tokio::time::timeout(Duration::from_millis(300), body.data()).await
            {
                let bytes = bytes.unwrap();
                early += bytes.len();
                body.flow_control().release_capacity(bytes.len()).unwrap();
            }
            assert_eq!(early, 65_527, "bounded before the answer");
            let mut send = respond
                .send_response(http::Response::new(()), false)
                .unwrap();
            let mut got = early;
            while got < 1 << 20 {
                let bytes = body.data().await.unwrap().unwrap();
                got += bytes.len();
                body.flow_control().release_capacity(bytes.len()).unwrap();
            }
            send.send_data(Bytes::new(), true).unwrap();
        };
        tokio::join!(async { writing.await.unwrap() }, serving);
        drop(near);
        let end = bed.outbound.next().await.unwrap();
        assert_eq!((end.sent, end.reason()), (1 << 20, None));
    });
}

#[test]
fn what_is_no_address_is_a_bad_request() {
    run(async {
        let (_listener, app) = bed::listen().await;
        let bed = Bed::new(app).await;
        let client = bed.trust.issue("client").await;
        let mut requests = peer::connect(bed.via.get(), &client).await;
        let get = http::Request::get("https://web/").body(()).unwrap();
        let mut name = peer::connect_request(app);
        *name.uri_mut() = "web.test.svc.cluster.local:80".parse().unwrap();
        for request in [get, name] {
            requests = requests.ready().await.unwrap();
            let (response, _send) = requests.send_request(request, false).unwrap();
            assert_eq!(
                response.await.unwrap().status(),
                http::StatusCode::BAD_REQUEST
            );
        }
    });
}

#[test]
fn a_request_that_is_dropped_is_reset() {
    run(async {
        let (_listener, app) = bed::listen().await;
        let bed = Bed::new(app).await;
        bed.forget.set(true);
        check_reset(&bed, "reset").await;
        bed.forget.set(false);
        let (_near, ()) = (bed.connect().await, ());
        assert_eq!(bed.tunnels.get(), 1, "the tunnel lives on");
    });
}

#[test]
fn a_flood_of_resets_ends_that_tunnel_alone() {
    run(async {
        let (listener, app) = bed::listen().await;
        peer::echo(listener);
        let bed = Bed::new(app).await;
        let client = bed.trust.issue("client").await;
        let mut requests = peer::connect(bed.via.get(), &client).await;
        for _ in 0..5000 {
            let Ok(ready) = requests.clone().ready().await else {
                break;
            };
            requests = ready;
            let Ok((_response, mut send)) =
                requests.send_request(peer::connect_request(app), false)
            else {
                break;
            };
            send.send_reset(h2::Reason::CANCEL);
        }
        drop(requests);
        let mut near = bed.connect().await;
        near.write_all(b"x").await.unwrap();
        near.read_exact(&mut [0]).await.unwrap();
    });
}
