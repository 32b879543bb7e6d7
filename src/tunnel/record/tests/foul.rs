//! A peer that seals what it likes, and bytes that are no session at all.

use super::*;

/// A peer that seals what it likes.
pub(super) struct Foul {
    pub(super) ours: Pair,
    send: Key,
    receive: Key,
}

impl Foul {
    pub(super) fn against(side: Side) -> Self {
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

    pub(super) fn record(&mut self, kind: u8, content: &[u8], padding: usize) -> Vec<u8> {
        let mut inner = [content, &[kind], &vec![0; padding]].concat();
        let last = inner.pop().unwrap();
        let mut record = [&[0; HEAD], &inner[..], &[0; TAIL]].concat();
        self.send.seal(&mut record, last.into()).unwrap();
        record
    }

    /// What we think of it, and the alert that we send.
    pub(super) fn check(
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
