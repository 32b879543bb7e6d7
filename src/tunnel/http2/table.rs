//! The streams of a connection, in little memory.
//!
//! A stream has a [`Slot`] as long as somebody holds it or it is open on the wire; slots are used
//! again. Identifiers grow, so that those on the wire are a sorted list, and finding one is a
//! binary search.

use std::task::Waker;

use crate::tunnel::http2::flow::Window;
use crate::tunnel::http2::pieces::Queue;
use crate::tunnel::http2::reason::Reason;

/// Entries that an empty table keeps room for.
const KEPT: usize = 16;

/// Where a stream is in the table. Its holder owns it until it is released.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Slot(u32);

/// Facts about a stream.
pub(crate) mod is {
    /// Somebody holds it.
    pub(crate) const HELD: u16 = 1;
    /// Frames for it may come or go.
    pub(crate) const OPEN: u16 = 1 << 1;
    /// We have sent END_STREAM.
    pub(crate) const SENT_END: u16 = 1 << 2;
    /// The peer has.
    pub(crate) const GOT_END: u16 = 1 << 3;
    /// The peer has reset it, with the code in `reset`.
    pub(crate) const RESET: u16 = 1 << 4;
    /// We have reset it with that code, because the peer broke a rule.
    pub(crate) const BROKEN: u16 = 1 << 5;
    /// The connection went away under it.
    pub(crate) const LOST: u16 = 1 << 6;
    /// The peer has said that it never looked at it.
    pub(crate) const UNSEEN: u16 = 1 << 7;
    /// A 200 was sent or has come: what arrives is for the application.
    pub(crate) const ANSWERED: u16 = 1 << 8;
    /// A request that nobody has looked at.
    pub(crate) const NEW: u16 = 1 << 9;
    /// It waits for room on the connection or the wire.
    pub(crate) const STARVED: u16 = 1 << 10;
    /// Its holder has reset it before the peer's answer, for which the reset waits.
    pub(crate) const UNWANTED: u16 = 1 << 11;
    /// That was a while ago.
    pub(crate) const OVERDUE: u16 = 1 << 12;
}

/// One stream.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) waker: Option<Waker>,
    pub(crate) id: u32,
    pub(crate) facts: u16,
    /// The status of the response, once it has come.
    pub(crate) status: u16,
    pub(crate) send: Window,
    pub(crate) receive: Window,
    /// Bytes delivered whose room the peer has not been given back.
    pub(crate) owed: u32,
    /// Bytes that have arrived and were not delivered.
    pub(crate) unread: u32,
    /// The part of the connection's window that is set aside for it.
    pub(crate) reserved: u32,
    pub(crate) reset: Reason,
    /// What has arrived. In a vacant entry nothing.
    pub(crate) inbox: Queue,
}

impl Entry {
    pub(crate) fn is(&self, facts: u16) -> bool {
        self.facts & facts == facts
    }

    pub(crate) fn is_any(&self, facts: u16) -> bool {
        self.facts & facts != 0
    }
}

/// All streams of a connection.
#[derive(Debug, Default)]
pub(crate) struct Table {
    entries: Vec<Entry>,
    vacant: Vec<u32>,
    /// Identifiers on the wire with their slots, ascending.
    open: Vec<(u32, Slot)>,
}

impl Table {
    /// Adds a stream whose identifier is above all others.
    pub(crate) fn open(&mut self, entry: Entry) -> Slot {
        let id = entry.id;
        let slot = if let Some(at) = self.vacant.pop() {
            self.entries[at as usize] = entry;
            Slot(at)
        } else {
            if self.entries.len() == self.entries.capacity() {
                // By a quarter: doubling would leave half of it empty.
                self.entries.reserve_exact(self.entries.len() / 4 + KEPT);
            }
            self.entries.push(entry);
            Slot(u32::try_from(self.entries.len() - 1).expect("far fewer streams"))
        };
        self.open.push((id, slot));
        slot
    }

    pub(crate) fn find(&self, id: u32) -> Option<Slot> {
        let found = self.open.binary_search_by_key(&id, |(id, _)| *id);
        found.ok().map(|at| self.open[at].1)
    }

    pub(crate) fn entry(&mut self, slot: Slot) -> &mut Entry {
        &mut self.entries[slot.0 as usize]
    }

    pub(crate) fn peek(&self, slot: Slot) -> &Entry {
        &self.entries[slot.0 as usize]
    }

    /// Takes a stream off the wire, and gives up its slot if nobody holds it.
    pub(crate) fn close(&mut self, slot: Slot) {
        let entry = self.entry(slot);
        entry.facts &= !is::OPEN;
        let (id, held) = (entry.id, entry.is(is::HELD));
        if let Ok(at) = self.open.binary_search_by_key(&id, |(id, _)| *id) {
            self.open.remove(at);
        }
        if !held {
            self.vacate(slot);
        }
    }

    /// Nobody holds the stream any more.
    pub(crate) fn release(&mut self, slot: Slot) {
        let entry = self.entry(slot);
        entry.facts &= !is::HELD;
        if !entry.is(is::OPEN) {
            self.vacate(slot);
        }
    }

    fn vacate(&mut self, slot: Slot) {
        let entry = self.entry(slot);
        entry.facts = 0;
        entry.waker = None;
        self.vacant.push(slot.0);
        if self.vacant.len() == self.entries.len() && self.entries.capacity() > KEPT {
            *self = Self::default();
        }
    }

    /// How many are open on the wire.
    pub(crate) fn opened(&self) -> usize {
        self.open.len()
    }

    /// Whether nobody holds any.
    pub(crate) fn held(&self) -> usize {
        self.entries.len() - self.vacant.len()
    }

    /// Those for which bytes wait, also where the wire has nothing more to do with them.
    pub(crate) fn unread(&self) -> Vec<Slot> {
        let entries = self.entries.iter().zip(0..);
        let unread = entries.filter(|(entry, _)| entry.unread > 0);
        unread.map(|(_, at)| Slot(at)).collect()
    }

    /// Those that are open on the wire.
    pub(crate) fn slots(&self) -> Vec<Slot> {
        self.open.iter().map(|(_, slot)| *slot).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_small() {
        assert!(size_of::<Entry>() + size_of::<(u32, Slot)>() <= 72);
    }
}
