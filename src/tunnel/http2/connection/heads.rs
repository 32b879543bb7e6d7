//! Heads of messages: requests, responses, trailers.

use crate::tunnel::http2::connection::{CONTINUATIONS, Connection, Drain, Role};
use crate::tunnel::http2::fields::Fields;
use crate::tunnel::http2::flow::Window;
use crate::tunnel::http2::frame::{self, Head, flag};
use crate::tunnel::http2::hpack::encoder;
use crate::tunnel::http2::pieces::Queue;
use crate::tunnel::http2::reason::{Failure, Reason};
use crate::tunnel::http2::table::{Entry, Slot, is};

use crate::tunnel::http2::connection::input::Block;

/// A block may be longer than what it says, by Huffman codes that nobody would choose, at most
/// by this factor.
const SPREAD: usize = 4;
/// The answer to a request whose head is too long (RFC 6585 §5).
const HEAD_TOO_LONG: u16 = 431;

impl Connection {
    pub(super) fn headers(&mut self, head: Head, payload: &[u8]) -> Result<(), Failure> {
        if head.stream.is_multiple_of(2) {
            // The client's streams have odd identifiers, and nobody else opens any.
            return Self::broken(Reason::PROTOCOL_ERROR, "HEADERS on no client's stream");
        }
        let mut block = frame::unpad(head, payload)?;
        if head.has(flag::PRIORITY) {
            block = block.split_at_checked(5).ok_or(frame::wrong_size())?.1;
        }
        let end = head.has(flag::END_STREAM);
        if head.has(flag::END_HEADERS) {
            return self.block(head.stream, end, block);
        }
        self.input.block = Some(Block {
            stream: head.stream,
            end,
            bytes: block.to_vec(),
            continuations: 0,
        });
        Ok(())
    }

    pub(super) fn continuation(&mut self, head: Head, payload: &[u8]) -> Result<(), Failure> {
        let Some(block) = &mut self.input.block else {
            return Self::broken(Reason::PROTOCOL_ERROR, "a header block out of sequence");
        };
        block.continuations += 1;
        let most = self.config.header_list as usize * SPREAD;
        let bytes = block.bytes.len() + payload.len();
        if block.continuations > CONTINUATIONS || bytes > most {
            return Self::broken(Reason::ENHANCE_YOUR_CALM, "a header block without end");
        }
        block.bytes.extend_from_slice(payload);
        if !head.has(flag::END_HEADERS) {
            return Ok(());
        }
        let Some(block) = self.input.block.take() else {
            return Ok(());
        };
        self.block(block.stream, block.end, &block.bytes)
    }

    /// A header block is whole. It is decoded whatever comes of it: the table must keep in step.
    fn block(&mut self, stream: u32, end: bool, block: &[u8]) -> Result<(), Failure> {
        let mut fields = Fields::new(self.config.header_list as usize);
        if let Err(error) = self.decoder.decode(block, &mut fields) {
            return Self::broken(Reason::COMPRESSION_ERROR, error.0);
        }
        if fields.is_far_over() {
            return Self::broken(Reason::ENHANCE_YOUR_CALM, "a head without end");
        }
        if let Some(slot) = self.table.find(stream) {
            let entry = self.table.entry(slot);
            return match self.config.role {
                _ if entry.is(is::GOT_END) => self.provoke(slot, Reason::STREAM_CLOSED),
                Role::Client if entry.status == 0 => self.response(slot, end, &fields),
                _ => self.trailers(slot, stream, end, &fields),
            };
        }
        match self.config.role {
            Role::Client => {
                self.must_have_been(stream)?;
                self.answer_late(stream)
            }
            Role::Server if stream > self.last => self.request(stream, end, fields),
            Role::Server if self.reset.contains(&stream) => Ok(()),
            Role::Server => Self::broken(Reason::PROTOCOL_ERROR, "a stream below the last one"),
        }
    }

    fn response(&mut self, slot: Slot, end: bool, fields: &Fields) -> Result<(), Failure> {
        if fields.is_over() {
            return self.provoke(slot, Reason::PROTOCOL_ERROR);
        }
        match fields.check_response() {
            // An interim response says nothing here; one that ends, or switches, is none.
            Ok(status) if status < 200 && status != 101 && !end => self.idle_frame(),
            Ok(status) if status >= 200 => {
                let entry = self.table.entry(slot);
                let id = entry.id;
                entry.status = status;
                if status == 200 {
                    entry.facts |= is::ANSWERED;
                }
                let unwanted = entry.is(is::UNWANTED).then_some(entry.reset);
                if let Some(reason) = unwanted {
                    self.send_reset(slot, reason);
                    return Ok(());
                }
                self.wake(slot);
                if end {
                    self.got_end(id);
                }
                Ok(())
            }
            _ => self.provoke(slot, Reason::PROTOCOL_ERROR),
        }
    }

    fn trailers(
        &mut self,
        slot: Slot,
        stream: u32,
        end: bool,
        fields: &Fields,
    ) -> Result<(), Failure> {
        if !end || fields.check_trailers().is_err() {
            return self.provoke(slot, Reason::PROTOCOL_ERROR);
        }
        self.got_end(stream);
        Ok(())
    }

    fn request(&mut self, stream: u32, end: bool, fields: Fields) -> Result<(), Failure> {
        if matches!(self.drain, Drain::Behind(_)) {
            // The peer knows by our GOAWAY that it was not looked at.
            return Ok(());
        }
        self.last = stream;
        if self.table.opened() >= self.config.streams as usize {
            return self.turn_away(stream, end, Reason::REFUSED_STREAM);
        }
        if fields.is_over() {
            self.write_head(stream, flag::END_STREAM, |block| {
                encoder::status(block, HEAD_TOO_LONG);
            });
            return self.turn_away(stream, end, Reason::NO_ERROR);
        }
        if fields.check_request().is_err() {
            self.turn_away(stream, end, Reason::PROTOCOL_ERROR)?;
            return self.provoked();
        }
        let facts = is::HELD | is::OPEN | is::NEW | if end { is::GOT_END } else { 0 };
        let slot = self.table.open(self.entry(stream, facts));
        self.arrivals.push_back((slot, fields));
        Ok(())
    }

    /// Resets a stream that never gets an entry.
    fn turn_away(&mut self, stream: u32, end: bool, reason: Reason) -> Result<(), Failure> {
        frame::reset(&mut self.out, stream, reason);
        if !end {
            self.remember(stream);
        }
        self.answer_frame()
    }

    pub(super) fn entry(&self, id: u32, facts: u16) -> Entry {
        Entry {
            waker: None,
            id,
            facts,
            status: 0,
            send: Window::new(self.peer.window),
            receive: Window::new(self.window),
            owed: 0,
            unread: 0,
            reserved: 0,
            reset: Reason::NO_ERROR,
            inbox: Queue::EMPTY,
        }
    }

    /// Writes HEADERS with the block that `write` makes.
    pub(super) fn write_head(&mut self, id: u32, flags: u8, write: impl FnOnce(&mut Vec<u8>)) {
        let mut block = Vec::with_capacity(256);
        if !std::mem::replace(&mut self.encoded, true) {
            block.push(encoder::NO_TABLE);
        }
        write(&mut block);
        let most = self.peer.frame as usize;
        frame::headers(&mut self.out, id, flags, &block, most);
    }
}
