//! What a peer may still say after the handshake that is not application data: messages about keys
//! and tickets, and alerts (RFC 8446 §4.6, §6).
//!
//! Pure. Messages are read as a stream, because records may cut them anywhere. Nothing of them is
//! kept: sessions are not resumed here, so a ticket is read over.

use rustls::{AlertDescription, HandshakeType, InvalidMessage, PeerMisbehaved};

use crate::tunnel::record::Failure;

/// The longest ticket that is read over.
const LONGEST_TICKET: u32 = 1 << 16;

/// A message that changes something.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Told {
    /// The peer's next record is under its next key.
    Updated,
    /// The same, and ours is to be, too.
    UpdatedAndWants,
}

/// Handshake messages, between two records.
#[derive(Debug)]
pub(crate) struct Messages {
    is_client: bool,
    head: [u8; 4],
    /// Bytes of the head that are there.
    have: usize,
    /// Bytes of the body that are not there yet.
    left: u32,
}

impl Messages {
    /// At the end of the handshake. Only a client is given tickets.
    pub(crate) fn new(is_client: bool) -> Self {
        Self {
            is_client,
            head: [0; 4],
            have: 0,
            left: 0,
        }
    }

    /// Whether a message has begun and not ended.
    pub(crate) fn unfinished(&self) -> bool {
        self.have > 0
    }

    /// Reads what one record brings.
    pub(crate) fn read(&mut self, mut content: &[u8]) -> Result<Option<Told>, Failure> {
        if content.is_empty() {
            return Err(Failure::unexpected(InvalidMessage::InvalidEmptyPayload));
        }
        while let Some((&byte, rest)) = content.split_first() {
            if self.have < self.head.len() {
                self.head[self.have] = byte;
                self.have += 1;
                content = rest;
                if self.have == self.head.len() {
                    self.begin()?;
                }
                continue;
            }
            if self.kind() == HandshakeType::KeyUpdate {
                self.have = 0;
                let told = told(byte)?;
                if !rest.is_empty() {
                    // It would have to be under the next key.
                    let error = PeerMisbehaved::KeyEpochWithPendingFragment;
                    return Err(Failure::unexpected(error));
                }
                return Ok(Some(told));
            }
            let over = content.len().min(self.left as usize);
            content = &content[over..];
            self.left -= over as u32;
            if self.left == 0 {
                self.have = 0;
            }
        }
        Ok(None)
    }

    fn kind(&self) -> HandshakeType {
        HandshakeType::from(self.head[0])
    }

    /// Decides about a message by its head.
    fn begin(&mut self) -> Result<(), Failure> {
        let [_, high, middle, low] = self.head;
        self.left = u32::from_be_bytes([0, high, middle, low]);
        let malformed = |error| Failure::new(AlertDescription::DecodeError, error);
        match self.kind() {
            HandshakeType::KeyUpdate if self.left != 1 => {
                Err(malformed(InvalidMessage::InvalidKeyUpdate))
            }
            HandshakeType::KeyUpdate => Ok(()),
            HandshakeType::NewSessionTicket if self.is_client => match self.left {
                0 => Err(malformed(InvalidMessage::MissingData("NewSessionTicket"))),
                1..=LONGEST_TICKET => Ok(()),
                _ => Err(malformed(InvalidMessage::HandshakePayloadTooLarge)),
            },
            got_type => {
                let expect_types = vec![HandshakeType::KeyUpdate];
                Err(Failure::unexpected(
                    rustls::Error::InappropriateHandshakeMessage {
                        expect_types,
                        got_type,
                    },
                ))
            }
        }
    }
}

fn told(request: u8) -> Result<Told, Failure> {
    match request {
        0 => Ok(Told::Updated),
        1 => Ok(Told::UpdatedAndWants),
        _ => Err(Failure::new(
            AlertDescription::IllegalParameter,
            InvalidMessage::InvalidKeyUpdate,
        )),
    }
}

/// Whether an alert is the orderly end, and not one that means nothing.
///
/// # Errors
///
/// All others: a failure of the peer. An alert's level says nothing in TLS 1.3.
pub(crate) fn is_end(content: &[u8]) -> Result<bool, Failure> {
    let description = match *content {
        [_, description] => AlertDescription::from(description),
        [] => return Err(Failure::unexpected(InvalidMessage::InvalidEmptyPayload)),
        _ => {
            let error = InvalidMessage::TrailingData("Alert");
            return Err(Failure::new(AlertDescription::DecodeError, error));
        }
    };
    match description {
        AlertDescription::CloseNotify => Ok(true),
        // The close_notify that matters follows it.
        AlertDescription::UserCanceled => Ok(false),
        other => Err(Failure {
            error: rustls::Error::AlertReceived(other),
            alert: None,
        }),
    }
}
