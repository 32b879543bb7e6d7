//! What frames do, heads aside.

use bytes::Bytes;

use crate::tunnel::http2::connection::{
    ANSWERS, Connection, DRAIN, Drain, IDLE_FRAMES, PING, Ping, RESETS_PENDING, RESETS_PROVOKED,
    RESETS_REMEMBERED, Role, STEP,
};
use crate::tunnel::http2::flow;
use crate::tunnel::http2::frame::{self, Head, flag, kind, setting};
use crate::tunnel::http2::reason::{Failure, Reason};
use crate::tunnel::http2::table::{Slot, is};

const PROTOCOL: Reason = Reason::PROTOCOL_ERROR;

impl Connection {
    /// Handles a whole frame that is not DATA.
    pub(super) fn frame(&mut self, head: Head, payload: &[u8]) -> Result<(), Failure> {
        match head.kind {
            kind::HEADERS => self.headers(head, payload),
            kind::CONTINUATION => self.continuation(head, payload),
            kind::PRIORITY => self.priority(head),
            kind::RST_STREAM => self.reset_by_peer(head, payload),
            kind::SETTINGS => self.settings(head, payload),
            kind::PUSH_PROMISE => Self::broken(PROTOCOL, "a push that was not allowed"),
            kind::PING => self.pinged(head, payload),
            kind::GOAWAY => self.goaway(head, payload),
            kind::WINDOW_UPDATE => self.window_update(head, payload),
            _ => self.idle_frame(),
        }
    }

    /// Counts a frame that carries nothing.
    pub(super) fn idle_frame(&mut self) -> Result<(), Failure> {
        self.idle_frames += 1;
        match self.idle_frames > IDLE_FRAMES {
            true => Self::broken(Reason::ENHANCE_YOUR_CALM, "a flood of empty frames"),
            false => Ok(()),
        }
    }

    /// Counts a frame that has to be answered.
    pub(super) fn answer_frame(&mut self) -> Result<(), Failure> {
        self.answers += 1;
        match self.answers > ANSWERS {
            true => Self::broken(Reason::ENHANCE_YOUR_CALM, "a flood of frames to answer"),
            false => Ok(()),
        }
    }

    fn priority(&mut self, head: Head) -> Result<(), Failure> {
        match (head.stream, head.length) {
            (0, _) => Self::broken(PROTOCOL, "PRIORITY without a stream"),
            (_, 5) => self.idle_frame(),
            _ => Err(frame::wrong_size()),
        }
    }

    fn settings(&mut self, head: Head, payload: &[u8]) -> Result<(), Failure> {
        if head.stream != 0 {
            return Self::broken(PROTOCOL, "SETTINGS of a stream");
        }
        if head.has(flag::ACK) {
            return match payload {
                [] => self.settings_acknowledged(),
                _ => Err(frame::wrong_size()),
            };
        }
        if !std::mem::replace(&mut self.peer.greeted, true) {
            // Without a word there is no limit (RFC 9113 §6.5.2).
            self.peer.streams = u32::MAX;
        }
        let mut window = None;
        for (name, value) in frame::read_settings(payload)? {
            if name == setting::INITIAL_WINDOW_SIZE {
                window = Some(value);
            }
            self.setting(name, value)?;
        }
        if let Some(size) = window {
            // Once: it touches all streams, and a frame has room for thousands of changes.
            self.resize_by_peer(size)?;
        }
        frame::settings_ack(&mut self.out);
        self.answer_frame()
    }

    fn setting(&mut self, name: u16, value: u32) -> Result<(), Failure> {
        match (name, value) {
            (setting::ENABLE_PUSH, 0) => Ok(()),
            (setting::ENABLE_PUSH, 1) if self.config.role == Role::Server => Ok(()),
            (setting::ENABLE_PUSH, _) => Self::broken(PROTOCOL, "a value of ENABLE_PUSH"),
            (setting::INITIAL_WINDOW_SIZE, size) if size > flow::LARGEST => Self::broken(
                Reason::FLOW_CONTROL_ERROR,
                "an INITIAL_WINDOW_SIZE that is too large",
            ),
            (setting::INITIAL_WINDOW_SIZE, _) => Ok(()),
            (setting::MAX_FRAME_SIZE, 16_384..=16_777_215) => {
                self.peer.frame = value;
                Ok(())
            }
            (setting::MAX_FRAME_SIZE, _) => Self::broken(PROTOCOL, "a value of MAX_FRAME_SIZE"),
            (setting::MAX_CONCURRENT_STREAMS, _) => {
                self.peer.streams = value;
                Ok(())
            }
            // The size of a header table is of no matter to an encoder that has none.
            _ => Ok(()),
        }
    }

    /// Changes the send windows of all streams (RFC 9113 §6.9.2).
    fn resize_by_peer(&mut self, size: u32) -> Result<(), Failure> {
        let by = i64::from(size) - i64::from(self.peer.window);
        self.peer.window = size;
        if by == 0 {
            return Ok(());
        }
        for slot in self.table.slots() {
            let entry = self.table.entry(slot);
            if entry.send.shift(by).is_err() {
                return Self::broken(Reason::FLOW_CONTROL_ERROR, "a window beyond the largest");
            }
            if by > 0 {
                self.wake(slot);
            }
        }
        Ok(())
    }

    /// The peer uses our new window from here on.
    fn settings_acknowledged(&mut self) -> Result<(), Failure> {
        let Some(size) = self.announced.take() else {
            return Self::broken(PROTOCOL, "an answer to no SETTINGS");
        };
        let by = i64::from(size) - i64::from(self.window);
        self.window = size;
        for slot in self.table.slots() {
            // Within the largest window, as all that this side announces.
            let _ = self.table.entry(slot).receive.shift(by);
            // What was little to give back may now be what the peer waits for.
            self.replenish(slot);
        }
        Ok(())
    }

    fn pinged(&mut self, head: Head, payload: &[u8]) -> Result<(), Failure> {
        if head.stream != 0 {
            return Self::broken(PROTOCOL, "PING of a stream");
        }
        let payload: [u8; 8] = payload.try_into().map_err(|_| frame::wrong_size())?;
        if !head.has(flag::ACK) {
            frame::ping(&mut self.out, flag::ACK, payload);
            return self.answer_frame();
        }
        match (payload, self.drain) {
            (PING, _) if self.ping == Ping::Sent => self.ping = Ping::Answered,
            (DRAIN, Drain::Asked) => {
                self.drain = Drain::Known;
                frame::ping(&mut self.out, 0, DRAIN);
            }
            (DRAIN, Drain::Known) => self.drain = Drain::Settled,
            _ => {}
        }
        Ok(())
    }

    fn goaway(&mut self, head: Head, payload: &[u8]) -> Result<(), Failure> {
        if head.stream != 0 {
            return Self::broken(PROTOCOL, "GOAWAY of a stream");
        }
        let (last, rest) = payload.split_first_chunk().ok_or(frame::wrong_size())?;
        let (code, _) = rest.split_first_chunk().ok_or(frame::wrong_size())?;
        let last = u32::from_be_bytes(*last) & frame::LAST_ID;
        let reason = Reason::from_code(u32::from_be_bytes(*code));
        if self.gone.is_some_and(|(before, _)| last > before) {
            return Self::broken(PROTOCOL, "a GOAWAY that takes back another");
        }
        self.gone = Some((last, reason));
        if self.config.role == Role::Client {
            for slot in self.table.slots() {
                let entry = self.table.entry(slot);
                if entry.id > last {
                    entry.facts |= is::LOST | is::UNSEEN;
                    self.drop_unfinished(slot);
                    self.wake(slot);
                    self.close(slot);
                }
            }
        }
        Ok(())
    }

    fn window_update(&mut self, head: Head, payload: &[u8]) -> Result<(), Failure> {
        let by = frame::number(payload)? & frame::LAST_ID;
        if head.stream == 0 {
            if by == 0 {
                return Self::broken(PROTOCOL, "a WINDOW_UPDATE of nothing");
            }
            if self.send.shift(i64::from(by)).is_err() {
                return Self::broken(Reason::FLOW_CONTROL_ERROR, "a window beyond the largest");
            }
            self.relieve();
            return Ok(());
        }
        let Some(slot) = self.table.find(head.stream) else {
            return self.must_have_been(head.stream);
        };
        if by == 0 {
            return self.provoke(slot, PROTOCOL);
        }
        if self.table.entry(slot).send.shift(i64::from(by)).is_err() {
            return self.provoke(slot, Reason::FLOW_CONTROL_ERROR);
        }
        self.wake(slot);
        Ok(())
    }

    fn reset_by_peer(&mut self, head: Head, payload: &[u8]) -> Result<(), Failure> {
        let code = frame::number(payload)?;
        let Some(slot) = self.table.find(head.stream) else {
            return self.must_have_been(head.stream);
        };
        let entry = self.table.entry(slot);
        entry.facts |= is::RESET;
        entry.reset = Reason::from_code(code);
        if entry.is(is::NEW) {
            self.abandoned += 1;
            if self.abandoned > RESETS_PENDING {
                return Self::broken(Reason::ENHANCE_YOUR_CALM, "a flood of resets");
            }
        }
        self.drop_unfinished(slot);
        self.wake(slot);
        self.close(slot);
        Ok(())
    }

    /// What waits is void, unless it is all there ever was.
    pub(super) fn drop_unfinished(&mut self, slot: Slot) {
        let entry = self.table.entry(slot);
        if !entry.is(is::GOT_END) {
            self.pieces.clear(&mut entry.inbox);
        }
    }

    /// A stream that is not open must have been, for this frame to be no error.
    pub(super) fn must_have_been(&self, stream: u32) -> Result<(), Failure> {
        let opened = match self.config.role {
            Role::Client => stream < self.next,
            Role::Server => stream <= self.last || matches!(self.drain, Drain::Behind(_)),
        };
        match stream != 0 && stream % 2 == 1 && opened {
            true => Ok(()),
            false => Self::broken(PROTOCOL, "a frame for a stream that was never opened"),
        }
    }

    /// The head of a DATA frame has come: holds it against the windows.
    pub(super) fn begin_data(&mut self, head: Head) -> Result<(), Failure> {
        if self.receive.take(head.length).is_err() {
            let what = "more than the connection's window";
            return Self::broken(Reason::FLOW_CONTROL_ERROR, what);
        }
        if head.length == 0 && !head.has(flag::END_STREAM) {
            self.idle_frame()?;
        }
        let Some(slot) = self.table.find(head.stream) else {
            self.must_have_been(head.stream)?;
            return self.answer_late(head.stream);
        };
        let client = self.config.role == Role::Client;
        let entry = self.table.entry(slot);
        if entry.is(is::GOT_END) {
            return self.provoke(slot, Reason::STREAM_CLOSED);
        }
        if client && entry.status == 0 {
            return self.provoke(slot, PROTOCOL);
        }
        if entry.receive.take(head.length).is_err() {
            return self.provoke(slot, Reason::FLOW_CONTROL_ERROR);
        }
        Ok(())
    }

    /// A frame came for a stream that has ended. If that is not what must be expected after our
    /// own reset, the peer is told.
    pub(super) fn answer_late(&mut self, stream: u32) -> Result<(), Failure> {
        let behind = matches!(self.drain, Drain::Behind(last) if stream > last);
        if behind || self.reset.contains(&stream) {
            return Ok(());
        }
        self.remember(stream);
        frame::reset(&mut self.out, stream, Reason::STREAM_CLOSED);
        self.answer_frame()
    }

    /// Payload for a stream.
    pub(super) fn deliver(&mut self, stream: u32, bytes: Bytes) {
        let count = u32::try_from(bytes.len()).expect("at most a frame");
        let Some(slot) = self.table.find(stream) else {
            return self.owe(count);
        };
        let server = self.config.role == Role::Server;
        let entry = self.table.entry(slot);
        let answered = entry.is(is::ANSWERED);
        // What follows a refusal is not for the application.
        if !entry.is(is::HELD) || !(server || answered) {
            return self.owe(count);
        }
        entry.unread += count;
        self.unread += count as usize;
        // Before the answer nobody takes it, and it should not hold on to a large buffer.
        self.pieces.push(&mut entry.inbox, bytes, !answered);
        self.wake(slot);
    }

    /// Bytes of the connection's window have been delivered or dropped.
    pub(super) fn owe(&mut self, count: u32) {
        self.owed += count;
        if self.owed >= self.config.connection_window / STEP {
            let owed = std::mem::take(&mut self.owed);
            // No more than was taken from it before.
            let _ = self.receive.shift(i64::from(owed));
            frame::window_update(&mut self.out, 0, owed);
        }
    }

    /// Padding is room for which nobody waits.
    pub(super) fn padding(&mut self, stream: u32, count: u32) {
        self.owe(count);
        if let Some(slot) = self.table.find(stream) {
            self.table.entry(slot).owed += count;
            self.replenish(slot);
        }
    }

    /// END_STREAM has come.
    pub(super) fn got_end(&mut self, stream: u32) {
        let Some(slot) = self.table.find(stream) else {
            return;
        };
        let entry = self.table.entry(slot);
        entry.facts |= is::GOT_END;
        let done = entry.is(is::SENT_END);
        self.wake(slot);
        if done {
            self.close(slot);
        }
    }

    /// Gives the peer room for what was delivered, in large steps.
    pub(super) fn replenish(&mut self, slot: Slot) {
        let step = self.window / 2;
        let entry = self.table.entry(slot);
        if entry.owed == 0 || entry.owed < step || entry.is(is::GOT_END) || !entry.is(is::OPEN) {
            return;
        }
        let owed = std::mem::take(&mut entry.owed);
        // No more than was taken from it before.
        let _ = entry.receive.shift(i64::from(owed));
        frame::window_update(&mut self.out, entry.id, owed);
    }

    /// The peer broke a rule on one stream: it is reset, and its holder told.
    pub(super) fn provoke(&mut self, slot: Slot, reason: Reason) -> Result<(), Failure> {
        let entry = self.table.entry(slot);
        entry.facts |= is::BROKEN;
        entry.reset = reason;
        self.drop_unfinished(slot);
        self.wake(slot);
        self.send_reset(slot, reason);
        self.provoked()
    }

    /// Counts a stream that the peer made us reset.
    pub(super) fn provoked(&mut self) -> Result<(), Failure> {
        self.provoked += 1;
        match self.provoked > RESETS_PROVOKED {
            true => Self::broken(Reason::ENHANCE_YOUR_CALM, "too many broken streams"),
            false => Ok(()),
        }
    }

    /// Sends RST_STREAM and takes the stream off the wire.
    pub(super) fn send_reset(&mut self, slot: Slot, reason: Reason) {
        let entry = self.table.entry(slot);
        let (id, ended) = (entry.id, entry.is(is::GOT_END));
        frame::reset(&mut self.out, id, reason);
        if !ended {
            self.remember(id);
        }
        self.close(slot);
    }

    pub(super) fn remember(&mut self, id: u32) {
        if self.reset.len() == RESETS_REMEMBERED {
            self.reset.pop_front();
        }
        self.reset.push_back(id);
    }
}
