//! Clients that nobody has looked at yet, and what they may make us keep and do.

use std::sync::Mutex;

use ::aws_lc_rs::hkdf;
use rustls::crypto::cipher::{AeadKey, Iv};
use rustls::{ConnectionTrafficSecrets, KeyLog};

use super::*;

/// More than any handshake needs.
const PLENTY: usize = 256 * 1024;

/// The secret of what this side says sealed in the handshake.
#[derive(Debug)]
struct Overheard {
    label: &'static str,
    secret: Mutex<Vec<u8>>,
}

impl Overheard {
    fn of(side: Side) -> Arc<Self> {
        Arc::new(Self {
            label: match side {
                Side::Client => "CLIENT_HANDSHAKE_TRAFFIC_SECRET",
                Side::Server => "SERVER_HANDSHAKE_TRAFFIC_SECRET",
            },
            secret: Mutex::default(),
        })
    }

    fn key(&self) -> Key {
        let secret = self.secret.lock().unwrap();
        let secrets = ConnectionTrafficSecrets::Chacha20Poly1305 {
            key: AeadKey::from(expand::<32>(&secret, "key")),
            iv: Iv::from(expand::<12>(&secret, "iv")),
        };
        Key::new((0, secrets)).unwrap()
    }
}

impl KeyLog for Overheard {
    fn log(&self, label: &str, _: &[u8], secret: &[u8]) {
        if label == self.label {
            *self.secret.lock().unwrap() = secret.to_vec();
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

/// A server that waits for the client's flight, and the key to write that with.
fn waiting_server() -> (Negotiation, Key) {
    let overheard = Overheard::of(Side::Client);
    let mut config = client(SUITES[2], None);
    Arc::get_mut(&mut config).unwrap().key_log = overheard.clone();
    let mut theirs: Connection = ClientConnection::new(config, name()).unwrap().into();
    let mut negotiation = Setting::plain(SUITES[2], Side::Server).negotiation();
    negotiation.receive(&take(&mut theirs));
    assert!(!negotiation.advance().unwrap());
    give(&mut theirs, negotiation.outgoing(), usize::MAX).unwrap();
    (negotiation, overheard.key())
}

/// A client that has seen ServerHello alone, and the key to write the rest with.
fn waiting_client() -> (Negotiation, Key) {
    let overheard = Overheard::of(Side::Server);
    let mut config = server(SUITES[2], None);
    Arc::get_mut(&mut config).unwrap().key_log = overheard.clone();
    let mut theirs: Connection = ServerConnection::new(config).unwrap().into();
    let mut negotiation = Setting::plain(SUITES[2], Side::Client).negotiation();
    negotiation.advance().unwrap();
    give(&mut theirs, negotiation.outgoing(), usize::MAX).unwrap();
    let bytes = take(&mut theirs);
    let hello = whole(&bytes).unwrap().unwrap();
    negotiation.receive(&bytes[..hello]);
    assert!(!negotiation.advance().unwrap());
    (negotiation, overheard.key())
}

fn record(key: &mut Key, kind: u8, content: &[u8], padding: usize) -> Vec<u8> {
    let mut inner = [content, &[kind], &vec![0; padding]].concat();
    let last = inner.pop().unwrap();
    let mut record = [&[0; HEAD], &inner[..], &[0; TAIL]].concat();
    key.seal(&mut record, last.into()).unwrap();
    record
}

/// Sends these until it is too much.
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
        record(
            &mut key,
            HANDSHAKE,
            &[head.next().unwrap_or(0)],
            PLAINTEXT - 1,
        )
    });
}

#[test]
fn a_message_in_small_pieces_is_not_kept_forever() {
    let (mut negotiation, mut key) = waiting_server();
    let mut head = [11, 0, 0xff, 0xff].into_iter();
    check_bounded(&mut negotiation, || {
        record(&mut key, HANDSHAKE, &[head.next().unwrap_or(0)], 0)
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

/// What a stranger says: type, content, padding, and whether it is sealed.
fn said() -> impl Strategy<Value = (u8, Vec<u8>, usize, bool)> {
    let kind = prop_oneof![8 => Just(HANDSHAKE), 1 => Just(DATA), 1 => Just(ALERT), 1 => 19..25_u8];
    let message = |head: &'static [u8]| (Just(head.to_vec()), 0..9_usize);
    let content = prop_oneof![
        // Parts of messages, and more than one.
        prop::collection::vec(prop::sample::select(vec![0_u8, 1, 4, 8, 11, 20, 24]), 0..30),
        prop_oneof![
            message(&[8, 0, 0, 2, 0, 0, 11, 0, 0, 9]),
            message(&[8, 0, 0, 2, 0, 0, 13]),
            message(&[11, 0, 0, 4, 0, 0, 0, 0]),
            message(&[11, 0, 0, 12, 0, 0, 0, 8, 0, 0, 3, 1, 2, 3, 0, 0]),
            message(&[20, 0, 0, 32]),
        ]
        .prop_map(|(bytes, from)| bytes[from.min(bytes.len() - 1)..].to_vec()),
        prop::collection::vec(any::<u8>(), 0..300),
    ];
    let padding = prop_oneof![4 => Just(0), 1 => 0..400_usize];
    (kind, content, padding, prop::bool::weighted(0.9))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Whatever a stranger seals, no handshake comes of it, and no panic.
    #[test]
    fn strangers_get_nowhere(
        side in prop::sample::select(&SIDES[..]),
        said in prop::collection::vec(said(), 1..40),
        segment in prop_oneof![1..40_usize, 40..9000_usize],
    ) {
        let (mut negotiation, mut key) = match side {
            Side::Client => waiting_client(),
            Side::Server => waiting_server(),
        };
        let records = said.iter().map(|(kind, content, padding, sealed)| match sealed {
            true => record(&mut key, *kind, content, *padding),
            false => {
                let length = (content.len() as u16).to_be_bytes();
                [&[*kind, 3, 3], &length[..], &content[..]].concat()
            }
        });
        let bytes = records.collect::<Vec<_>>().concat();
        for segment in bytes.chunks(segment) {
            negotiation.receive(segment);
            match negotiation.advance() {
                Ok(done) => prop_assert!(!done),
                Err(_) => return Ok(()),
            }
        }
    }
}
