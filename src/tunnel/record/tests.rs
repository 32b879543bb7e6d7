//! Our records against rustls' own, on both sides; and against peers that break every rule.

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
mod handshakes;

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

/// A peer that seals what it likes.
struct Foul {
    ours: Pair,
    send: Key,
    receive: Key,
}

impl Foul {
    fn against(side: Side) -> Self {
        let mut pair = Setting::plain(SUITES[1], side).pair();
        let other = Setting::plain(SUITES[1], side).theirs();
        let theirs = std::mem::replace(&mut pair.theirs, other);
        let secrets = theirs.dangerous_extract_secrets().unwrap();
        Self {
            ours: pair,
            send: Key::new(secrets.tx).unwrap(),
            receive: Key::new(secrets.rx).unwrap(),
        }
    }

    fn record(&mut self, kind: u8, content: &[u8], padding: usize) -> Vec<u8> {
        let mut inner = [content, &[kind], &vec![0; padding]].concat();
        let last = inner.pop().unwrap();
        let mut record = [&[0; HEAD], &inner[..], &[0; TAIL]].concat();
        self.send.seal(&mut record, last.into()).unwrap();
        record
    }

    /// What we think of it, and the alert that we send.
    fn check(
        mut self,
        bytes: &[u8],
        expect: Result<&[u8], Error>,
        alert: Option<AlertDescription>,
    ) {
        let outcome = self.ours.receive(bytes, usize::MAX);
        assert_eq!(outcome, expect.clone().map(drop));
        if let Ok(plaintext) = expect {
            assert_eq!(self.ours.got, plaintext);
        }
        let mut said = sealed(&mut self.ours.ours);
        match alert {
            None => assert_eq!(said.len(), 0),
            Some(alert) => {
                self.receive.open(&mut said).unwrap();
                assert_eq!(said[HEAD..][..3], [2, alert.into(), 21]);
            }
        }
    }
}

const DATA: u8 = 23;
const HANDSHAKE: u8 = 22;
const ALERT: u8 = 21;

#[test]
fn padding_is_taken_off() {
    for padding in [1, 300, PLAINTEXT - 4] {
        let mut foul = Foul::against(Side::Client);
        let bytes = foul.record(DATA, b"data", padding);
        foul.check(&bytes, Ok(b"data"), None);
    }
}

#[test]
fn what_breaks_the_protocol_ends_the_session() {
    use AlertDescription as Alert;
    use PeerMisbehaved as Bad;
    /// Records: type, content, padding.
    type Sent<'a> = &'a [(u8, &'a [u8], usize)];
    let check = |sent: Sent<'_>, error: Error, alert: Option<Alert>| {
        for side in SIDES {
            let mut foul = Foul::against(side);
            let records = sent
                .iter()
                .map(|(kind, content, padding)| foul.record(*kind, content, *padding));
            let bytes: Vec<u8> = records.collect::<Vec<_>>().concat();
            foul.check(&bytes, Err(error.clone()), alert);
        }
    };
    let full = noise(PLAINTEXT);
    let oversized = Error::PeerSentOversizedRecord;
    check(
        &[(DATA, &full, 1)],
        oversized.clone(),
        Some(Alert::RecordOverflow),
    );
    check(
        &[(DATA, &noise(PLAINTEXT + 1), 0)],
        oversized,
        Some(Alert::RecordOverflow),
    );
    let unexpected =
        |error: Error, sent: Sent<'_>| check(sent, error, Some(Alert::UnexpectedMessage));
    unexpected(Bad::IllegalTlsInnerPlaintext.into(), &[(0, b"", 0)]);
    unexpected(Bad::IllegalTlsInnerPlaintext.into(), &[(0, &[0; 100], 50)]);
    unexpected(
        Bad::IllegalMiddleboxChangeCipherSpec.into(),
        &[(20, &[1], 0)],
    );
    unexpected(
        InvalidMessage::InvalidContentType.into(),
        &[(24, b"beat", 0)],
    );
    unexpected(
        InvalidMessage::InvalidEmptyPayload.into(),
        &[(HANDSHAKE, b"", 9)],
    );
    unexpected(
        InvalidMessage::InvalidEmptyPayload.into(),
        &[(ALERT, b"", 9)],
    );
    unexpected(
        Bad::TooManyEmptyFragments.into(),
        &[(DATA, &b""[..], 0); 33],
    );
    let interleaved = Bad::MessageInterleavedWithHandshakeMessage;
    unexpected(
        interleaved.into(),
        &[(HANDSHAKE, &[24, 0], 0), (DATA, b"data", 0)],
    );
    let pending = Bad::KeyEpochWithPendingFragment;
    unexpected(pending.into(), &[(HANDSHAKE, &[24, 0, 0, 1, 0, 24], 0)]);
    let hello = Error::InappropriateHandshakeMessage {
        expect_types: vec![rustls::HandshakeType::KeyUpdate],
        got_type: rustls::HandshakeType::ClientHello,
    };
    unexpected(hello, &[(HANDSHAKE, &[1, 0, 0, 9], 0)]);
    let key = Error::from(InvalidMessage::InvalidKeyUpdate);
    check(
        &[(HANDSHAKE, &[24, 0, 0, 1, 2], 0)],
        key.clone(),
        Some(Alert::IllegalParameter),
    );
    check(
        &[(HANDSHAKE, &[24, 0, 0, 2, 0, 0], 0)],
        key,
        Some(Alert::DecodeError),
    );
    let trailing = Error::from(InvalidMessage::TrailingData("Alert"));
    check(
        &[(ALERT, &[2], 0)],
        trailing.clone(),
        Some(Alert::DecodeError),
    );
    check(
        &[(ALERT, &[2, 10, 0], 0)],
        trailing,
        Some(Alert::DecodeError),
    );
    for level in 0..3 {
        let refused = Error::AlertReceived(Alert::AccessDenied);
        check(&[(ALERT, &[level, 49], 0)], refused, None);
    }
}

#[test]
fn keys_are_not_changed_forever() {
    let mut pair = Setting::plain(SUITES[0], Side::Client).pair();
    pair.send_ours(b"fruit", usize::MAX);
    for update in 0..=FRUITLESS {
        pair.theirs.refresh_traffic_keys().unwrap();
        let bytes = take(&mut pair.theirs);
        let outcome = pair.receive(&bytes, usize::MAX);
        assert_eq!(outcome.is_ok(), update < FRUITLESS, "{update}");
    }
}

#[test]
fn tickets_are_read_over_by_clients_alone() {
    let ticket = [&[4, 0, 1, 0][..], &[7; 256]].concat();
    let mut foul = Foul::against(Side::Client);
    let mut bytes = Vec::new();
    for piece in [
        &[&ticket[..], &ticket[..2]].concat()[..],
        &ticket[2..99],
        &ticket[99..],
    ] {
        bytes.extend(foul.record(HANDSHAKE, piece, 3));
    }
    bytes.extend(foul.record(DATA, b"data", 0));
    foul.check(&bytes, Ok(b"data"), None);

    let mut foul = Foul::against(Side::Server);
    let bytes = foul.record(HANDSHAKE, &ticket, 0);
    let error = Error::InappropriateHandshakeMessage {
        expect_types: vec![rustls::HandshakeType::KeyUpdate],
        got_type: rustls::HandshakeType::NewSessionTicket,
    };
    foul.check(
        &bytes,
        Err(error),
        Some(AlertDescription::UnexpectedMessage),
    );

    for (length, error, alert) in [
        (
            0,
            InvalidMessage::MissingData("NewSessionTicket"),
            AlertDescription::DecodeError,
        ),
        (
            2,
            InvalidMessage::HandshakePayloadTooLarge,
            AlertDescription::DecodeError,
        ),
    ] {
        let mut foul = Foul::against(Side::Client);
        let bytes = foul.record(HANDSHAKE, &[4, length, 0, 0], 0);
        foul.check(&bytes, Err(error.into()), Some(alert));
    }
}

#[test]
fn heads_are_looked_at() {
    let check = |bytes: &[u8], error: Error, alert| {
        Foul::against(Side::Server).check(bytes, Err(error), Some(alert));
    };
    let content = || InvalidMessage::InvalidContentType.into();
    check(
        &[21, 3, 3, 0, 2, 2, 0],
        content(),
        AlertDescription::UnexpectedMessage,
    );
    check(
        &[20, 3, 3, 0, 1, 1],
        content(),
        AlertDescription::UnexpectedMessage,
    );
    check(
        &[23, 3, 3, 0, 0],
        Error::DecryptError,
        AlertDescription::BadRecordMac,
    );
    check(
        &[23, 3, 3, 0, 2, 0, 0],
        Error::DecryptError,
        AlertDescription::BadRecordMac,
    );
    let oversized = Error::PeerSentOversizedRecord;
    check(
        &[23, 3, 3, 0x41, 1],
        oversized,
        AlertDescription::RecordOverflow,
    );

    let mut foul = Foul::against(Side::Server);
    let good = foul.record(ALERT, &[1, 90], 0);
    let good = [good, foul.record(DATA, b"data", 0)].concat();
    foul.check(&good, Ok(b"data"), None);

    // A record twice.
    let mut foul = Foul::against(Side::Server);
    let twice = foul.record(DATA, b"data", 0).repeat(2);
    foul.check(
        &twice,
        Err(Error::DecryptError),
        Some(AlertDescription::BadRecordMac),
    );
}

#[test]
fn bytes_that_are_no_handshake_are_answered_at_once() {
    for bytes in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        b"PRI * HTTP/2.0",
        &[22, 3, 1, 255, 255, 1],
        &[0; 7],
    ] {
        for side in SIDES {
            let mut negotiation = Setting::plain(SUITES[0], side).negotiation();
            negotiation.advance().unwrap();
            let said = negotiation.outgoing().len();
            negotiation.written(said);
            negotiation.receive(bytes);
            assert!(negotiation.advance().is_err(), "{bytes:?}");
            assert_eq!(negotiation.outgoing()[0], ALERT, "{bytes:?}");
        }
    }
}

/// What happens on a connection.
#[derive(Clone, Debug)]
enum Act {
    Ours(Vec<usize>),
    Theirs(usize),
    Renew,
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        4 => prop::collection::vec(0..40_000_usize, 1..4).prop_map(Act::Ours),
        4 => (1..80_000_usize).prop_map(Act::Theirs),
        1 => Just(Act::Renew),
    ]
}

fn setting() -> impl Strategy<Value = (usize, Side, Option<usize>, usize)> {
    let fragment = prop::option::of(32..17_000_usize);
    let segment = prop_oneof![1..50_usize, 50..20_000_usize];
    (
        0..3_usize,
        prop::sample::select(&SIDES[..]),
        fragment,
        segment,
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn any_conversation_arrives(
        (suite, side, fragment, segment) in setting(),
        limit in 3..40_u64,
        acts in prop::collection::vec(act(), 1..12),
    ) {
        let fragment = fragment.map(|fragment| fragment.min(16_389));
        let mut pair = Setting { fragment, segment, ..Setting::plain(SUITES[suite], side) }.pair();
        pair.ours.out.limit = limit;
        for act in acts {
            match act {
                Act::Ours(lengths) => {
                    let pieces: Vec<_> = lengths.into_iter().map(noise).collect();
                    let pieces: Vec<&[u8]> = pieces.iter().map(|piece| &**piece).collect();
                    pair.send_theirs(&pieces, segment);
                }
                Act::Theirs(length) => pair.send_ours(&noise(length), segment),
                Act::Renew => pair.theirs.refresh_traffic_keys().unwrap(),
            }
        }
    }

    /// Bytes that nobody sealed end the session, or wait for more; nothing comes of them.
    #[test]
    fn noise_is_never_believed(
        bytes in prop::collection::vec(any::<u8>(), 1..2000),
        head in any::<bool>(),
        segment in 1..300_usize,
    ) {
        let mut pair = Setting::plain(SUITES[0], Side::Server).pair();
        let head: &[u8] = if head { &[23, 3, 3, 0, 200] } else { b"" };
        let _ = pair.receive(&[head, &bytes].concat(), segment);
        prop_assert!(pair.got.is_empty() && !pair.ours.ended());
        prop_assert!(pair.partial.len() < LONGEST);
    }

    /// A stream with one wrong byte brings what was before it, and no more.
    #[test]
    fn damage_is_noticed(at in 0..50_000_usize, with in 1..=255_u8, segment in 1..9000_usize) {
        let mut pair = Setting::plain(SUITES[2], Side::Client).pair();
        let plaintext = noise(60_000);
        pair.theirs.writer().write_all(&plaintext).unwrap();
        let mut bytes = take(&mut pair.theirs);
        bytes[at] ^= with;
        let outcome = pair.receive(&bytes, segment);
        let sound = at / (HEAD + PLAINTEXT + TAIL) * PLAINTEXT;
        prop_assert!(pair.got == plaintext[..sound]);
        prop_assert!(outcome.is_err() || !pair.partial.is_empty());
    }

    /// Well sealed nonsense.
    #[test]
    fn no_content_is_a_panic(
        side in prop::sample::select(&SIDES[..]),
        records in prop::collection::vec(
            (prop_oneof![Just(21_u8), Just(22), Just(23), any::<u8>()],
             prop_oneof![
                 prop::collection::vec(any::<u8>(), 0..300),
                 prop::collection::vec(prop::sample::select(vec![0_u8, 1, 2, 4, 24]), 0..12),
             ],
             0..20_usize),
            1..40,
        ),
        segment in 1..500_usize,
    ) {
        let mut foul = Foul::against(side);
        for (kind, content, padding) in records {
            let record = foul.record(kind, &content, padding);
            if foul.ours.receive(&record, segment).is_err() {
                break;
            }
        }
        prop_assert!(foul.ours.ours.waiting() < 200);
    }

    /// A handshake that goes wrong somewhere fails, waits, or comes to be all the same; whatever
    /// remains of it can be finished with.
    #[test]
    fn handshakes_may_go_wrong_anywhere(
        side in prop::sample::select(&SIDES[..]),
        fragment in prop::option::of(32..200_usize),
        at in 0..2500_usize,
        change in prop::option::of(1..=255_u8),
        insert in prop::collection::vec(any::<u8>(), 0..30),
        segment in 1..800_usize,
    ) {
        let setting = Setting { fragment, ..Setting::plain(SUITES[0], side) };
        let (mut negotiation, mut theirs) = (setting.negotiation(), setting.theirs());
        let mut sent = 0;
        let mut done = false;
        for _ in 0..4 {
            let outgoing = negotiation.outgoing().to_vec();
            negotiation.written(outgoing.len());
            let _ = give(&mut theirs, &outgoing, usize::MAX);
            let mut bytes = take(&mut theirs);
            if let Some(place) = at.checked_sub(sent) && place < bytes.len() {
                bytes[place] ^= change.unwrap_or(0);
                bytes.splice(place..place, insert.clone());
            }
            sent += bytes.len();
            for segment in bytes.chunks(segment) {
                negotiation.receive(segment);
            }
            match negotiation.advance() {
                Ok(ready) => done = ready,
                Err(_) => return Ok(()),
            }
        }
        if done {
            prop_assert!(negotiation.finish().is_ok());
        }
    }
}
