//! What drives a connection beside its frames: turns, flushes, signs of life, windows.
//!
//! Both sides poll their h2 connection between [`Pace::begin`] and [`Pace::finish`]. One timer
//! per tunnel serves all of its deadlines.

use std::cell::{Cell, RefCell};
use std::future::Future as _;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use h2::{Ping, PingPong};
use tokio::time::{Instant, Sleep};

use crate::tunnel::Limits;
use crate::tunnel::error::Error;
use crate::tunnel::io::Wire;
use crate::tunnel::liveness::{Beat, Liveness};
use crate::tunnel::window::Window;

/// How many streams a tunnel carries, and why it ended if it did; shared with its streams.
#[derive(Debug)]
pub(crate) struct Load {
    streams: Cell<usize>,
    idle_since: Cell<Instant>,
    end: RefCell<Option<Error>>,
}

/// A stream's place on its tunnel, given back when dropped.
#[derive(Debug)]
pub(crate) struct Place(Rc<Load>);

impl Load {
    pub(crate) fn new() -> Rc<Self> {
        Rc::new(Self {
            streams: Cell::new(0),
            idle_since: Cell::new(Instant::now()),
            end: RefCell::new(None),
        })
    }

    pub(crate) fn streams(&self) -> usize {
        self.streams.get()
    }

    /// Since when there has been no stream; `None` while there is one.
    pub(crate) fn idle_since(&self) -> Option<Instant> {
        (self.streams.get() == 0).then(|| self.idle_since.get())
    }

    pub(crate) fn place(self: &Rc<Self>) -> Place {
        self.streams.set(self.streams.get() + 1);
        Place(self.clone())
    }

    /// Records why the tunnel ended; the first word counts.
    pub(crate) fn ended(&self, error: Error) {
        self.end.borrow_mut().get_or_insert(error);
    }

    pub(crate) fn end(&self) -> Option<Error> {
        self.end.borrow().clone()
    }
}

impl Place {
    /// Why the tunnel ended, else what HTTP/2 says of the stream.
    pub(crate) fn explain(&self, error: h2::Error) -> Error {
        let own_fate = error.is_reset() || error.is_go_away();
        match self.0.end() {
            Some(end) if !own_fate => end,
            _ => Error::of_stream(error),
        }
    }

    /// Why the tunnel ended, if it did.
    pub(crate) fn end(&self) -> Option<Error> {
        self.0.end()
    }

    /// One more place on the same tunnel.
    pub(crate) fn other(&self) -> Self {
        self.0.place()
    }

    pub(crate) fn is_on(&self, load: &Rc<Load>) -> bool {
        Rc::ptr_eq(&self.0, load)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.streams.set(self.0.streams.get() - 1);
        self.0.idle_since.set(Instant::now());
    }
}

/// The part of driving a connection that both sides share.
pub(crate) struct Pace {
    pub(crate) wire: Wire,
    load: Rc<Load>,
    ping: PingPong,
    /// Bytes received when the PING that is under way was sent.
    asked: Option<u64>,
    looked: u64,
    liveness: Liveness,
    window: Window,
    timer: Pin<Box<Sleep>>,
    quiet: Duration,
    dead: Duration,
}

impl Pace {
    pub(crate) fn new(wire: Wire, load: Rc<Load>, ping: PingPong, limits: &Limits) -> Self {
        Self {
            wire,
            load,
            ping,
            asked: None,
            looked: 0,
            liveness: Liveness::new(limits.quiet, limits.dead),
            window: Window::new(),
            timer: Box::pin(tokio::time::sleep(limits.quiet)),
            quiet: limits.quiet,
            dead: limits.dead,
        }
    }

    /// Before the connection is polled.
    pub(crate) fn begin(&self) {
        self.wire.begin_turn();
    }

    /// After the connection was polled: writes what it left and follows the timer. `resize`
    /// announces a new stream window. Ready when the tunnel is lost.
    pub(crate) fn finish(
        &mut self,
        cx: &mut Context<'_>,
        resize: impl FnOnce(u32) -> Result<(), h2::Error>,
    ) -> Poll<Error> {
        let asks = match self.beat(cx) {
            Ok(asks) => asks | self.measure(cx, resize),
            Err(error) => return Poll::Ready(error),
        };
        if let Poll::Ready(Err(error)) = self.wire.poll_flush(cx) {
            return Poll::Ready(self.lost(error.kind()));
        }
        if asks {
            // It waits in the connection, which has to be polled once more to send it.
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }

    fn lost(&self, kind: std::io::ErrorKind) -> Error {
        match self.wire.fault() {
            Some(crate::tunnel::io::Fault::Tls(error)) => Error::Tls(error),
            _ => Error::Lost(kind),
        }
    }

    /// Learns what a round trip brings, while much arrives. Whether there is something to send.
    fn measure(
        &mut self,
        cx: &mut Context<'_>,
        resize: impl FnOnce(u32) -> Result<(), h2::Error>,
    ) -> bool {
        let received = self.wire.received();
        if let Some(before) = self.asked {
            if self.ping.poll_pong(cx).is_pending() {
                return false;
            }
            self.asked = None;
            self.looked = received;
            if let Some(size) = self.window.learn(received - before, self.load.streams())
                && resize(size).is_ok()
            {
                // Refused while an earlier change is unanswered: then the next look tries again.
                self.window.set(size);
                return true;
            }
            return false;
        }
        if self.window.curious(received - self.looked) {
            return self.ask();
        }
        false
    }

    /// Asks a silent peer, and gives up a dead one. Whether there is something to send.
    fn beat(&mut self, cx: &mut Context<'_>) -> Result<bool, Error> {
        let mut asks = false;
        while self.timer.as_mut().poll(cx).is_ready() {
            let now = Instant::now();
            let next = match self.liveness.beat(now, self.wire.last_received()) {
                Beat::Wait(until) => until,
                Beat::Ask(until) => {
                    asks |= self.ask();
                    until
                }
                Beat::Dead => return Err(Error::Silent(self.dead)),
            };
            // At least once per quiet time, so that others may hang their deadlines here.
            self.timer.as_mut().reset(next.min(now + self.quiet));
        }
        Ok(asks)
    }

    fn ask(&mut self) -> bool {
        if self.asked.is_some() || self.ping.send_ping(Ping::opaque()).is_err() {
            return false;
        }
        self.asked = Some(self.wire.received());
        true
    }
}
