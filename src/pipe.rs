//! What lies between a stream of a tunnel and the socket of an application.
//!
//! [`Duplex`] is the shape in which [`tunnel`](crate::tunnel) hands a stream to
//! [`deliver`](crate::deliver); neither knows the other. It is polled, not awaited, and moves
//! buffers instead of copying them, because both directions of a connection are one task.
//!
//! [`Spare`] lends large buffers for the length of one system call's worth of work, so that a
//! connection that is silent holds none.

use std::cell::RefCell;
use std::error;
use std::fmt;
use std::io::IoSlice;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;

/// The bytes that one read from a socket takes at most: four DATA frames of
/// [`FRAME`](crate::pipe::FRAME).
pub const CHUNK: usize = 4 * FRAME;

/// The payload of a DATA frame that with its head of 9 bytes fills four TLS records exactly.
pub const FRAME: usize = 4 * 16_384 - 9;

/// Why a stream ended otherwise than by a FIN of both sides.
#[derive(Clone, Debug)]
pub struct Broken {
    /// A stable word for records and metrics.
    pub reason: &'static str,
    /// The whole story.
    pub cause: Arc<dyn error::Error + Send + Sync>,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("stream broken")
    }
}

impl error::Error for Broken {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        Some(&*self.cause)
    }
}

/// How the far side stopped taking bytes.
#[derive(Clone, Debug)]
pub enum Stopped {
    /// It has ended its own direction in order and wants nothing more.
    Clean,
    /// It reset the stream, or the stream was lost.
    Broken(Broken),
}

/// A byte stream with two directions that end independently, by FIN or by reset.
///
/// Dropping it before both directions have ended resets it.
pub trait Duplex {
    /// Takes in everything that has arrived, whether or not there is room for it downstream: what
    /// waits inside is bounded by the flow control of the stream. Ready when bytes or the end
    /// have arrived; also drives the opening of the stream, so poll this before anything else.
    ///
    /// # Errors
    ///
    /// The stream was refused, reset or lost: nothing more will come, and what waited is void.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>>;

    /// The bytes that wait, as slices; how many of `into` were set.
    fn slices<'a>(&'a self, into: &mut [IoSlice<'a>]) -> usize;

    /// How many bytes wait.
    fn waiting(&self) -> usize;

    /// Marks the first `count` waiting bytes as delivered, and gives the sender room for more.
    fn consume(&mut self, count: usize);

    /// Nothing of what waits can be delivered for now: it is kept in as little memory as it takes.
    fn settle(&mut self);

    /// Whether the far side has sent its FIN. Bytes may still wait.
    fn ended(&self) -> bool;

    /// Whether the far side has taken the connection. Until then sent bytes may come to nothing.
    fn accepted(&self) -> bool;

    /// How many bytes may be sent now, at most `want`. Reserves them; a caller that has nothing
    /// to send after all calls [`rest`](Self::rest), or it starves the streams beside it.
    ///
    /// # Errors
    ///
    /// As [`poll_fill`](Self::poll_fill).
    fn poll_room(&mut self, cx: &mut Context<'_>, want: usize) -> Poll<Result<usize, Stopped>>;

    /// Gives back what [`poll_room`](Self::poll_room) reserved.
    fn rest(&mut self);

    /// Sends bytes within the room, and the FIN behind them if `end`. Never call it with neither.
    ///
    /// # Errors
    ///
    /// As [`poll_fill`](Self::poll_fill).
    fn send(&mut self, bytes: Bytes, end: bool) -> Result<(), Stopped>;

    /// Ready when the far side takes no more bytes.
    fn poll_stopped(&mut self, cx: &mut Context<'_>) -> Poll<Stopped>;

    /// Resets the stream, in both directions.
    fn reset(&mut self);
}

/// A lent buffer of [`Spare::SIZE`] initialised bytes; it goes back when dropped.
#[derive(Debug)]
pub struct Spare(Vec<u8>);

thread_local! {
    static SPARES: RefCell<Spares> = const { RefCell::new(Spares::NONE) };
}

/// The buffers of a thread. To make one is to write it full of zeros; so as many are kept as are
/// lent and given back again and again. What a stalled reader holds for long is not among them.
struct Spares {
    kept: Vec<Vec<u8>>,
    lent: usize,
    /// How many were lent, since it was last settled.
    now: Swing,
    /// The same, in the time before.
    before: Swing,
}

/// The fewest and the most that were lent at once in some time.
#[derive(Clone, Copy)]
struct Swing {
    least: usize,
    most: usize,
}

impl Swing {
    const NONE: Self = Self { least: 0, most: 0 };

    fn width(self) -> usize {
        self.most - self.least
    }
}

impl Spares {
    const NONE: Self = Self {
        kept: Vec::new(),
        lent: 0,
        now: Swing::NONE,
        before: Swing::NONE,
    };

    fn take(&mut self) -> Option<Vec<u8>> {
        self.lent += 1;
        self.now.most = self.now.most.max(self.lent);
        self.kept.pop()
    }

    fn give(&mut self, buffer: Vec<u8>) {
        self.lent -= 1;
        self.now.least = self.now.least.min(self.lent);
        if self.kept.len() < self.room() {
            self.kept.push(buffer);
        }
    }

    fn settle(&mut self) {
        let (least, most) = (self.lent, self.lent);
        self.before = std::mem::replace(&mut self.now, Swing { least, most });
        let room = self.room();
        self.kept.truncate(room);
    }

    /// How many may be kept.
    fn room(&self) -> usize {
        let lately = self.now.width().max(self.before.width());
        lately.clamp(Spare::KEPT, Spare::MOST)
    }
}

impl Spare {
    /// The size of a lent buffer.
    pub const SIZE: usize = 256 * 1024;

    /// How many buffers a thread keeps when nobody needs them.
    const KEPT: usize = 2;
    /// How many it keeps at most.
    const MOST: usize = 8;

    /// Borrows a buffer of this thread. What it holds is left over and means nothing.
    #[must_use]
    pub fn take() -> Self {
        let kept = SPARES.with_borrow_mut(Spares::take);
        Self(kept.unwrap_or_else(|| vec![0; Self::SIZE]))
    }

    /// Lets this thread's buffers go that nobody has needed since the call before the last. To be
    /// called now and then.
    pub fn settle() {
        SPARES.with_borrow_mut(Spares::settle);
    }
}

impl Deref for Spare {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl DerefMut for Spare {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

impl Drop for Spare {
    fn drop(&mut self) {
        let buffer = std::mem::take(&mut self.0);
        // When the thread ends, its list may be gone already, and the buffer goes too.
        let _ = SPARES.try_with(|spares| spares.borrow_mut().give(buffer));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_buffers_are_kept_as_come_and_go() {
        let kept = || SPARES.with_borrow(|spares| spares.kept.len());
        let lend = |count: usize| drop((0..count).map(|_| Spare::take()).collect::<Vec<_>>());
        lend(5);
        assert_eq!(kept(), 5);
        Spare::settle();
        lend(1);
        assert_eq!(kept(), 5, "needed a short time ago");
        Spare::settle();
        assert_eq!(kept(), Spare::KEPT);
        lend(2 * Spare::MOST);
        assert_eq!(kept(), Spare::MOST);
        // Many that are held for long are no reason to keep others beside.
        let held: Vec<_> = (0..2 * Spare::MOST).map(|_| Spare::take()).collect();
        Spare::settle();
        Spare::settle();
        assert_eq!(kept(), 0, "all that were kept are lent");
        lend(4);
        assert_eq!(kept(), 4);
        drop(held);
        assert_eq!(kept(), Spare::MOST);
        Spare::settle();
        Spare::settle();
        assert_eq!(kept(), Spare::KEPT);
    }
}
