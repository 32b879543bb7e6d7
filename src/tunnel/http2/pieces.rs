//! Bytes that have arrived and that their streams have not taken yet.
//!
//! All streams of a connection share one arena of links, so that a stream for which nothing waits
//! has no memory for it. What waits is bounded by the streams' windows; small pieces behind one
//! another are copied together, so that a byte costs little more than a byte.

use bytes::{Bytes, BytesMut};

/// Pieces below this are copied together when they have to wait.
const SMALL: usize = 4096;
/// Where a copied-together piece ends.
const PIECE: usize = 16 * 1024;
/// How many unused links an arena keeps.
const KEPT: usize = 64;
/// No link.
const NONE: u32 = u32::MAX;

/// The queue of one stream: two ends in the arena.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Queue {
    first: u32,
    last: u32,
}

impl Queue {
    pub(crate) const EMPTY: Self = Self {
        first: NONE,
        last: NONE,
    };

    pub(crate) fn is_empty(self) -> bool {
        self.first == NONE
    }
}

/// The pieces of all streams of a connection.
#[derive(Debug, Default)]
pub(crate) struct Pieces {
    links: Vec<Link>,
    /// Unused links, one behind the other.
    unused: Option<u32>,
    used: usize,
}

#[derive(Debug)]
struct Link {
    piece: Piece,
    next: u32,
}

#[derive(Debug)]
enum Piece {
    Whole(Bytes),
    Gathered(BytesMut),
}

impl Pieces {
    /// Puts a piece behind a stream's others. With `copy` nothing of the buffer that it is a slice
    /// of is kept.
    pub(crate) fn push(&mut self, queue: &mut Queue, bytes: Bytes, copy: bool) {
        let small = bytes.len() < SMALL;
        if small && !queue.is_empty() {
            let last = &mut self.links[queue.last as usize].piece;
            match last {
                Piece::Gathered(gathered) if gathered.len() < PIECE => {
                    return gathered.extend_from_slice(&bytes);
                }
                Piece::Whole(whole) if whole.len() < SMALL => {
                    let mut gathered = BytesMut::with_capacity(2 * (whole.len() + bytes.len()));
                    gathered.extend_from_slice(whole);
                    gathered.extend_from_slice(&bytes);
                    *last = Piece::Gathered(gathered);
                    return;
                }
                _ => {}
            }
        }
        let bytes = if copy {
            Bytes::copy_from_slice(&bytes)
        } else {
            bytes
        };
        let at = self.link(Piece::Whole(bytes));
        match queue.is_empty() {
            true => queue.first = at,
            false => self.links[queue.last as usize].next = at,
        }
        queue.last = at;
    }

    /// Takes the first piece of a stream.
    pub(crate) fn pop(&mut self, queue: &mut Queue) -> Option<Bytes> {
        if queue.is_empty() {
            return None;
        }
        let at = queue.first;
        let link = &mut self.links[at as usize];
        let piece = std::mem::replace(&mut link.piece, Piece::Whole(Bytes::new()));
        queue.first = std::mem::replace(&mut link.next, self.unused.unwrap_or(NONE));
        if queue.is_empty() {
            queue.last = NONE;
        }
        self.unused = Some(at);
        self.used -= 1;
        if self.used == 0 && self.links.len() > KEPT {
            *self = Self::default();
        }
        Some(match piece {
            Piece::Whole(bytes) => bytes,
            Piece::Gathered(gathered) => gathered.freeze(),
        })
    }

    /// Drops what waits for a stream.
    pub(crate) fn clear(&mut self, queue: &mut Queue) {
        while self.pop(queue).is_some() {}
    }

    fn link(&mut self, piece: Piece) -> u32 {
        self.used += 1;
        let link = Link { piece, next: NONE };
        if let Some(at) = self.unused {
            let old = std::mem::replace(&mut self.links[at as usize], link);
            self.unused = Some(old.next).filter(|next| *next != NONE);
            return at;
        }
        self.links.push(link);
        u32::try_from(self.links.len() - 1).expect("bounded by the streams' windows")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_byte_costs_little_more_than_a_byte() {
        let (mut pieces, mut queue) = (Pieces::default(), Queue::EMPTY);
        for _ in 0..262_144 {
            pieces.push(&mut queue, Bytes::from_static(b"x"), false);
        }
        assert!(pieces.links.len() < 20, "{} links", pieces.links.len());
        let mut total = 0;
        while let Some(piece) = pieces.pop(&mut queue) {
            total += piece.len();
        }
        assert_eq!(total, 262_144);
    }

    #[test]
    fn a_copy_pins_nothing() {
        let (mut pieces, mut queue) = (Pieces::default(), Queue::EMPTY);
        let buffer = Bytes::from(vec![1; 100_000]);
        pieces.push(&mut queue, buffer.slice(..50_000), true);
        pieces.push(&mut queue, buffer.slice(..10), true);
        assert!(buffer.is_unique());
    }

    proptest! {
        #[test]
        fn queues_keep_their_own_order(
            does in prop::collection::vec((0_usize..4, 0_usize..6000, any::<bool>()), 0..200),
        ) {
            let mut pieces = Pieces::default();
            let mut queues = [Queue::EMPTY; 4];
            let mut expect: [Vec<u8>; 4] = Default::default();
            let mut count = 0_u8;
            for (at, len, push) in does {
                count = count.wrapping_add(1);
                if push {
                    let bytes = vec![count; len + 1];
                    expect[at].extend_from_slice(&bytes);
                    pieces.push(&mut queues[at], bytes.into(), false);
                } else if let Some(piece) = pieces.pop(&mut queues[at]) {
                    prop_assert!(expect[at].starts_with(&piece));
                    expect[at].drain(..piece.len());
                }
            }
            for (queue, mut expect) in queues.iter_mut().zip(expect) {
                while let Some(piece) = pieces.pop(queue) {
                    prop_assert!(expect.starts_with(&piece));
                    expect.drain(..piece.len());
                }
                prop_assert!(expect.is_empty());
            }
        }
    }
}
