//! Records that wait for the socket.
//!
//! They are made where they will be written from, in lent buffers that go back when all is written.
//! The last record may still be open: its plaintext grows until it is full or [`Outbox::seal`] says
//! that nothing more comes for now.

use std::collections::VecDeque;
use std::io::IoSlice;

use rustls::{ContentType, HandshakeType};
use smallvec::SmallVec;

use crate::pipe::Spare;
use crate::tunnel::record::key::{Key, Secrets};
use crate::tunnel::record::{HEAD, PLAINTEXT, TAIL};

/// The end of a write that is kept open to share a record with the next one. A longer one gets
/// a record of its own, so that the next begins with a record.
const REMNANT: usize = 1024;
/// A full record.
const FULL: usize = HEAD + PLAINTEXT + TAIL;

/// What one write to the socket takes.
pub(crate) type Sealed<'a> = SmallVec<[IoSlice<'a>; 4]>;

/// The sending direction.
pub(crate) struct Outbox {
    key: Key,
    /// How many records a key may seal.
    pub(super) limit: u64,
    chunks: VecDeque<Chunk>,
    /// Plaintext in the open record, which is at the end of the last chunk.
    open: usize,
    waiting: usize,
    /// The answer to a key update waits, and no plaintext behind it. One is enough then.
    answers: bool,
    /// An alert was the last word.
    ended: bool,
}

/// A lent buffer with records in it.
struct Chunk {
    buffer: Spare,
    written: usize,
    sealed: usize,
}

impl Outbox {
    pub(crate) fn new(key: Key, limit: u64) -> Self {
        Self {
            key,
            limit,
            chunks: VecDeque::new(),
            open: 0,
            waiting: 0,
            answers: false,
            ended: false,
        }
    }

    /// Accepts plaintext, unless an alert was the last word.
    pub(crate) fn write(
        &mut self,
        secrets: &mut Secrets,
        pieces: &[IoSlice<'_>],
    ) -> Result<(), rustls::Error> {
        if self.ended {
            return Ok(());
        }
        let mut crossed = false;
        for piece in pieces {
            let mut rest = &**piece;
            while !rest.is_empty() {
                self.answers = false;
                let (now, later) = rest.split_at(rest.len().min(PLAINTEXT - self.open));
                if now.len() == PLAINTEXT {
                    self.seal_from(secrets, now)?;
                } else {
                    self.append(now);
                }
                if self.open == PLAINTEXT {
                    self.seal(secrets)?;
                }
                crossed |= self.open == 0;
                rest = later;
            }
        }
        if crossed && self.open > REMNANT {
            self.seal(secrets)?;
        }
        Ok(())
    }

    /// Seals what is open.
    pub(crate) fn seal(&mut self, secrets: &mut Secrets) -> Result<(), rustls::Error> {
        if self.open == 0 {
            return Ok(());
        }
        if self.is_worn() {
            // The record that says so comes first, and where it must be is taken.
            let open = self.chunks.back().map_or_else(Vec::new, |chunk| {
                chunk.buffer[chunk.sealed + HEAD..][..self.open].to_vec()
            });
            self.waiting -= std::mem::take(&mut self.open);
            self.renew(secrets)?;
            self.append(&open);
        }
        self.seal_open(ContentType::ApplicationData)
    }

    fn seal_open(&mut self, kind: ContentType) -> Result<(), rustls::Error> {
        let length = HEAD + std::mem::take(&mut self.open) + TAIL;
        let chunk = self.chunks.back_mut().expect("what is open is in a chunk");
        let record = &mut chunk.buffer[chunk.sealed..][..length];
        self.key.seal(record, kind)?;
        chunk.sealed += length;
        self.waiting += HEAD + TAIL;
        Ok(())
    }

    /// Seals a full record from where its plaintext is.
    fn seal_from(&mut self, secrets: &mut Secrets, plaintext: &[u8]) -> Result<(), rustls::Error> {
        if self.is_worn() {
            self.renew(secrets)?;
        }
        let length = HEAD + plaintext.len() + TAIL;
        let chunk = chunk(&mut self.chunks);
        let record = &mut chunk.buffer[chunk.sealed..][..length];
        self.key.seal_from(plaintext, record)?;
        chunk.sealed += length;
        self.waiting += length;
        Ok(())
    }

    /// Copies to the open record, within its size.
    fn append(&mut self, plaintext: &[u8]) {
        let chunk = match self.open {
            0 => chunk(&mut self.chunks),
            _ => self.chunks.back_mut().expect("what is open is in a chunk"),
        };
        let at = chunk.sealed + HEAD + self.open;
        chunk.buffer[at..][..plaintext.len()].copy_from_slice(plaintext);
        self.open += plaintext.len();
        self.waiting += plaintext.len();
    }

    /// Whether the key may seal only one more record.
    fn is_worn(&self) -> bool {
        self.key.used().saturating_add(1) >= self.limit
    }

    /// Takes the next key and says so. Nothing may be open.
    fn renew(&mut self, secrets: &mut Secrets) -> Result<(), rustls::Error> {
        // The body says: not requested.
        self.append(&[HandshakeType::KeyUpdate.into(), 0, 0, 1, 0]);
        self.seal_open(ContentType::Handshake)?;
        self.key = Key::new(secrets.next_sent()?)?;
        Ok(())
    }

    /// Answers a key update, unless such an answer is the last that waits already.
    pub(crate) fn answer(&mut self, secrets: &mut Secrets) -> Result<(), rustls::Error> {
        if self.answers || self.ended {
            return Ok(());
        }
        self.seal(secrets)?;
        self.renew(secrets)?;
        self.answers = true;
        Ok(())
    }

    /// Says an alert, the last word. It is not the place to fail: the session is over anyway.
    pub(crate) fn end(&mut self, secrets: &mut Secrets, alert: [u8; 2]) {
        if !self.ended && self.seal(secrets).is_ok() {
            self.append(&alert);
            let _ = self.seal_open(ContentType::Alert);
        }
        self.ended = true;
    }

    /// The bytes that were accepted and not written, roughly.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting
    }

    /// What is sealed.
    pub(crate) fn sealed(&self) -> Sealed<'_> {
        let chunks = self
            .chunks
            .iter()
            .filter(|chunk| chunk.written < chunk.sealed);
        chunks
            .map(|chunk| IoSlice::new(&chunk.buffer[chunk.written..chunk.sealed]))
            .collect()
    }

    /// Marks bytes of it as written.
    pub(crate) fn written(&mut self, mut count: usize) {
        self.waiting -= count;
        while let Some(chunk) = self.chunks.front_mut() {
            let now = count.min(chunk.sealed - chunk.written);
            chunk.written += now;
            count -= now;
            let open = self.open > 0 && self.chunks.len() == 1;
            let chunk = &self.chunks[0];
            if chunk.written < chunk.sealed || open {
                return;
            }
            self.chunks.pop_front();
        }
        self.answers = false;
    }
}

/// The chunk that the next record goes to.
fn chunk(chunks: &mut VecDeque<Chunk>) -> &mut Chunk {
    if chunks
        .back()
        .is_none_or(|chunk| chunk.sealed + FULL > Spare::SIZE)
    {
        chunks.push_back(Chunk {
            buffer: Spare::take(),
            written: 0,
            sealed: 0,
        });
    }
    chunks.back_mut().expect("there is one")
}
