//! Clients that nobody has looked at yet, and what they may make us keep and do.

use std::sync::Mutex;

use ::aws_lc_rs::hkdf;
use rustls::crypto::cipher::{AeadKey, Iv};
use rustls::{ConnectionTrafficSecrets, KeyLog};

use super::*;

/// More than any handshake needs.
const PLENTY: usize = 256 * 1024;

/// The key of a client's last flight.
#[derive(Debug, Default)]
struct Overheard(Mutex<Vec<u8>>);

impl KeyLog for Overheard {
    fn log(&self, label: &str, _: &[u8], secret: &[u8]) {
        if label == "CLIENT_HANDSHAKE_TRAFFIC_SECRET" {
            *self.0.lock().unwrap() = secret.to_vec();
        }
    }
}

struct Bytes<const N: usize>;

impl<const N: usize> hkdf::KeyType for Bytes<N> {
    fn len(&self) -> usize {
        N
    }
}

/// HKDF-Expand-Label without a context (RFC 8446 §7.1).
fn expand<const N: usize>(secret: &[u8], label: &str) -> [u8; N] {
    let length = u16::try_from(N).unwrap().to_be_bytes();
    let label = format!("tls13 {label}");
    let info = [&length[..], &[label.len() as u8], label.as_bytes(), &[0]];
    let mut bytes = [0; N];
    let prk = hkdf::Prk::new_less_safe(hkdf::HKDF_SHA256, secret);
    let okm = prk.expand(&info, Bytes::<N>).unwrap();
    okm.fill(&mut bytes).unwrap();
    bytes
}

/// A server that waits for the last flight, and the key to write that with.
fn waiting_server() -> (Negotiation, Key) {
    let overheard = Arc::new(Overheard::default());
    let mut config = client(SUITES[2], None);
    Arc::get_mut(&mut config).unwrap().key_log = overheard.clone();
    let mut theirs: Connection = ClientConnection::new(config, name()).unwrap().into();
    let mut negotiation = Setting::plain(SUITES[2], Side::Server).negotiation();
    negotiation.receive(&take(&mut theirs));
    assert!(!negotiation.advance().unwrap());
    give(&mut theirs, negotiation.outgoing(), usize::MAX).unwrap();
    let secret = overheard.0.lock().unwrap().clone();
    let secrets = ConnectionTrafficSecrets::Chacha20Poly1305 {
        key: AeadKey::from(expand::<32>(&secret, "key")),
        iv: Iv::from(expand::<12>(&secret, "iv")),
    };
    (negotiation, Key::new((0, secrets)).unwrap())
}

fn record(key: &mut Key, content: &[u8], padding: usize) -> Vec<u8> {
    let mut record = vec![0; HEAD + content.len() + padding + TAIL];
    record[HEAD..][..content.len()].copy_from_slice(content);
    let kind = match padding {
        0 => HANDSHAKE,
        _ => {
            record[HEAD + content.len()] = HANDSHAKE;
            0
        }
    };
    key.seal(&mut record, kind.into()).unwrap();
    record
}

/// Sends these until it is too much. How many bytes were taken.
fn check_bounded(negotiation: &mut Negotiation, mut next: impl FnMut() -> Vec<u8>) {
    let mut sent = 0;
    while sent < PLENTY {
        let bytes = next();
        sent += bytes.len();
        negotiation.receive(&bytes);
        if negotiation.advance().is_err() {
            return;
        }
    }
    panic!("{sent} bytes were taken");
}

#[test]
fn a_message_in_padded_pieces_is_not_kept_forever() {
    let (mut negotiation, mut key) = waiting_server();
    let mut head = [11, 0, 0xff, 0xff].into_iter();
    check_bounded(&mut negotiation, || {
        record(&mut key, &[head.next().unwrap_or(0)], PLAINTEXT - 1)
    });
}

#[test]
fn a_message_in_small_pieces_is_not_kept_forever() {
    let (mut negotiation, mut key) = waiting_server();
    let mut head = [11, 0, 0xff, 0xff].into_iter();
    check_bounded(&mut negotiation, || {
        record(&mut key, &[head.next().unwrap_or(0)], 0)
    });
}

/// rustls looks over early data that it refused until what it can open comes, each time anew.
#[test]
fn refused_early_data_is_not_skipped_forever() {
    let mut theirs = Setting::plain(SUITES[0], Side::Server).theirs();
    let mut negotiation = Setting::plain(SUITES[0], Side::Server).negotiation();
    negotiation.receive(&offering_early_data(take(&mut theirs)));
    assert!(!negotiation.advance().unwrap());
    assert!(negotiation.outgoing().len() > 500);
    let start = std::time::Instant::now();
    check_bounded(&mut negotiation, || [DATA, 3, 3, 0, 0].repeat(1600));
    assert!(start.elapsed().as_secs() < 2, "{:?}", start.elapsed());
}

/// Puts early_data before the other extensions of a ClientHello.
fn offering_early_data(mut hello: Vec<u8>) -> Vec<u8> {
    const EXTENSION: [u8; 4] = [0, 42, 0, 0];
    let mut at = HEAD + 4 + 2 + 32;
    at += 1 + usize::from(hello[at]);
    at += 2 + usize::from(u16::from_be_bytes([hello[at], hello[at + 1]]));
    at += 1 + usize::from(hello[at]);
    for length in [3, HEAD + 2, at] {
        let long = u16::from_be_bytes([hello[length], hello[length + 1]]) + 4;
        hello[length..][..2].copy_from_slice(&long.to_be_bytes());
    }
    hello.splice(at + 2..at + 2, EXTENSION);
    hello
}
