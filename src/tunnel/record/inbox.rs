//! Plaintext that was received and not yet taken.
//!
//! It lies in the buffer that it was received in. Who takes a large piece gets a part of the
//! buffer, which goes back when the last part is dropped. Small pieces are copied: a few bytes must
//! not hold a large buffer. And so are all while a thread has [`LENT`] buffers out, because a
//! stream whose reader has stalled would otherwise hold much more than its window.

use std::cell::Cell;

use bytes::Bytes;
use smallvec::SmallVec;

use crate::pipe::Spare;

/// A piece below this is copied.
const SMALL: usize = 2048;
/// How many buffers a thread gives away in parts at once.
const LENT: usize = 32;

/// Where plaintext is in a buffer, from and to.
pub(crate) type Pieces = SmallVec<[(u32, u32); 16]>;

/// The plaintext of one `recv`.
pub(crate) struct Inbox {
    held: Held,
    pieces: Pieces,
    /// How many pieces were taken.
    taken: usize,
}

enum Held {
    Nothing,
    Whole(Spare),
    Parts(Bytes),
}

thread_local! {
    static OUT: Cell<usize> = const { Cell::new(0) };
}

/// A buffer that was given away in parts.
struct Lent(Spare);

impl Lent {
    fn new(buffer: Spare) -> Self {
        OUT.set(OUT.get() + 1);
        Self(buffer)
    }
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        // Parts stay on their thread; one that did not would be missing elsewhere.
        let _ = OUT.try_with(|out| out.set(out.get().saturating_sub(1)));
    }
}

impl Inbox {
    /// One that holds nothing.
    pub(crate) fn new() -> Self {
        Self {
            held: Held::Nothing,
            pieces: Pieces::new(),
            taken: 0,
        }
    }

    /// Takes in a buffer with plaintext in it. The one before must have been emptied.
    pub(crate) fn fill(&mut self, buffer: Spare, pieces: Pieces) {
        debug_assert!(self.taken == self.pieces.len(), "plaintext would be lost");
        self.taken = 0;
        self.held = match pieces.is_empty() {
            true => Held::Nothing,
            false => Held::Whole(buffer),
        };
        self.pieces = pieces;
    }

    /// The next piece.
    pub(crate) fn take(&mut self) -> Option<Bytes> {
        let (from, to) = *self.pieces.get(self.taken)?;
        let range = from as usize..to as usize;
        self.taken += 1;
        let last = self.taken == self.pieces.len();
        if let Held::Whole(_) = &self.held
            && range.len() >= SMALL
            && OUT.get() < LENT
            && let Held::Whole(buffer) = std::mem::replace(&mut self.held, Held::Nothing)
        {
            self.held = Held::Parts(Bytes::from_owner(Lent::new(buffer)));
        }
        let piece = match &self.held {
            Held::Parts(bytes) if range.len() >= SMALL => bytes.slice(range),
            Held::Parts(bytes) => Bytes::copy_from_slice(&bytes[range]),
            Held::Whole(buffer) => Bytes::copy_from_slice(&buffer[range]),
            Held::Nothing => return None,
        };
        if last {
            self.clear();
        }
        Some(piece)
    }

    fn clear(&mut self) {
        self.held = Held::Nothing;
        self.pieces = Pieces::new();
        self.taken = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(pieces: &[(u32, u32)]) -> Inbox {
        let mut buffer = Spare::take();
        for (at, byte) in buffer.iter_mut().enumerate() {
            *byte = at as u8;
        }
        let mut inbox = Inbox::new();
        inbox.fill(buffer, Pieces::from_slice(pieces));
        inbox
    }

    #[test]
    fn large_pieces_share_the_buffer_and_give_it_back() {
        let mut inbox = filled(&[(5, 10), (100, 9000), (9000, 20_000)]);
        assert_eq!(inbox.take().unwrap(), [5, 6, 7, 8, 9][..]);
        assert_eq!(OUT.get(), 0);
        let (a, b) = (inbox.take().unwrap(), inbox.take().unwrap());
        assert_eq!((a.len(), b.len(), OUT.get()), (8900, 11_000, 1));
        assert_eq!(b.as_ptr() as usize, a.as_ptr() as usize + 8900);
        assert!(inbox.take().is_none());
        drop(a);
        assert_eq!(OUT.get(), 1);
        drop(b);
        assert_eq!(OUT.get(), 0);
    }

    #[test]
    fn a_stalled_reader_holds_copies() {
        let pieces: Vec<Bytes> = (0..LENT + 3)
            .map(|_| filled(&[(0, 3000)]).take().unwrap())
            .collect();
        assert_eq!(OUT.get(), LENT);
        assert!(pieces.iter().all(|piece| piece[..] == pieces[0][..]));
        drop(pieces);
        assert_eq!(OUT.get(), 0);
    }
}
