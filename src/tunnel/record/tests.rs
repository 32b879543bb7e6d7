//! Our records against rustls' own, on both sides.

use std::io::{Read as _, Write as _};
use std::sync::{Arc, LazyLock};

use proptest::prelude::*;
use rcgen::CertifiedKey;
use rustls::client::UnbufferedClientConnection;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::UnbufferedServerConnection;
use rustls::version::TLS13;
use rustls::{
    ClientConfig, ClientConnection, Connection, Error, RootCertStore, ServerConfig,
    ServerConnection, SupportedCipherSuite,
};
use rustls_pki_types::{PrivateKeyDer, ServerName};

use super::*;

mod adversary;
mod any;
mod foul;
mod handshakes;

const DATA: u8 = 23;
const HANDSHAKE: u8 = 22;
const ALERT: u8 = 21;

const SUITES: [SupportedCipherSuite; 3] = [
    aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256,
    aws_lc_rs::cipher_suite::TLS13_AES_256_GCM_SHA384,
    aws_lc_rs::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
];

#[derive(Clone, Copy, Debug, PartialEq)]
enum Side {
    Client,
    Server,
}

const SIDES: [Side; 2] = [Side::Client, Side::Server];

static CERTIFICATE: LazyLock<CertifiedKey<rcgen::KeyPair>> =
    LazyLock::new(|| rcgen::generate_simple_self_signed(["peer".to_owned()]).unwrap());

fn provider(suite: SupportedCipherSuite) -> Arc<CryptoProvider> {
    Arc::new(CryptoProvider {
        cipher_suites: vec![suite],
        ..aws_lc_rs::default_provider()
    })
}

fn client(suite: SupportedCipherSuite, fragment: Option<usize>) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(CERTIFICATE.cert.der().clone()).unwrap();
    let mut config = ClientConfig::builder_with_provider(provider(suite))
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.max_fragment_size = fragment;
    config.enable_secret_extraction = true;
    Arc::new(config)
}

/// A server that sends two tickets behind its handshake.
fn server(suite: SupportedCipherSuite, fragment: Option<usize>) -> Arc<ServerConfig> {
    let key = PrivateKeyDer::try_from(CERTIFICATE.signing_key.serialize_der()).unwrap();
    let mut config = ServerConfig::builder_with_provider(provider(suite))
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![CERTIFICATE.cert.der().clone()], key)
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.max_fragment_size = fragment;
    config.enable_secret_extraction = true;
    Arc::new(config)
}

fn name() -> ServerName<'static> {
    ServerName::try_from("peer").unwrap()
}

/// Our side's records and rustls' own connection as the other.
struct Pair {
    ours: Records,
    theirs: Connection,
    partial: Vec<u8>,
    /// Plaintext that came to us.
    got: Vec<u8>,
}

/// How a test makes a pair.
struct Setting {
    suite: SupportedCipherSuite,
    side: Side,
    /// The largest record of theirs, in bytes.
    fragment: Option<usize>,
    /// The largest segment, in bytes.
    segment: usize,
    /// What they send right behind their handshake.
    early: &'static [u8],
}

impl Setting {
    fn plain(suite: SupportedCipherSuite, side: Side) -> Self {
        Self {
            suite,
            side,
            fragment: None,
            segment: usize::MAX,
            early: b"",
        }
    }

    fn negotiation(&self) -> Negotiation {
        Negotiation::new(match self.side {
            Side::Client => UnbufferedClientConnection::new(client(self.suite, None), name())
                .unwrap()
                .into(),
            Side::Server => UnbufferedServerConnection::new(server(self.suite, None))
                .unwrap()
                .into(),
        })
    }

    fn theirs(&self) -> Connection {
        match self.side {
            Side::Client => ServerConnection::new(server(self.suite, self.fragment))
                .unwrap()
                .into(),
            Side::Server => ClientConnection::new(client(self.suite, self.fragment), name())
                .unwrap()
                .into(),
        }
    }

    fn pair(&self) -> Pair {
        let (mut negotiation, mut theirs) = (self.negotiation(), self.theirs());
        theirs.set_buffer_limit(None);
        theirs.writer().write_all(self.early).unwrap();
        let mut done = false;
        loop {
            done = done || negotiation.advance().unwrap();
            let outgoing = negotiation.outgoing().to_vec();
            negotiation.written(outgoing.len());
            give(&mut theirs, &outgoing, self.segment).unwrap();
            let bytes = take(&mut theirs);
            if done && bytes.is_empty() {
                break;
            }
            for segment in bytes.chunks(self.segment) {
                negotiation.receive(segment);
                done = done || negotiation.advance().unwrap();
            }
        }
        let negotiated = negotiation.finish().unwrap();
        assert!(negotiated.speaks_h2);
        assert_eq!(
            negotiated.certificates.len(),
            usize::from(self.side == Side::Client)
        );
        let mut pair = Pair {
            ours: negotiated.records,
            theirs,
            partial: Vec::new(),
            got: Vec::new(),
        };
        pair.receive(&negotiated.rest, usize::MAX).unwrap();
        pair
    }
}

/// Gives them bytes, in segments. The plaintext that they see.
fn give(theirs: &mut Connection, bytes: &[u8], segment: usize) -> Result<Vec<u8>, Error> {
    let mut got = Vec::new();
    for mut segment in bytes.chunks(segment) {
        while !segment.is_empty() {
            theirs.read_tls(&mut segment).unwrap();
            theirs.process_new_packets()?;
            let _ = theirs.reader().read_to_end(&mut got);
        }
    }
    Ok(got)
}

fn take(theirs: &mut Connection) -> Vec<u8> {
    let mut bytes = Vec::new();
    while theirs.wants_write() {
        theirs.write_tls(&mut bytes).unwrap();
    }
    bytes
}

/// What of ours waits for the socket.
fn sealed(ours: &mut Records) -> Vec<u8> {
    ours.seal().unwrap();
    let bytes: Vec<u8> = ours
        .sealed()
        .iter()
        .flat_map(|slice| slice.to_vec())
        .collect();
    ours.written(bytes.len());
    assert_eq!(ours.waiting(), 0);
    bytes
}

impl Pair {
    /// Takes in bytes of theirs, in segments, as the socket's owner does.
    fn receive(&mut self, bytes: &[u8], segment: usize) -> Result<(), Error> {
        for segment in bytes.chunks(segment) {
            let mut buffer = std::mem::take(&mut self.partial);
            buffer.extend_from_slice(segment);
            let mut found = Pieces::new();
            let used = self.ours.open(&mut buffer, &mut found);
            for (from, to) in found {
                self.got
                    .extend_from_slice(&buffer[from as usize..to as usize]);
            }
            self.partial = buffer.split_off(used?);
        }
        Ok(())
    }

    fn send_ours(&mut self, plaintext: &[u8], segment: usize) {
        self.theirs.writer().write_all(plaintext).unwrap();
        let bytes = take(&mut self.theirs);
        self.got.clear();
        self.receive(&bytes, segment).unwrap();
        assert!(self.got == plaintext, "{} bytes to us", plaintext.len());
    }

    fn send_theirs(&mut self, pieces: &[&[u8]], segment: usize) {
        let slices: Vec<_> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
        self.ours.write(&slices).unwrap();
        let bytes = sealed(&mut self.ours);
        let got = give(&mut self.theirs, &bytes, segment).unwrap();
        assert!(got == pieces.concat(), "{} bytes to them", got.len());
    }
}

fn noise(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at * 7 + at / 251) as u8).collect()
}

fn everywhere(test: impl Fn(Setting)) {
    for suite in SUITES {
        for side in SIDES {
            test(Setting::plain(suite, side));
        }
    }
}

#[test]
fn plaintext_arrives_on_both_sides() {
    everywhere(|setting| {
        let mut pair = setting.pair();
        for length in [1, 9, 1023, 16_383, 16_384, 16_385, 65_536, 300_000] {
            let noise = noise(length);
            for segment in [usize::MAX, 16_406, 1460] {
                pair.send_ours(&noise, segment);
                pair.send_theirs(&[&noise], segment);
                let (head, body) = noise.split_at(length.min(9));
                pair.send_theirs(&[head, b"", body], segment);
            }
        }
    });
}

#[test]
fn handshakes_may_come_in_any_pieces() {
    everywhere(|setting| {
        for (fragment, segment) in [(None, 1), (Some(32), usize::MAX), (Some(40), 7)] {
            let mut pair = Setting {
                fragment,
                segment,
                early: b"early",
                ..Setting::plain(setting.suite, setting.side)
            }
            .pair();
            assert_eq!(pair.got, b"early");
            pair.send_ours(&noise(5000), segment);
            pair.send_theirs(&[&noise(5000)], segment);
        }
    });
}

#[test]
fn small_writes_share_a_record_and_frames_begin_with_one() {
    let records = |writes: &[usize]| {
        let mut ours = Setting::plain(SUITES[0], Side::Client).pair().ours;
        for length in writes {
            ours.write(&[IoSlice::new(&noise(*length))]).unwrap();
        }
        let bytes = sealed(&mut ours);
        let mut lengths = Vec::new();
        let mut rest = &bytes[..];
        while let Ok(Some(length)) = whole(rest) {
            lengths.push(length - HEAD - TAIL);
            rest = &rest[length..];
        }
        lengths
    };
    assert_eq!(records(&[1, 2, 3]), [6]);
    assert_eq!(records(&[9, 65_527]), [16_384; 4]);
    assert_eq!(
        records(&[65_536 + 13, 65_536]),
        [&[16_384; 8][..], &[13]].concat()
    );
    assert_eq!(records(&[20_000, 16_384]), [16_384, 3616, 16_384]);
    assert_eq!(records(&[]), [0; 0]);
    assert_eq!(records(&[0]), [0; 0]);
}

#[test]
fn what_waits_is_what_is_sealed() {
    let mut ours = Setting::plain(SUITES[0], Side::Server).pair().ours;
    ours.write(&[IoSlice::new(&noise(500_000))]).unwrap();
    ours.seal().unwrap();
    let length: usize = ours.sealed().iter().map(|slice| slice.len()).sum();
    assert_eq!(
        (length, ours.waiting()),
        (500_000 + 31 * 22, 500_000 + 31 * 22)
    );
    ours.written(300_000);
    ours.write(&[IoSlice::new(b"more")]).unwrap();
    assert_eq!(ours.waiting(), length - 300_000 + 4);
    ours.written(length - 300_000);
    assert_eq!((ours.sealed().len(), ours.waiting()), (0, 4));
    assert_eq!(sealed(&mut ours).len(), 26);
}

#[test]
fn keys_change_when_the_peer_wants() {
    everywhere(|setting| {
        let mut pair = setting.pair();
        for _ in 0..3 {
            pair.theirs.refresh_traffic_keys().unwrap();
            pair.send_ours(&noise(40_000), 1000);
            // The answer comes before what we write next.
            pair.send_theirs(&[&noise(40_000)], 1000);
        }
        // Many requests before we write are answered once.
        for _ in 0..5 {
            pair.theirs.refresh_traffic_keys().unwrap();
        }
        let requests = take(&mut pair.theirs);
        pair.receive(&requests, usize::MAX).unwrap();
        assert_eq!(pair.ours.waiting(), HEAD + 5 + TAIL);
        pair.send_theirs(&[&noise(10)], usize::MAX);
        pair.send_ours(&noise(10), usize::MAX);
    });
}

/// Each request is answered before what is written behind it (§4.6.3), also while the socket has
/// always more to take.
#[test]
fn later_requests_are_answered_too() {
    let mut pair = Setting::plain(SUITES[0], Side::Client).pair();
    let mut bytes = Vec::new();
    for _ in 0..3 {
        for _ in 0..2 {
            pair.theirs.refresh_traffic_keys().unwrap();
            let request = take(&mut pair.theirs);
            pair.receive(&request, usize::MAX).unwrap();
        }
        pair.ours.write(&[IoSlice::new(b"data")]).unwrap();
        pair.ours.seal().unwrap();
        let sealed: Vec<u8> = pair.ours.sealed().iter().flat_map(|s| s.to_vec()).collect();
        pair.ours.written(sealed.len() - 1);
        bytes.extend(&sealed[..sealed.len() - 1]);
    }
    bytes.extend(sealed(&mut pair.ours));
    assert_eq!(bytes.len(), 3 * (HEAD + 5 + TAIL + HEAD + 4 + TAIL));
    let got = give(&mut pair.theirs, &bytes, usize::MAX).unwrap();
    assert_eq!(got, b"data".repeat(3));
}

#[test]
fn keys_are_renewed_before_they_are_worn() {
    everywhere(|setting| {
        let mut pair = setting.pair();
        pair.ours.out.limit = 4;
        for length in [100_000, 5, 16_384, 1, 200_000] {
            pair.send_theirs(&[&noise(length)], usize::MAX);
            pair.send_ours(&noise(length), usize::MAX);
        }
    });
}

#[test]
fn closing_is_said_once_and_heard() {
    everywhere(|setting| {
        let mut pair = setting.pair();
        pair.send_theirs(&[b"last"], usize::MAX);
        pair.ours.close();
        pair.ours.close();
        pair.ours.write(&[IoSlice::new(b"too late")]).unwrap();
        let bytes = sealed(&mut pair.ours);
        assert_eq!(bytes.len(), HEAD + 2 + TAIL);
        give(&mut pair.theirs, &bytes, usize::MAX).unwrap();
        assert_eq!(pair.theirs.reader().read(&mut [0]).unwrap(), 0);

        pair.theirs.writer().write_all(b"last").unwrap();
        pair.theirs.send_close_notify();
        let mut bytes = take(&mut pair.theirs);
        bytes.extend(b"nothing of this counts");
        pair.receive(&bytes, 10).unwrap();
        assert_eq!(pair.got, b"last");
        assert!(pair.ours.ended() && pair.partial.is_empty());
    });
}
