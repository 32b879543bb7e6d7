//! How connections end, both ways and in every order.

use std::io::ErrorKind;
use std::rc::Rc;
use std::task::Poll;

use adit::deliver::Side;
use adit::sys::socket::AppSocket;
use adit::task;
use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::bed::{self, Bed, run, sleep};
use crate::peer;

#[test]
fn a_client_that_ends_first_still_gets_its_answer() {
    run(async {
        let (listener, app) = bed::listen().await;
        let bed = Bed::new(app).await;
        let mut near = bed.connect().await;
        near.write_all(b"question").await.unwrap();
        near.shutdown().await.unwrap();
        let (mut far, _) = listener.accept().await.unwrap();
        let mut asked = String::new();
        far.read_to_string(&mut asked).await.unwrap();
        assert_eq!(asked, "question");
        sleep(50).await;
        far.write_all(b"answer").await.unwrap();
        drop(far);
        let mut answered = String::new();
        near.read_to_string(&mut answered).await.unwrap();
        assert_eq!(answered, "answer");
        let end = bed.outbound.next().await.unwrap();
        assert_eq!((end.sent, end.received, end.by), (8, 6, Side::Near));
        assert_eq!(end.reason(), None);
        assert_eq!(bed.inbound.next().await.unwrap().reason(), None);
    });
}

#[test]
fn a_server_may_speak_and_end_first() {
    run(async {
        let (listener, app) = bed::listen().await;
        let bed = Bed::new(app).await;
        let mut near = bed.connect().await;
        let (mut far, _) = listener.accept().await.unwrap();
        far.write_all(b"220 ready").await.unwrap();
        far.shutdown().await.unwrap();
        let mut banner = String::new();
        near.read_to_string(&mut banner).await.unwrap();
        assert_eq!(banner, "220 ready");
        near.write_all(b"late but heard").await.unwrap();
        drop(near);
        let mut heard = String::new();
        far.read_to_string(&mut heard).await.unwrap();
        assert_eq!(heard, "late but heard");
        let end = bed.outbound.next().await.unwrap();
        assert_eq!((end.by, end.reason()), (Side::Far, None));
    });
}

#[test]
fn an_idle_reset_of_the_client_resets_the_server() {
    run(async {
        let (listener, app) = bed::listen().await;
        let bed = Bed::new(app).await;
        let near = bed.connect().await;
        let (mut far, _) = listener.accept().await.unwrap();
        near.set_zero_linger().unwrap();
        drop(near);
        let error = far.read(&mut [0; 8]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        let end = bed.outbound.next().await.unwrap();
        assert_eq!((end.by, end.reason()), (Side::Near, Some("reset")));
        let end = bed.inbound.next().await.unwrap();
        assert_eq!((end.by, end.reason()), (Side::Far, Some("reset")));
    });
}

#[test]
fn an_idle_reset_of_the_server_resets_the_client() {
    run(async {
        let (listener, app) = bed::listen().await;
        let bed = Bed::new(app).await;
        let mut near = bed.connect().await;
        let (mut far, _) = listener.accept().await.unwrap();
        far.write_all(b"x").await.unwrap();
        near.read_u8().await.unwrap();
        far.set_zero_linger().unwrap();
        drop(far);
        let error = near.read(&mut [0; 8]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        assert_eq!(bed.outbound.next().await.unwrap().reason(), Some("reset"));
    });
}

#[test]
fn a_reset_after_the_fin_is_still_a_reset() {
    run(async {
        let (listener, app) = bed::listen().await;
        let bed = Bed::new(app).await;
        let mut near = bed.connect().await;
        near.shutdown().await.unwrap();
        let (mut far, _) = listener.accept().await.unwrap();
        assert_eq!(far.read(&mut [0; 8]).await.unwrap(), 0);
        near.set_zero_linger().unwrap();
        drop(near);
        let end = bed.outbound.next().await.unwrap();
        assert_eq!(end.reason(), Some("reset"));
        // Only a write can tell the application, whose peer had closed before.
        bed.inbound.next().await.unwrap();
        let failed = async {
            while far.write_all(b"x").await.is_ok() {
                sleep(5).await
            }
        };
        failed.await;
    });
}

#[test]
fn a_reset_is_noticed_while_nothing_can_be_moved() {
    run(async {
        let (listener, app) = bed::listen().await;
        let bed = Bed::new(app).await;
        let near = bed.connect().await;
        let (far, _) = listener.accept().await.unwrap();
        // Fill everything between the two, then let the writer die.
        let chunk = vec![7; 65536];
        let full = async {
            loop {
                near.writable().await.unwrap();
                let _ = near.try_write(&chunk);
            }
        };
        let _ = tokio::time::timeout(std::time::Duration::from_millis(500), full).await;
        near.set_zero_linger().unwrap();
        drop(near);
        assert_eq!(bed.outbound.next().await.unwrap().reason(), Some("reset"));
        assert_eq!(bed.inbound.next().await.unwrap().reason(), Some("reset"));
        drop(far);
    });
}

#[test]
fn a_dropped_relay_resets_both_sides() {
    run(async {
        let (listener, app) = bed::listen().await;
        let bed = Bed::new(app).await;
        let (mut near, captured) = bed::pair().await;
        let captured = AppSocket::resetting(captured).unwrap();
        let stream = bed.open().await.unwrap();
        let permit = bed.permit();
        let relay = task::spawn_local("relay", async move {
            let meter = adit::deliver::Meter::default();
            adit::deliver::relay(&permit, captured, stream, &meter).await;
        });
        let (mut far, _) = listener.accept().await.unwrap();
        near.write_all(b"x").await.unwrap();
        far.read_exact(&mut [0]).await.unwrap();
        drop(relay);
        let (near, far) = tokio::join!(near.read_u8(), far.read_u8());
        assert_eq!(near.unwrap_err().kind(), ErrorKind::ConnectionReset);
        assert_eq!(far.unwrap_err().kind(), ErrorKind::ConnectionReset);
    });
}

/// A client whose peer has answered, ended the stream, and lost interest in what it says.
async fn answered_and_left() -> (Rc<Bed>, TcpStream, Bytes) {
    let (bed, listener, server) = Bed::before_a_peer().await;
    let mut near = bed.connect().await;
    near.write_all(b"before").await.unwrap();
    let mut peer = peer::accept(&listener, &server).await;
    let (request, mut respond) = peer.accept().await.unwrap().unwrap();
    let body = request.into_body();
    let mut send = respond
        .send_response(http::Response::new(()), false)
        .unwrap();
    peer::drive(peer);
    let answer = Bytes::from(vec![42; 50_000]);
    peer::send(&mut send, answer.clone(), 16384).await;
    send.send_data(Bytes::new(), true).unwrap();
    // Without its handles, h2 does as Envoy does: all data, then RST_STREAM(NO_ERROR).
    drop((send, body, respond));
    (bed, near, answer)
}

/// Envoy ends a response with END_STREAM and then resets the request with NO_ERROR.
#[test]
fn no_error_after_the_end_loses_nothing() {
    run(async {
        let (bed, mut near, answer) = answered_and_left().await;
        let mut got = Vec::new();
        near.read_to_end(&mut got).await.unwrap();
        assert_eq!(got, answer);
        // Its own end is an end in order.
        drop(near);
        let end = bed.outbound.next().await.unwrap();
        assert_eq!((end.by, end.reason()), (Side::Far, None));
    });
}

/// ztunnel does so when its application has closed: END_STREAM, and RST_STREAM(NO_ERROR) at the next
/// byte. Who then speaks to nobody learns it, as from the kernel of a server that has closed.
#[test]
fn who_speaks_after_no_error_is_reset_and_has_read_all() {
    run(async {
        let (bed, mut near, answer) = answered_and_left().await;
        // The answer and the end have come, and are unread.
        sleep(100).await;
        near.write_all(b"nobody listens").await.unwrap();
        let end = bed.outbound.next().await.unwrap();
        assert_eq!((end.by, end.reason()), (Side::Far, Some("reset")));
        assert!(near.write_all(b"nor now").await.is_err());
        let mut got = Vec::new();
        near.read_to_end(&mut got).await.unwrap();
        assert_eq!(got, answer);
    });
}

#[test]
fn a_cancelled_stream_is_a_reset() {
    run(async {
        let (bed, listener, server) = Bed::before_a_peer().await;
        let mut near = bed.connect().await;
        let mut peer = peer::accept(&listener, &server).await;
        let (_request, mut respond) = peer.accept().await.unwrap().unwrap();
        let mut send = respond
            .send_response(http::Response::new(()), false)
            .unwrap();
        peer::drive(peer);
        send.send_data(Bytes::from_static(b"x"), false).unwrap();
        assert_eq!(near.read_u8().await.unwrap(), b'x');
        send.send_reset(h2::Reason::CANCEL);
        let error = near.read_u8().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        assert_eq!(bed.outbound.next().await.unwrap().reason(), Some("reset"));
    });
}

#[test]
fn our_resets_and_ends_are_seen_as_such_by_others() {
    run(async {
        let (listener, app) = bed::listen().await;
        let bed = Bed::new(app).await;
        let client = bed.trust.issue("client").await;
        let mut requests = peer::connect(bed.via.get(), &client).await;
        let mut open = async || {
            let request = peer::connect_request(app);
            requests = requests.clone().ready().await.unwrap();
            let (response, send) = requests.send_request(request, false).unwrap();
            let (far, _) = listener.accept().await.unwrap();
            (response.await.unwrap().into_body(), send, far)
        };
        let (mut body, _send, far) = open().await;
        far.set_zero_linger().unwrap();
        drop(far);
        let error = peer::drain(&mut body).await.unwrap_err();
        assert_eq!(error.reason(), Some(h2::Reason::CONNECT_ERROR));

        let (mut body, mut send, mut far) = open().await;
        far.write_all(b"all").await.unwrap();
        far.shutdown().await.unwrap();
        assert_eq!(peer::drain(&mut body).await.unwrap(), b"all");
        send.send_data(Bytes::from_static(b"rest"), true).unwrap();
        let mut rest = String::new();
        far.read_to_string(&mut rest).await.unwrap();
        assert_eq!(rest, "rest");
    });
}

/// A scan of ports: connections that are made and reset in a moment. h2, and so ztunnel, takes more
/// than 20 requests that are reset before it has looked at them for an attack on all it has.
#[test]
fn a_burst_of_resets_costs_no_other_stream_its_tunnel() {
    run(async {
        let (bed, listener, server) = Bed::before_a_peer().await;
        let mut near = bed.connect().await;
        let mut peer = peer::accept(&listener, &server).await;
        let (request, mut respond) = peer.accept().await.unwrap().unwrap();
        let response = http::Response::new(());
        let mut send = respond.send_response(response, false).unwrap();
        // The connection is driven, and the requests wait until somebody looks.
        for _ in 0..50 {
            let scan = bed.connect().await;
            scan.set_zero_linger().unwrap();
        }
        for _ in 0..50 {
            assert_eq!(bed.outbound.next().await.unwrap().reason(), Some("reset"));
        }
        send.send_data(Bytes::from_static(b"alive"), false).unwrap();
        let looking = async {
            let (mut codes, mut bodies) = (Vec::new(), Vec::new());
            while codes.len() < 50 {
                tokio::select! {
                    next = peer.accept() => {
                        let (_request, mut respond) = next.unwrap().unwrap();
                        let response = http::Response::new(());
                        bodies.push(respond.send_response(response, false).unwrap());
                    }
                    code = reset_of(&mut bodies) => codes.push(code),
                }
            }
            codes
        };
        let mut word = [0; 5];
        let (codes, read) = tokio::join!(looking, near.read_exact(&mut word));
        read.unwrap();
        assert_eq!(&word, b"alive");
        assert_eq!(codes, [h2::Reason::CONNECT_ERROR; 50], "told once answered");
        drop((request, send));
    });
}

/// The code by which one of these is reset.
async fn reset_of(streams: &mut Vec<h2::SendStream<Bytes>>) -> h2::Reason {
    let (at, code) = std::future::poll_fn(|cx| {
        let resets = streams.iter_mut().enumerate();
        for (at, stream) in resets {
            if let Poll::Ready(code) = stream.poll_reset(cx) {
                return Poll::Ready((at, code.unwrap()));
            }
        }
        Poll::Pending
    })
    .await;
    drop(streams.swap_remove(at));
    code
}
