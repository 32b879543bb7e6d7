//! A connection between two halves of this very thread, used for one pair of applications after the
//! other.
//!
//! Where both ends of a TCP connection are ours, an end of a direction need not be a FIN: the writer
//! says behind how many bytes it is, and the reader knows when it has read them. So the connection
//! stays, and the next pair of applications between the same two pods needs none of its own. The
//! bytes go through the kernel as ever; what fails resets as ever, and is not used again.
//!
//! A half whose other half is not here (yet) ends by FIN, as if there were no seam; then that
//! connection is used once.

use std::cell::Cell;
use std::fmt;
use std::future::Future as _;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Waker};
use std::time::Duration;

use tokio::time::Sleep;

use crate::sys::socket::AppSocket;

/// How long the first bytes of another use may take. Longer than an application may take to be
/// dialled, whose connection reads them.
const PROOF: Duration = Duration::from_secs(15);

/// Both halves.
#[derive(Default)]
struct Seam {
    /// What the first half writes, and what the second does.
    ways: [Way; 2],
    /// The second half is in use.
    joined: Cell<bool>,
    /// It cannot be used again.
    spoilt: Cell<bool>,
    /// The sockets that were given back.
    back: [Cell<Option<AppSocket>>; 2],
}

/// One direction.
#[derive(Default)]
struct Way {
    written: Cell<u64>,
    read: Cell<u64>,
    /// Nothing more will be written.
    ended: Cell<bool>,
    /// The reader's.
    reader: Cell<Option<Waker>>,
}

/// What one end of the connection knows of the other.
pub struct Half {
    seam: Rc<Seam>,
    second: bool,
    /// It is another use of the connection, and nothing has come through in it yet.
    unproven: Option<Box<Unproven>>,
}

/// For how long, at most, and until when, once something was written.
struct Unproven {
    most: Duration,
    until: Option<Pin<Box<Sleep>>>,
}

impl fmt::Debug for Half {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Half")
            .field("second", &self.second)
            .field("whole", &self.is_whole())
            .finish()
    }
}

impl Half {
    /// Both halves: that of who dials, and that of who accepts.
    #[must_use]
    pub fn pair() -> (Self, Self) {
        Self::both(None)
    }

    /// Both halves of a connection that is used again. No handshake says that the network between
    /// its ends is still there, so its first bytes must.
    #[must_use]
    pub fn pair_again() -> (Self, Self) {
        Self::both(Some(PROOF))
    }

    fn both(most: Option<Duration>) -> (Self, Self) {
        let seam = Rc::<Seam>::default();
        let half = |second| Self {
            seam: seam.clone(),
            second,
            unproven: most.map(|most| Box::new(Unproven { most, until: None })),
        };
        (half(false), half(true))
    }

    /// Gives a socket back for the next use. When both were, here they are: who dialled first.
    #[must_use]
    pub fn give_back(self, socket: AppSocket) -> Option<(AppSocket, AppSocket)> {
        let [first, second] = &self.seam.back;
        let (own, other) = match self.second {
            false => (first, second),
            true => (second, first),
        };
        let Some(other) = other.take() else {
            own.set(Some(socket));
            return None;
        };
        Some(match self.second {
            false => (socket, other),
            true => (other, socket),
        })
    }

    /// From now on this end is in use.
    pub(crate) fn join(&self) {
        if self.second {
            self.seam.joined.set(true);
        }
    }

    fn out(&self) -> &Way {
        &self.seam.ways[usize::from(self.second)]
    }

    fn into(&self) -> &Way {
        &self.seam.ways[usize::from(!self.second)]
    }

    /// So many bytes were written to the connection.
    pub(crate) fn wrote(&self, count: usize) {
        let way = self.out();
        way.written.set(way.written.get() + count as u64);
    }

    /// So many bytes were read from it.
    pub(crate) fn took(&self, count: usize) {
        let way = self.into();
        way.read.set(way.read.get() + count as u64);
    }

    /// Waits for the first bytes of another use to come through, if this end has written some.
    ///
    /// # Errors
    ///
    /// `TimedOut`: they have not in time.
    pub(crate) fn poll_proven(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let written = self.out().written.get() > 0;
        let proven = self.seam.ways.iter().any(|way| way.read.get() > 0);
        match &mut self.unproven {
            Some(_) if proven => self.unproven = None,
            Some(unproven) if written => {
                let until = || Box::pin(tokio::time::sleep(unproven.most));
                let until = unproven.until.get_or_insert_with(until);
                if until.as_mut().poll(cx).is_ready() {
                    return Err(io::ErrorKind::TimedOut.into());
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Ends what this end writes; whether it could, without a FIN.
    pub(crate) fn end(&self) -> bool {
        if !self.seam.joined.get() {
            self.spoil();
            return false;
        }
        let way = self.out();
        way.ended.set(true);
        if let Some(reader) = way.reader.take() {
            reader.wake();
        }
        true
    }

    /// Whether all has been read that will ever come.
    pub(crate) fn is_over(&self) -> bool {
        let way = self.into();
        way.ended.get() && way.read.get() == way.written.get()
    }

    /// Wakes the task when the other end has said its last.
    pub(crate) fn watch(&self, cx: &Context<'_>) {
        let reader = &self.into().reader;
        let known = reader.take().filter(|waker| waker.will_wake(cx.waker()));
        reader.set(Some(known.unwrap_or_else(|| cx.waker().clone())));
    }

    /// The connection ends with this use.
    pub(crate) fn spoil(&self) {
        self.seam.spoilt.set(true);
    }

    /// Whether both directions have ended without a FIN.
    pub(crate) fn is_whole(&self) -> bool {
        let ended = self.seam.ways.iter().all(|way| way.ended.get());
        ended && !self.seam.spoilt.get()
    }
}

#[cfg(test)]
mod tests {
    use std::task::Poll;

    use super::*;

    #[test]
    fn an_end_is_behind_all_that_was_written_before_it() {
        let (first, second) = Half::pair();
        second.join();
        first.wrote(5);
        second.took(3);
        assert!(first.end() && !second.is_over() && !first.is_whole());
        second.took(2);
        assert!(second.is_over() && !first.is_over());
        assert!(second.end() && first.is_over() && first.is_whole() && second.is_whole());
    }

    #[tokio::test]
    async fn what_does_not_come_through_in_another_use_fails() {
        const SOON: Duration = Duration::from_millis(20);
        let wait = async |half: &mut Half| {
            let proven = std::future::poll_fn(|cx| match half.poll_proven(cx) {
                Err(error) => Poll::Ready(error.kind()),
                Ok(()) => Poll::Pending,
            });
            tokio::time::timeout(4 * SOON, proven).await.ok()
        };
        for again in [None, Some(SOON)] {
            let (mut first, mut second) = Half::both(again);
            assert_eq!(wait(&mut first).await, None, "nothing was written");
            first.wrote(5);
            let expect = again.map(|_| io::ErrorKind::TimedOut);
            assert_eq!(wait(&mut first).await, expect);
            assert_eq!(wait(&mut second).await, None, "it has only to read");
            second.took(1);
            assert_eq!(wait(&mut first).await, None);
        }
    }

    #[test]
    fn without_the_other_half_an_end_is_a_fin_and_the_connection_is_used_once() {
        let (first, second) = Half::pair();
        assert!(!first.end());
        second.join();
        assert!(!second.is_over(), "its FIN tells");
        assert!(second.end() && first.is_over());
        assert!(!first.is_whole() && !second.is_whole());
    }
}
