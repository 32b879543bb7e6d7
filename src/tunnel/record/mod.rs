//! TLS 1.3 after and below the handshake: records, sealed and opened in place (RFC 8446 §5).
//!
//! The handshake, with all that decides whom to trust, stays rustls' business: [`Negotiation`]
//! only carries its bytes. Then rustls gives up the keys and [`Records`] goes on alone, because
//! rustls would copy what passes twice and allocate for every record:
//!
//! - received records are opened where `recv` put them, and their plaintext is handed on from there
//!   ([`Inbox`]);
//! - written plaintext is sealed into the buffer that `send` takes ([`outbox`]).
//!
//! No I/O and no clock here; [`io`](crate::tunnel::io) owns the socket. Whatever the peer sends
//! ends in plaintext, in an orderly end, or in a [`Failure`].

mod control;
mod handshake;
mod inbox;
mod key;
mod outbox;

pub(crate) use handshake::{Handshake, Negotiated, Negotiation};
pub(crate) use inbox::{Inbox, Pieces};

use std::io::IoSlice;

use rustls::{AlertDescription, ContentType, InvalidMessage, PeerMisbehaved};

use crate::tunnel::record::control::{Messages, Told};
use crate::tunnel::record::key::{Key, Secrets};
use crate::tunnel::record::outbox::Outbox;

/// The plaintext of a full record.
const PLAINTEXT: usize = 16_384;
/// The bytes of a record before its plaintext: type, version, length.
const HEAD: usize = 5;
/// The bytes of a record behind its plaintext: the true type, and the tag.
const TAIL: usize = 1 + TAG;
const TAG: usize = 16;
/// What a record may hold behind its head, with padding.
const SEALED: usize = PLAINTEXT + 256;
/// A record as long as the peer may make it.
const LONGEST: usize = HEAD + SEALED;
/// Records in a row that bring no application data; more are an attempt to keep us busy.
const FRUITLESS: u8 = 32;

/// Why a session cannot go on.
#[derive(Debug)]
pub(crate) struct Failure {
    /// The reason, in rustls' words.
    pub(crate) error: rustls::Error,
    /// The alert that the peer is due; none answers the peer's own.
    alert: Option<AlertDescription>,
}

impl Failure {
    fn new(alert: AlertDescription, error: impl Into<rustls::Error>) -> Self {
        Self {
            error: error.into(),
            alert: Some(alert),
        }
    }

    fn unexpected(error: impl Into<rustls::Error>) -> Self {
        Self::new(AlertDescription::UnexpectedMessage, error)
    }

    fn internal(error: rustls::Error) -> Self {
        Self::new(AlertDescription::InternalError, error)
    }
}

/// Both directions of an established session.
pub(crate) struct Records {
    secrets: Secrets,
    key: Key,
    messages: Messages,
    fruitless: u8,
    /// The peer has sent close_notify.
    ended: bool,
    out: Outbox,
}

impl Records {
    /// Goes on where the handshake ended.
    fn new(extracted: rustls::ExtractedSecrets, secrets: Secrets) -> Result<Self, rustls::Error> {
        let limit = secrets.confidentiality_limit();
        Ok(Self {
            key: Key::new(extracted.rx)?,
            messages: Messages::new(secrets.is_client()),
            fruitless: 0,
            ended: false,
            out: Outbox::new(Key::new(extracted.tx)?, limit),
            secrets,
        })
    }

    /// Opens the whole records at the start of `bytes`, in place, and notes where their plaintext
    /// is, in order. How many bytes were of use; the rest is the beginning of a record.
    ///
    /// # Errors
    ///
    /// The peer broke the protocol, or said that it failed. What was noted before stays true. The
    /// alert for it waits to be written.
    pub(crate) fn open(
        &mut self,
        bytes: &mut [u8],
        found: &mut Pieces,
    ) -> Result<usize, rustls::Error> {
        let opened = self.open_all(bytes, found);
        opened.map_err(|failure| {
            if let Some(alert) = failure.alert {
                self.out.end(&mut self.secrets, [2, alert.into()]);
            }
            failure.error
        })
    }

    fn open_all(&mut self, bytes: &mut [u8], found: &mut Pieces) -> Result<usize, Failure> {
        let mut at = 0;
        while !self.ended {
            let Some(length) = whole(&bytes[at..])? else {
                return Ok(at);
            };
            let plaintext = self.open_one(&mut bytes[at..at + length])?;
            if plaintext > 0 {
                let start = at + HEAD;
                found.push((start as u32, (start + plaintext) as u32));
            }
            at += length;
        }
        // Nothing counts behind a close_notify (§6.1).
        Ok(bytes.len())
    }

    /// Opens one record. How much application data it holds, behind its head.
    fn open_one(&mut self, record: &mut [u8]) -> Result<usize, Failure> {
        if ContentType::from(record[0]) != ContentType::ApplicationData {
            return Err(Failure::unexpected(InvalidMessage::InvalidContentType));
        }
        self.key
            .open(record)
            .map_err(|error| Failure::new(AlertDescription::BadRecordMac, error))?;
        let inner = &record[HEAD..record.len() - TAG];
        if inner.len() > PLAINTEXT + 1 {
            return Err(overflow());
        }
        // The type is the last byte that is not padding.
        let end = inner.iter().rposition(|byte| *byte != 0);
        let end =
            end.ok_or_else(|| Failure::unexpected(PeerMisbehaved::IllegalTlsInnerPlaintext))?;
        let (content, kind) = (&inner[..end], ContentType::from(inner[end]));
        if kind == ContentType::ApplicationData {
            if self.messages.unfinished() {
                let error = PeerMisbehaved::MessageInterleavedWithHandshakeMessage;
                return Err(Failure::unexpected(error));
            }
            if end > 0 {
                self.fruitless = 0;
                return Ok(end);
            }
        }
        self.fruitless += 1;
        if self.fruitless > FRUITLESS {
            return Err(Failure::unexpected(PeerMisbehaved::TooManyEmptyFragments));
        }
        match kind {
            ContentType::ApplicationData => {}
            ContentType::Alert => self.ended = control::is_end(content)?,
            ContentType::Handshake => {
                if let Some(told) = self.messages.read(content)? {
                    self.update(told)?;
                }
            }
            ContentType::ChangeCipherSpec => {
                let error = PeerMisbehaved::IllegalMiddleboxChangeCipherSpec;
                return Err(Failure::unexpected(error));
            }
            _ => return Err(Failure::unexpected(InvalidMessage::InvalidContentType)),
        }
        Ok(0)
    }

    /// The peer has changed its key, and may want ours changed (§4.6.3).
    fn update(&mut self, told: Told) -> Result<(), Failure> {
        let next = self.secrets.next_received().and_then(Key::new);
        self.key = next.map_err(Failure::internal)?;
        match told {
            Told::Updated => Ok(()),
            Told::UpdatedAndWants => self
                .out
                .answer(&mut self.secrets)
                .map_err(Failure::internal),
        }
    }

    /// Whether the peer has said that nothing more comes.
    pub(crate) fn ended(&self) -> bool {
        self.ended
    }

    /// Accepts plaintext. Full records are sealed; the last one stays open for more, unless it
    /// holds a good part already.
    ///
    /// # Errors
    ///
    /// The session cannot seal, and can do nothing else any more.
    pub(crate) fn write(&mut self, pieces: &[IoSlice<'_>]) -> Result<(), rustls::Error> {
        self.out.write(&mut self.secrets, pieces)
    }

    /// Seals what is open.
    ///
    /// # Errors
    ///
    /// As [`write`](Self::write).
    pub(crate) fn seal(&mut self) -> Result<(), rustls::Error> {
        self.out.seal(&mut self.secrets)
    }

    /// Says that nothing more comes, once.
    pub(crate) fn close(&mut self) {
        self.out
            .end(&mut self.secrets, [1, AlertDescription::CloseNotify.into()]);
    }

    /// The bytes that were accepted and not written, roughly.
    pub(crate) fn waiting(&self) -> usize {
        self.out.waiting()
    }

    /// What is to be written now.
    pub(crate) fn sealed(&self) -> outbox::Sealed<'_> {
        self.out.sealed()
    }

    /// Marks bytes as written.
    pub(crate) fn written(&mut self, count: usize) {
        self.out.written(count);
    }
}

/// The length of the record at the start of `bytes`, if it is there as a whole.
fn whole(bytes: &[u8]) -> Result<Option<usize>, Failure> {
    let &[_, _, _, high, low, ref rest @ ..] = bytes else {
        return Ok(None);
    };
    let length = usize::from(u16::from_be_bytes([high, low]));
    if length > SEALED {
        return Err(overflow());
    }
    Ok((rest.len() >= length).then_some(HEAD + length))
}

fn overflow() -> Failure {
    let error = rustls::Error::PeerSentOversizedRecord;
    Failure::new(AlertDescription::RecordOverflow, error)
}

#[cfg(test)]
mod tests;
