//! What the holders of streams do with them.

use std::io::IoSlice;
use std::task::Waker;

use bytes::Bytes;

use crate::tunnel::http2::connection::{Connection, Role, Sink};
use crate::tunnel::http2::fields::Fields;
use crate::tunnel::http2::frame::{Head, flag, kind};
use crate::tunnel::http2::hpack::encoder;
use crate::tunnel::http2::reason::Reason;
use crate::tunnel::http2::table::{Slot, is};

/// Whether a stream may send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Room {
    /// So many bytes, now.
    Bytes(u32),
    /// Nothing now; its holder is woken when that may have changed.
    None,
    /// Nothing any more.
    Ended,
}

/// What has ended a stream before both of its ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// The peer has reset it.
    Reset(Reason),
    /// This side has reset it, because the peer broke a rule.
    Broken(Reason),
    /// The peer went away without looking at it.
    Unseen,
    /// The connection ended under it.
    Lost,
    /// Its own holder has reset it.
    Closed,
}

impl Connection {
    /// Opens a stream with a CONNECT to `authority` and the fields that `more` writes.
    pub(crate) fn open(&mut self, authority: &[u8], more: impl FnOnce(&mut Vec<u8>)) -> Slot {
        let id = self.next;
        self.next += 2;
        self.write_head(id, 0, |block| {
            encoder::connect(block, authority);
            more(block);
        });
        self.table.open(self.entry(id, is::HELD | is::OPEN))
    }

    /// The next request, for whoever holds its stream from now on.
    pub(crate) fn next_arrival(&mut self) -> Option<(Slot, Fields)> {
        while let Some((slot, fields)) = self.arrivals.pop_front() {
            let entry = self.table.entry(slot);
            entry.facts &= !is::NEW;
            if entry.is(is::OPEN) {
                return Some((slot, fields));
            }
            // Reset before anybody looked.
            self.abandoned = self.abandoned.saturating_sub(1);
            self.release(slot);
        }
        None
    }

    /// Answers a request; whether it could still be answered.
    pub(crate) fn answer(&mut self, slot: Slot, status: u16, end: bool) -> bool {
        let entry = self.table.entry(slot);
        if !entry.is(is::OPEN) || entry.is_any(is::ANSWERED | is::SENT_END) {
            return false;
        }
        let id = entry.id;
        if status == 200 {
            entry.facts |= is::ANSWERED;
        }
        let flags = if end { flag::END_STREAM } else { 0 };
        self.write_head(id, flags, |block| encoder::status(block, status));
        if end {
            self.sent_end(slot);
        }
        true
    }

    /// The status of the response, once it has come.
    pub(crate) fn status(&self, slot: Slot) -> Option<u16> {
        Some(self.table.peek(slot).status).filter(|status| *status > 0)
    }

    /// What ended the stream early, if something did.
    pub(crate) fn fate(&self, slot: Slot) -> Option<Fate> {
        let entry = self.table.peek(slot);
        if entry.is(is::RESET) {
            Some(Fate::Reset(entry.reset))
        } else if entry.is(is::BROKEN) {
            Some(Fate::Broken(entry.reset))
        } else if entry.is(is::UNSEEN) {
            Some(Fate::Unseen)
        } else if entry.is(is::LOST) {
            Some(Fate::Lost)
        } else if entry.is(is::UNWANTED) {
            Some(Fate::Closed)
        } else if entry.is(is::OPEN) || entry.is(is::SENT_END | is::GOT_END) {
            None
        } else {
            Some(Fate::Closed)
        }
    }

    /// Hands over what has arrived; whether END_STREAM is behind it.
    pub(crate) fn take(&mut self, slot: Slot, mut to: impl FnMut(Bytes)) -> bool {
        let entry = self.table.entry(slot);
        while let Some(piece) = self.pieces.pop(&mut entry.inbox) {
            to(piece);
        }
        entry.is(is::GOT_END)
    }

    /// Wakes `waker` at the next news of the stream.
    pub(crate) fn watch(&mut self, slot: Slot, waker: &Waker) {
        let held = &mut self.table.entry(slot).waker;
        if !held.as_ref().is_some_and(|held| held.will_wake(waker)) {
            *held = Some(waker.clone());
        }
    }

    /// `count` bytes that were taken over have been delivered.
    pub(crate) fn consumed(&mut self, slot: Slot, count: usize) {
        let count = u32::try_from(count).expect("bounded by the window");
        let entry = self.table.entry(slot);
        // Of a stream that was shed nothing waits any more.
        let count = count.min(entry.unread);
        entry.owed += count;
        entry.unread -= count;
        self.unread -= count as usize;
        self.replenish(slot);
        self.owe(count);
    }

    /// Sets up to `want` bytes of the connection's window aside for the stream.
    pub(crate) fn room(&mut self, slot: Slot, want: u32) -> Room {
        let entry = self.table.entry(slot);
        if !entry.is(is::OPEN) || entry.is_any(is::SENT_END | is::UNWANTED) {
            return Room::Ended;
        }
        let own = entry.send.room().min(want);
        let all = self.send.room() + entry.reserved;
        let room = own.min(all);
        let over = std::mem::replace(&mut entry.reserved, room);
        if room >= over {
            self.send.take(room - over).expect("within the room");
        } else {
            self.give_back(over - room);
        }
        if room > 0 {
            return Room::Bytes(room);
        }
        if own > 0 {
            self.starve(slot);
        }
        Room::None
    }

    /// The stream waits for room on the connection or on the wire.
    pub(crate) fn starve(&mut self, slot: Slot) {
        let entry = self.table.entry(slot);
        if !entry.is(is::STARVED) {
            entry.facts |= is::STARVED;
            self.starved.push(slot);
        }
    }

    /// Gives back what [`room`](Self::room) set aside.
    pub(crate) fn rest(&mut self, slot: Slot) {
        let reserved = std::mem::take(&mut self.table.entry(slot).reserved);
        self.give_back(reserved);
    }

    /// Writes `payload`, and END_STREAM with its last frame if `end`. Nothing is written, and
    /// `false` told, where the stream has ended or there is no room for all of it.
    pub(crate) fn send(
        &mut self,
        slot: Slot,
        payload: &[u8],
        end: bool,
        sink: &mut impl Sink,
    ) -> bool {
        let Ok(count) = u32::try_from(payload.len()) else {
            return false;
        };
        let entry = self.table.entry(slot);
        let open = entry.is(is::OPEN) && !entry.is_any(is::SENT_END | is::UNWANTED);
        let all = self.send.room() + entry.reserved;
        if !open || count > entry.send.room().min(all) {
            return false;
        }
        entry.send.take(count).expect("within its room");
        let id = entry.id;
        let reserved = std::mem::take(&mut entry.reserved);
        match reserved.checked_sub(count) {
            Some(over) => self.give_back(over),
            None => self.send.take(count - reserved).expect("within the room"),
        }
        self.flush(sink);
        let most = self.peer.frame.min(self.config.frame) as usize;
        let mut rest = payload;
        loop {
            let (now, then) = rest.split_at(rest.len().min(most));
            let last = end && then.is_empty();
            let flags = if last { flag::END_STREAM } else { 0 };
            let head = Head::new(kind::DATA, flags, id, now.len()).bytes();
            sink.write(&[IoSlice::new(&head), IoSlice::new(now)]);
            rest = then;
            if rest.is_empty() {
                break;
            }
        }
        if end {
            self.sent_end(slot);
        }
        true
    }

    fn sent_end(&mut self, slot: Slot) {
        let entry = self.table.entry(slot);
        entry.facts |= is::SENT_END;
        if entry.is(is::GOT_END) {
            self.close(slot);
        }
    }

    /// Resets the stream, unless it has ended.
    ///
    /// The reset of a request waits for its answer. A server cannot tell one that was reset before
    /// it looked from an attack (rapid reset), and ends the connection with all its streams at a
    /// handful: h2, and so ztunnel, at 20, while a scan of ports makes thousands in a second.
    pub(crate) fn reset(&mut self, slot: Slot, reason: Reason) {
        let client = self.config.role == Role::Client;
        let entry = self.table.entry(slot);
        if !entry.is(is::OPEN) {
            return;
        }
        self.pieces.clear(&mut entry.inbox);
        if !client || entry.status > 0 {
            return self.send_reset(slot, reason);
        }
        if !entry.is(is::UNWANTED) {
            entry.facts |= is::UNWANTED;
            entry.reset = reason;
            self.rest(slot);
        }
    }

    /// Sends the resets that have waited for an answer since the call before. To be called now and
    /// then.
    pub(crate) fn hurry(&mut self) {
        for slot in self.table.slots() {
            let entry = self.table.entry(slot);
            if entry.is(is::OVERDUE) {
                let reason = entry.reset;
                self.send_reset(slot, reason);
            } else if entry.is(is::UNWANTED) {
                entry.facts |= is::OVERDUE;
            }
        }
    }

    /// Nobody holds the stream any more.
    pub(crate) fn release(&mut self, slot: Slot) {
        let entry = self.table.entry(slot);
        self.pieces.clear(&mut entry.inbox);
        let unread = std::mem::take(&mut entry.unread);
        self.unread -= unread as usize;
        self.table.release(slot);
        self.owe(unread);
    }

    /// Gives up streams, first those for which most waits, until `excess` bytes less wait; how many
    /// bytes, and how many streams. One that has ended on the wire is lost to its holder alone.
    pub(crate) fn shed(&mut self, excess: usize) -> (usize, usize) {
        let mut slots = self.table.unread();
        slots.sort_by_key(|slot| std::cmp::Reverse(self.table.peek(*slot).unread));
        let (mut bytes, mut streams) = (0, 0);
        for slot in slots {
            if bytes >= excess {
                break;
            }
            let entry = self.table.entry(slot);
            let unread = std::mem::take(&mut entry.unread);
            entry.facts |= is::BROKEN;
            entry.reset = Reason::ENHANCE_YOUR_CALM;
            self.pieces.clear(&mut entry.inbox);
            if entry.is(is::OPEN) {
                self.send_reset(slot, Reason::ENHANCE_YOUR_CALM);
            }
            // What came is not whole any more: an end behind it would be a lie.
            self.table.entry(slot).facts &= !is::GOT_END;
            self.wake(slot);
            self.unread -= unread as usize;
            self.owe(unread);
            bytes += unread as usize;
            streams += 1;
        }
        (bytes, streams)
    }
}
