//! What has arrived for a stream and has not been delivered.
//!
//! As a rule it is one piece, delivered at once. What has to wait is [settled](Inbox::settle):
//! copied, so that a reader that stalls holds its own bytes and not the buffers they came in.

use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::{Buf as _, Bytes, BytesMut};

/// Where a copied-together piece ends.
const PIECE: usize = 16 * 1024;

/// Bytes in their order.
#[derive(Default)]
pub(crate) struct Inbox {
    first: Bytes,
    rest: Option<Box<Rest>>,
}

/// More than one piece, or what was copied.
#[derive(Default)]
struct Rest {
    settled: VecDeque<Bytes>,
    /// The copy that still grows.
    tail: BytesMut,
    fresh: VecDeque<Bytes>,
    bytes: usize,
}

impl Inbox {
    pub(crate) fn len(&self) -> usize {
        self.first.len() + self.rest.as_ref().map_or(0, |rest| rest.bytes)
    }

    pub(crate) fn push(&mut self, bytes: Bytes) {
        if self.first.is_empty() && self.rest.is_none() {
            self.first = bytes;
            return;
        }
        let rest = self.rest.get_or_insert_default();
        rest.bytes += bytes.len();
        rest.fresh.push_back(bytes);
    }

    /// Sets `into` to the first pieces; how many.
    pub(crate) fn slices<'a>(&'a self, into: &mut [IoSlice<'a>]) -> usize {
        let rest = self.rest.as_deref().into_iter();
        let rest = rest.flat_map(|rest| {
            let settled = rest.settled.iter().map(|piece| &piece[..]);
            let fresh = rest.fresh.iter().map(|piece| &piece[..]);
            settled.chain([&rest.tail[..]]).chain(fresh)
        });
        let all = [&self.first[..]].into_iter().chain(rest);
        let mut count = 0;
        for (slot, piece) in into.iter_mut().zip(all.filter(|piece| !piece.is_empty())) {
            *slot = IoSlice::new(piece);
            count += 1;
        }
        count
    }

    /// Drops the first `count` bytes.
    pub(crate) fn consume(&mut self, mut count: usize) {
        let now = count.min(self.first.len());
        if now == self.first.len() {
            self.first = Bytes::new();
        } else {
            self.first.advance(now);
        }
        count -= now;
        if let Some(rest) = &mut self.rest {
            rest.consume(count);
            if rest.bytes == 0 {
                // What is silent holds nothing.
                self.rest = None;
            }
        }
    }

    /// Copies what came in buffers of others.
    pub(crate) fn settle(&mut self) {
        if self.first.is_empty() && self.rest.as_ref().is_none_or(|rest| rest.fresh.is_empty()) {
            return;
        }
        let first = std::mem::take(&mut self.first);
        let rest = self.rest.get_or_insert_default();
        rest.bytes += first.len();
        let fresh = std::mem::take(&mut rest.fresh);
        let mut more = first.len() + fresh.iter().map(Bytes::len).sum::<usize>();
        for piece in std::iter::once(first).chain(fresh) {
            let mut piece = &piece[..];
            while !piece.is_empty() {
                if rest.tail.capacity() == 0 {
                    rest.tail.reserve(more.min(PIECE));
                }
                let count = piece.len().min(PIECE - rest.tail.len());
                rest.tail.extend_from_slice(&piece[..count]);
                piece = &piece[count..];
                more -= count;
                if rest.tail.len() == PIECE {
                    rest.seal();
                }
            }
        }
    }
}

impl Rest {
    fn seal(&mut self) {
        let tail = std::mem::take(&mut self.tail);
        self.settled.push_back(tail.freeze());
    }

    fn consume(&mut self, mut count: usize) {
        self.bytes -= count;
        consume(&mut self.settled, &mut count);
        let now = count.min(self.tail.len());
        if now == self.tail.len() {
            self.tail = BytesMut::new();
        } else {
            // It grows no more, or its begin would be kept.
            self.tail.advance(now);
            self.seal();
        }
        count -= now;
        consume(&mut self.fresh, &mut count);
    }
}

fn consume(pieces: &mut VecDeque<Bytes>, count: &mut usize) {
    while *count > 0
        && let Some(first) = pieces.front_mut()
    {
        let now = first.len().min(*count);
        *count -= now;
        if now < first.len() {
            first.advance(now);
        } else {
            pieces.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn content(inbox: &Inbox) -> Vec<u8> {
        let mut slices = vec![IoSlice::new(&[]); 10_000];
        let count = inbox.slices(&mut slices);
        slices[..count].iter().flat_map(|s| s.to_vec()).collect()
    }

    proptest! {
        #[test]
        fn what_waits_comes_out_in_order(
            does in prop::collection::vec((0_usize..40_000, 0_u8..4), 0..60),
        ) {
            let mut inbox = Inbox::default();
            let mut expect = Vec::new();
            for (round, (size, what)) in does.into_iter().enumerate() {
                match what {
                    0 | 1 => {
                        let bytes = vec![round as u8; size + 1];
                        expect.extend_from_slice(&bytes);
                        inbox.push(bytes.into());
                    }
                    2 => inbox.settle(),
                    _ => {
                        let count = size.min(expect.len());
                        inbox.consume(count);
                        expect.drain(..count);
                    }
                }
                prop_assert_eq!(inbox.len(), expect.len());
                prop_assert!(content(&inbox) == expect);
            }
            inbox.consume(expect.len());
            prop_assert!(inbox.rest.is_none(), "nothing is held when nothing waits");
        }
    }

    #[test]
    fn what_is_settled_pins_nothing_and_costs_little() {
        let buffer = Bytes::from(vec![5; 262_144]);
        let mut inbox = Inbox::default();
        inbox.push(buffer.slice(..50_000));
        inbox.settle();
        for at in 50_000..100_000 {
            inbox.push(buffer.slice(at..=at));
            inbox.settle();
        }
        assert!(buffer.is_unique());
        assert_eq!(inbox.len(), 100_000);
        let pieces = inbox.rest.as_ref().unwrap().settled.len();
        assert!(pieces < 8, "{pieces} pieces");
    }
}
