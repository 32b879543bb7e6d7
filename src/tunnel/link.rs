//! An HTTP/2 connection as its streams and its driver share it, and the wire below it.
//!
//! Streams write at once; the driver flushes once all of a turn's streams have written. Whoever
//! leaves something to be flushed wakes the driver. The wire is the driver's: it closes with the
//! driver, whoever still holds a stream.

use std::cell::{Cell, RefCell};
use std::io::IoSlice;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use tokio::time::Instant;

use crate::tunnel::connect::ConnectHead;
use crate::tunnel::error::Error;
use crate::tunnel::http2::{Connection, Failure, Fate, Reason, Room, Sink, Slot};
use crate::tunnel::io::Wire;
use crate::tunnel::waiting::{self, Ends, Waiting};

/// A connection with its wire.
pub(crate) struct Link {
    pub(crate) http: RefCell<Connection>,
    wire: Weak<Wire>,
    /// The driver's, until it is woken.
    driver: Cell<Option<Waker>>,
    /// A stream waits for room on the wire.
    crowded: Cell<bool>,
    idle_since: Cell<Instant>,
    /// Whose tunnel it is.
    pub(crate) ends: Ends,
    waiting: Arc<Waiting>,
    /// What waits for readers, as it is counted there.
    counted: Cell<usize>,
    end: RefCell<Option<Error>>,
}

/// A stream's place on its link, given back when dropped.
pub(crate) struct Place {
    pub(crate) link: Rc<Link>,
    slot: Slot,
    /// The holder has sent its end.
    pub(crate) sent_end: bool,
    /// The holder has taken over the peer's end.
    pub(crate) got_end: bool,
}

impl Sink for &Wire {
    fn write(&mut self, parts: &[IoSlice<'_>]) {
        Wire::write(self, parts);
    }
}

impl Link {
    pub(crate) fn new(
        http: Connection,
        wire: &Rc<Wire>,
        ends: Ends,
        waiting: &Arc<Waiting>,
    ) -> Rc<Self> {
        let link = Rc::new(Self {
            http: RefCell::new(http),
            wire: Rc::downgrade(wire),
            driver: Cell::new(None),
            crowded: Cell::new(false),
            idle_since: Cell::new(Instant::now()),
            ends,
            waiting: waiting.clone(),
            counted: Cell::new(0),
            end: RefCell::new(None),
        });
        waiting::register(&link);
        link
    }

    /// How many bytes wait for readers.
    pub(crate) fn waits(&self) -> usize {
        self.http.borrow().unread()
    }

    /// What waits for readers has changed.
    pub(crate) fn recount(&self) {
        let now = self.waits();
        let before = self.counted.replace(now);
        if now != before {
            self.waiting.recount(before, now);
        }
    }

    /// Gives up streams for which much waits; how many bytes, and how many streams.
    pub(crate) fn shed(&self, excess: usize) -> (usize, usize) {
        let shed = self.http.borrow_mut().shed(excess);
        self.recount();
        self.wake_streams();
        self.wake_driver();
        shed
    }

    /// How many streams somebody holds.
    pub(crate) fn streams(&self) -> usize {
        self.http.borrow().held()
    }

    /// Since when there has been no stream; `None` while there is one.
    pub(crate) fn idle_since(&self) -> Option<Instant> {
        (self.streams() == 0).then(|| self.idle_since.get())
    }

    /// Why it ended, if it did.
    pub(crate) fn end(&self) -> Option<Error> {
        self.end.borrow().clone()
    }

    /// Records why it ended, and tells all streams; the first word counts.
    pub(crate) fn ended(&self, error: Error) {
        self.end.borrow_mut().get_or_insert(error);
        self.http.borrow_mut().lose();
        self.wake_streams();
        self.wake_driver();
    }

    /// Opens a stream. Nothing is written before the driver's turn, unless the stream sends.
    pub(crate) fn open(self: &Rc<Self>, head: &ConnectHead) -> Result<Place, Error> {
        let to = head.authority().map_err(|_| Error::NoDestination)?;
        let to = to.to_string();
        let mut http = self.http.borrow_mut();
        let slot = http.open(to.as_bytes(), |block| head.write(block));
        drop(http);
        // Whoever holds the stream may let go of it before it ends.
        self.idle_since.set(Instant::now());
        self.wake_driver();
        Ok(self.place(slot))
    }

    /// The holder's side of a stream that is held.
    pub(crate) fn place(self: &Rc<Self>, slot: Slot) -> Place {
        Place {
            link: self.clone(),
            slot,
            sent_end: false,
            got_end: false,
        }
    }

    /// The driver is to be woken from now on.
    pub(crate) fn attend(&self, cx: &Context<'_>) {
        let waker = self.driver.take();
        let same = waker.filter(|waker| waker.will_wake(cx.waker()));
        self.driver
            .set(Some(same.unwrap_or_else(|| cx.waker().clone())));
    }

    pub(crate) fn wake_driver(&self) {
        if let Some(waker) = self.driver.take() {
            waker.wake();
        }
    }

    /// Wakes the streams for which there is news; whether there were any.
    pub(crate) fn wake_streams(&self) -> bool {
        let mut woken = self.http.borrow_mut().take_woken();
        let any = !woken.is_empty();
        // Not borrowed while others run.
        woken.drain(..).for_each(Waker::wake);
        self.http.borrow_mut().keep_woken(woken);
        any
    }

    /// Hands the connection's frames to the wire, if it has room, and streams what room there is.
    pub(crate) fn hand_over(&self, wire: &Wire) {
        let mut http = self.http.borrow_mut();
        if wire.room() == 0 {
            if http.has_output() || self.crowded.get() {
                wire.starve();
            }
            return;
        }
        http.flush(&mut &*wire);
        if self.crowded.take() {
            http.relieve();
        }
    }

    /// Whether there is no room on the wire; then whoever waits for it is relieved later.
    fn is_crowded(&self) -> bool {
        let full = self.wire.upgrade().filter(|wire| wire.room() == 0);
        if let Some(wire) = &full {
            self.crowded.set(true);
            wire.starve();
        }
        full.is_some()
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.waiting.recount(self.counted.get(), 0);
    }
}

impl Place {
    /// After something was done that others may have to know.
    fn done(&self) {
        let http = self.link.http.borrow();
        let (output, woken) = (http.has_output(), http.has_woken());
        drop(http);
        if woken {
            self.link.wake_streams();
        }
        if output {
            self.link.wake_driver();
        }
    }

    /// Looks at the connection, and has the task woken at the next news if that gives nothing.
    pub(crate) fn poll<T>(
        &self,
        cx: &Context<'_>,
        look: impl FnOnce(&mut Connection, Slot) -> Option<T>,
    ) -> Poll<T> {
        let mut http = self.link.http.borrow_mut();
        match look(&mut http, self.slot) {
            Some(found) => Poll::Ready(found),
            None => {
                http.watch(self.slot, cx.waker());
                Poll::Pending
            }
        }
    }

    /// What ended the stream early, if something did.
    pub(crate) fn fate(&self) -> Option<Fate> {
        self.link.http.borrow().fate(self.slot)
    }

    /// The same in words.
    pub(crate) fn explain(&self, fate: Fate) -> Error {
        let end = self.link.end();
        match fate {
            Fate::Reset(reason) => Error::Reset(reason),
            Fate::Broken(Reason::ENHANCE_YOUR_CALM) => Error::Unread,
            Fate::Broken(reason) => Error::Protocol(Failure::Broken(reason, "a broken stream")),
            Fate::Unseen => Error::Protocol(Failure::GoneAway(Reason::NO_ERROR)),
            Fate::Lost | Fate::Closed => end.unwrap_or(Error::Closed),
        }
    }

    pub(crate) fn answer(&self, status: u16, end: bool) -> bool {
        let mut http = self.link.http.borrow_mut();
        let answered = http.answer(self.slot, status, end);
        if answered && end {
            // The answer is complete, and nothing of the request is wanted (RFC 9113 §8.1).
            http.reset(self.slot, Reason::NO_ERROR);
        }
        drop(http);
        self.done();
        answered
    }

    /// Sets up to `want` bytes of room aside.
    pub(crate) fn poll_room(&self, cx: &Context<'_>, want: usize) -> Poll<Room> {
        let crowded = self.link.is_crowded();
        let want = match crowded {
            // Nothing is to be held that others wait for.
            true => 0,
            false => u32::try_from(want).unwrap_or(u32::MAX),
        };
        let room = self.poll(cx, |http, slot| match http.room(slot, want) {
            Room::None => {
                if crowded {
                    http.starve(slot);
                }
                None
            }
            room => Some(room),
        });
        if self.link.http.borrow().has_woken() {
            self.link.wake_streams();
        }
        room
    }

    pub(crate) fn rest(&self) {
        self.link.http.borrow_mut().rest(self.slot);
        self.done();
    }

    /// Sends within the room; whether it could.
    pub(crate) fn send(&self, bytes: &Bytes, end: bool) -> bool {
        let Some(wire) = self.link.wire.upgrade() else {
            return false;
        };
        let mut http = self.link.http.borrow_mut();
        let sent = http.send(self.slot, bytes, end, &mut &*wire);
        drop(http);
        self.done();
        self.link.wake_driver();
        sent
    }

    pub(crate) fn consumed(&self, count: usize) {
        self.link.http.borrow_mut().consumed(self.slot, count);
        self.link.recount();
        self.done();
    }

    pub(crate) fn reset(&self, reason: Reason) {
        self.link.http.borrow_mut().reset(self.slot, reason);
        self.done();
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut http = self.link.http.borrow_mut();
        http.release(self.slot);
        if http.held() == 0 {
            self.link.idle_since.set(Instant::now());
        }
        drop(http);
        self.link.recount();
        // What was never read makes room for others.
        self.done();
    }
}
