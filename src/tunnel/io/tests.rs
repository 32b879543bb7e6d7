//! Two wires on a socket, and a wire against rustls behind tokio's own adapter.

use std::time::SystemTime;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType};
use rustls::client::UnbufferedClientConnection;
use rustls::server::UnbufferedServerConnection;
use rustls_pki_types::PrivatePkcs8KeyDer;
use tokio::net::TcpListener;
use tokio_rustls::TlsConnector;

use super::*;
use crate::mesh::Identity;
use crate::pki::{Certificate, Parts};
use crate::tunnel::tls;

const PAY: &str = "spiffe://cluster.local/ns/shop/sa/pay";

fn certificate() -> Certificate {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let root = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::URI(PAY.try_into().unwrap())];
    let key = KeyPair::generate().unwrap();
    let leaf = params.signed_by(&key, &root).unwrap();
    let parts = Parts {
        chain: vec![leaf.der().clone()],
        key: PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
        roots: vec![root.der().clone()],
        issued: SystemTime::now(),
    };
    Certificate::new(&Identity::parse(PAY).unwrap(), parts).unwrap()
}

async fn sockets() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let made = TcpStream::connect(listener.local_addr().unwrap());
    let (made, taken) = tokio::join!(made, listener.accept());
    (made.unwrap(), taken.unwrap().0)
}

fn server(certificate: &Certificate) -> Handshake {
    UnbufferedServerConnection::new(tls::server_config(certificate))
        .unwrap()
        .into()
}

pub(crate) async fn wires() -> (Wire, Wire) {
    let certificate = certificate();
    let config = tls::client_config(&certificate, certificate.identity());
    let client = UnbufferedClientConnection::new(config, tls::server_name()).unwrap();
    let (made, taken) = sockets().await;
    let both = tokio::join!(
        handshake(made, client.into()),
        handshake(taken, server(&certificate))
    );
    let (client, server) = (both.0.unwrap(), both.1.unwrap());
    for wire in [&client, &server] {
        assert!(wire.speaks_h2());
        let chain = wire.peer_certificates();
        assert_eq!(tls::peer_identity(&chain).unwrap(), *certificate.identity());
    }
    (client, server)
}

fn byte(at: usize) -> u8 {
    (at * 7 + at / 251) as u8
}

/// Sends `total` bytes in writes of about `size`, takes as many, and closes; at once, as a driver
/// does.
async fn drive(wire: &Wire, total: usize, size: usize) {
    let (mut sent, mut got) = (0, 0);
    std::future::poll_fn(|cx| {
        wire.begin_turn();
        let received: Poll<Result<(), Fault>> = wire.poll_receive(cx, |piece| {
            assert!(!piece.is_empty());
            for seen in &piece {
                assert_eq!(*seen, byte(got));
                got += 1;
            }
            Ok(())
        });
        while sent < total && wire.room() > 0 {
            let count = (size + sent % 3).min(total - sent);
            let bytes: Vec<u8> = (sent..sent + count).map(byte).collect();
            let (head, body) = bytes.split_at(count.min(9));
            wire.write(&[IoSlice::new(head), IoSlice::new(body)]);
            sent += count;
        }
        if sent < total {
            wire.starve();
            let _ = wire.poll_flush(cx).map(Result::unwrap);
            return Poll::Pending;
        }
        let closed = wire.poll_close(cx).map(Result::unwrap);
        match received {
            Poll::Ready(end) => {
                end.unwrap();
                closed
            }
            Poll::Pending => Poll::Pending,
        }
    })
    .await;
    assert_eq!((sent, got), (total, total));
    assert_eq!(wire.session.borrow().records.waiting(), 0);
    assert!(wire.received() as usize > total && wire.fault().is_none());
}

#[tokio::test]
async fn bytes_pass_in_both_directions_at_once() {
    for (total, size) in [
        (1, 1),
        (30_000, 50),
        (6_000_000, 3000),
        (12_000_000, 65_536),
    ] {
        let (client, server) = wires().await;
        tokio::join!(drive(&client, total, size), drive(&server, total, size));
    }
}

/// The next bytes, as far as they come in one go.
async fn next(wire: &Wire) -> Result<Option<Bytes>, Fault> {
    std::future::poll_fn(|cx| {
        wire.begin_turn();
        wire.session.borrow_mut().poll_next(cx)
    })
    .await
}

#[tokio::test]
async fn a_socket_that_takes_nothing_holds_a_writer_back() {
    let (client, server) = wires().await;
    let waker = std::task::Waker::noop();
    let mut cx = Context::from_waker(waker);
    let frame = vec![0; 65_536];
    let mut written = 0;
    // What the sockets hold, and then no more than the bound.
    for _ in 0..1000 {
        while client.room() > 0 {
            client.write(&[IoSlice::new(&frame)]);
            written += frame.len();
        }
        if client.poll_flush(&mut cx).is_pending() && client.room() == 0 {
            break;
        }
    }
    let waiting = client.session.borrow().records.waiting();
    assert!((HIGH..HIGH + 70_000).contains(&waiting), "{waiting}");
    // While nothing leaves, small writes go on sharing records.
    for _ in 0..500 {
        client.write(&[IoSlice::new(b"12345678")]);
        let _ = client.poll_flush(&mut cx);
        written += 8;
    }
    let more = client.session.borrow().records.waiting() - waiting;
    assert!(more < 4100, "{more}");
    let send = std::future::poll_fn(|cx| client.poll_close(cx));
    let take = async {
        let mut got = 0;
        while let Some(piece) = next(&server).await.unwrap() {
            got += piece.len();
        }
        got
    };
    let (sent, got) = tokio::join!(send, take);
    sent.unwrap();
    assert_eq!(got, written);
}

#[tokio::test]
async fn a_fin_without_a_word_is_an_end_too() {
    let (client, server) = wires().await;
    client.write(&[IoSlice::new(b"last")]);
    std::future::poll_fn(|cx| client.poll_flush(cx))
        .await
        .unwrap();
    drop(client);
    assert_eq!(next(&server).await.unwrap().unwrap(), b"last"[..]);
    assert!(next(&server).await.unwrap().is_none());
}

#[tokio::test]
async fn a_peer_that_breaks_the_protocol_is_told() {
    let certificate = certificate();
    let (made, taken) = sockets().await;
    let config = tls::client_config(&certificate, certificate.identity());
    let client = async {
        let mut tls = TlsConnector::from(config)
            .connect(tls::server_name(), made)
            .await
            .unwrap();
        tls.write_all(b"good").await.unwrap();
        tls.flush().await.unwrap();
        tls.get_mut()
            .0
            .write_all(b"\x17\x03\x03\x00\x14not at all encrypted")
            .await
            .unwrap();
        tls.read_u8().await.unwrap_err()
    };
    let (told, wire) = tokio::join!(client, async {
        let wire = handshake(taken, server(&certificate)).await.unwrap();
        assert_eq!(next(&wire).await.unwrap().unwrap(), b"good"[..]);
        let fault = next(&wire).await.unwrap_err();
        assert!(matches!(fault, Fault::Tls(rustls::Error::DecryptError)));
        wire.write(&[IoSlice::new(b"dropped")]);
        assert!(matches!(wire.fault(), Some(Fault::Tls(_))));
        wire
    });
    let told = told.get_ref().and_then(|error| error.downcast_ref());
    let alert = rustls::AlertDescription::BadRecordMac;
    assert_eq!(told, Some(&rustls::Error::AlertReceived(alert)));
    drop(wire);
}

#[tokio::test]
async fn peers_that_do_not_trust_each_other_say_so() {
    let (ours, theirs) = (certificate(), certificate());
    let (made, taken) = sockets().await;
    let config = tls::client_config(&theirs, theirs.identity());
    let client = UnbufferedClientConnection::new(config, tls::server_name()).unwrap();
    let (client, server) = tokio::join!(
        handshake(made, client.into()),
        handshake(taken, server(&ours))
    );
    // Each has another root; the client sees it first.
    assert!(client.is_err());
    let error = server.err().unwrap();
    let error = error.get_ref().and_then(|error| error.downcast_ref());
    assert!(
        matches!(error, Some(rustls::Error::AlertReceived(_))),
        "{error:?}"
    );
}

/// Shows none.
#[derive(Debug)]
struct NoCertificate;

impl rustls::client::ResolvesClientCert for NoCertificate {
    fn resolve(
        &self,
        _: &[&[u8]],
        _: &[rustls::SignatureScheme],
    ) -> Option<std::sync::Arc<rustls::sign::CertifiedKey>> {
        None
    }

    fn has_certs(&self) -> bool {
        false
    }
}

#[tokio::test]
async fn a_client_without_certificate_gets_no_session() {
    let certificate = certificate();
    let (made, taken) = sockets().await;
    let mut config = tls::client_config(&certificate, certificate.identity());
    std::sync::Arc::make_mut(&mut config).client_auth_cert_resolver =
        std::sync::Arc::new(NoCertificate);
    let client = UnbufferedClientConnection::new(config, tls::server_name()).unwrap();
    let (client, server) = tokio::join!(
        handshake(made, client.into()),
        handshake(taken, server(&certificate))
    );
    let error = server.err().unwrap();
    let error = error.get_ref().and_then(|error| error.downcast_ref());
    assert_eq!(error, Some(&rustls::Error::NoCertificatesPresented));
    // For the client all was done when it had spoken last.
    let fault = next(&client.unwrap()).await.unwrap_err();
    let alert = rustls::AlertDescription::CertificateRequired;
    assert!(
        matches!(&fault, Fault::Tls(rustls::Error::AlertReceived(found)) if *found == alert),
        "{fault:?}"
    );
}

#[tokio::test]
async fn a_client_that_offers_no_protocol_speaks_none() {
    let certificate = certificate();
    let (made, taken) = sockets().await;
    let mut config = tls::client_config(&certificate, certificate.identity());
    std::sync::Arc::make_mut(&mut config).alpn_protocols.clear();
    let client = UnbufferedClientConnection::new(config, tls::server_name()).unwrap();
    let (client, server) = tokio::join!(
        handshake(made, client.into()),
        handshake(taken, server(&certificate))
    );
    assert!(!client.unwrap().speaks_h2());
    assert!(!server.unwrap().speaks_h2());
}
