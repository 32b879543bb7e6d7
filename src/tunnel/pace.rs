//! What the drivers of both sides do in a turn: read, let the streams run, flush; and signs of
//! life and windows beside that.
//!
//! **One write for many streams.** A turn that has news for streams wakes them and puts its flush
//! off until they have run: the driver's task wakes itself behind them. One timer per tunnel serves
//! all of its deadlines.

use std::future::Future as _;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep};

use crate::pipe::FRAME;
use crate::tunnel::Limits;
use crate::tunnel::error::Error;
use crate::tunnel::http2::{Config, Connection, Failure, Reason, Role};
use crate::tunnel::io::{Fault, Wire};
use crate::tunnel::link::Link;
use crate::tunnel::liveness::{Beat, Liveness};
use crate::tunnel::waiting::{Ends, Waiting};
use crate::tunnel::window::{self, Window};

/// Drives a connection.
pub(crate) struct Pace {
    pub(crate) link: Rc<Link>,
    wire: Rc<Wire>,
    /// The flush of this turn waits for the streams.
    put_off: bool,
    /// All has been said, and the wire is being closed.
    closing: bool,
    /// Bytes received when the PING that is under way was sent.
    asked: Option<u64>,
    looked: u64,
    waiting: Arc<Waiting>,
    liveness: Liveness,
    window: Window,
    timer: Pin<Box<Sleep>>,
    quiet: Duration,
    dead: Duration,
}

/// How a connection ended.
pub(crate) enum End {
    /// The peer closed it.
    Closed,
    /// It broke.
    Broken(Error),
}

/// Why nothing more is received.
enum Stop {
    Wire(Fault),
    Http(Failure),
}

impl From<Fault> for Stop {
    fn from(fault: Fault) -> Self {
        Self::Wire(fault)
    }
}

impl Pace {
    /// Begins HTTP/2 on a wire.
    pub(crate) fn new(wire: Wire, role: Role, ends: Ends, limits: &Limits) -> Self {
        let http = Connection::new(Config {
            role,
            window: window::INITIAL,
            connection_window: window::CONNECTION,
            frame: u32::try_from(FRAME).expect("a frame is small"),
            header_list: limits.header_list,
            streams: limits.incoming_streams,
        });
        let wire = Rc::new(wire);
        Self {
            link: Link::new(http, &wire, ends, &limits.waiting),
            waiting: limits.waiting.clone(),
            wire,
            put_off: false,
            closing: false,
            asked: None,
            looked: 0,
            liveness: Liveness::new(limits.quiet, limits.dead),
            window: Window::new(),
            timer: Box::pin(tokio::time::sleep(limits.quiet)),
            quiet: limits.quiet,
            dead: limits.dead,
        }
    }

    /// One turn. Pending, it leaves the task to be woken for the next; ready, it has ended, and
    /// what was still to be written has been tried.
    pub(crate) fn poll_turn(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        self.link.attend(cx);
        if let Poll::Ready(end) = self.receive(cx) {
            return Poll::Ready(self.end(cx, end));
        }
        if let Err(error) = self.beat(cx) {
            return Poll::Ready(self.end(cx, End::Broken(error)));
        }
        self.measure();
        if self.link.wake_streams() && !self.put_off {
            self.put_off(cx);
            return Poll::Pending;
        }
        self.put_off = false;
        self.flush(cx).map(|error| self.end(cx, End::Broken(error)))
    }

    /// Has the next turn flush, behind all tasks that have been woken until now.
    pub(crate) fn put_off(&mut self, cx: &Context<'_>) {
        self.put_off = true;
        cx.waker().wake_by_ref();
    }

    fn receive(&self, cx: &mut Context<'_>) -> Poll<End> {
        let link = &*self.link;
        self.wire.begin_turn();
        link.http.borrow_mut().begin_turn();
        let take = |piece| link.http.borrow_mut().receive(piece).map_err(Stop::Http);
        let received = self.wire.poll_receive(cx, take);
        link.recount();
        self.waiting.relieve();
        received.map(|stop| match stop {
            Ok(()) => End::Closed,
            Err(Stop::Wire(fault)) => End::Broken(fault.into()),
            Err(Stop::Http(failure)) => End::Broken(Error::Protocol(failure)),
        })
    }

    fn flush(&self, cx: &mut Context<'_>) -> Poll<Error> {
        let link = &*self.link;
        loop {
            link.hand_over(&self.wire);
            let flushed = self.wire.poll_flush(cx);
            if let Poll::Ready(Err(error)) = flushed {
                let fault = self.wire.fault();
                let lost = || Error::Lost(error.kind());
                return Poll::Ready(fault.map_or_else(lost, Error::from));
            }
            link.wake_streams();
            // All may have been kept back for a wire that is free now.
            let behind = self.wire.room() > 0 && link.http.borrow().has_output();
            if flushed.is_pending() || !behind {
                return Poll::Pending;
            }
        }
    }

    /// Says goodbye once, and closes the wire when all has been written.
    pub(crate) fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !std::mem::replace(&mut self.closing, true) {
            let mut http = self.link.http.borrow_mut();
            http.say_goodbye(Reason::NO_ERROR);
        }
        loop {
            self.link.hand_over(&self.wire);
            if !self.link.http.borrow().has_output() {
                break;
            }
            // The wire is full, and a closed one takes nothing: what waits would be lost, the last
            // words of streams among it.
            if ready!(self.wire.poll_flush(cx)).is_err() {
                break;
            }
        }
        self.wire.poll_close(cx).map(|_| {
            let lost = Error::Lost(std::io::ErrorKind::ConnectionAborted);
            self.link.ended(lost);
        })
    }

    /// Whether all has been said.
    pub(crate) fn is_closing(&self) -> bool {
        self.closing
    }

    /// Tries to write what is left, and tells the streams.
    fn end(&self, cx: &mut Context<'_>, end: End) -> End {
        self.link.hand_over(&self.wire);
        let _ = self.wire.poll_flush(cx);
        self.link.ended(match &end {
            End::Closed => Error::Lost(std::io::ErrorKind::ConnectionAborted),
            End::Broken(error) => error.clone(),
        });
        end
    }

    /// Learns what a round trip brings, while much arrives.
    fn measure(&mut self) {
        let received = self.wire.received();
        let pressed = self.waiting.is_pressed();
        let mut http = self.link.http.borrow_mut();
        if pressed
            && let Some(size) = self.window.squeeze()
            && http.resize(size)
        {
            self.window.set(size);
        }
        let Some(before) = self.asked else {
            if self.window.curious(received - self.looked) {
                Self::ask(&mut self.asked, &mut http, received);
            }
            return;
        };
        if !http.pong() {
            return;
        }
        self.asked = None;
        self.looked = received;
        if pressed {
            return;
        }
        let streams = http.held();
        if let Some(size) = self.window.learn(received - before, streams)
            && http.resize(size)
        {
            // Refused while an earlier change is unanswered: then the next look tries again.
            self.window.set(size);
        }
    }

    /// Asks a silent peer, and gives up a dead one.
    fn beat(&mut self, cx: &mut Context<'_>) -> Result<(), Error> {
        while self.timer.as_mut().poll(cx).is_ready() {
            self.link.http.borrow_mut().hurry();
            let now = Instant::now();
            let wire = &self.wire;
            let next = match self.liveness.beat(now, wire.last_received()) {
                Beat::Wait(until) => until,
                Beat::Ask(until) => {
                    let mut http = self.link.http.borrow_mut();
                    Self::ask(&mut self.asked, &mut http, wire.received());
                    until
                }
                Beat::Dead => return Err(Error::Silent(self.dead)),
            };
            // At least once per quiet time, so that others may hang their deadlines here.
            self.timer.as_mut().reset(next.min(now + self.quiet));
        }
        Ok(())
    }

    fn ask(asked: &mut Option<u64>, http: &mut Connection, received: u64) {
        if asked.is_none() && http.ping() {
            *asked = Some(received);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::io::IoSlice;
    use std::net::{IpAddr, Ipv4Addr};

    use super::*;
    use crate::tunnel::io::tests::wires;

    #[tokio::test]
    async fn what_waits_for_a_full_wire_is_said_before_it_closes() {
        const MUCH: usize = 16 << 20;
        const ENDS: Ends = Ends {
            pod: IpAddr::V4(Ipv4Addr::LOCALHOST),
            peer: IpAddr::V4(Ipv4Addr::LOCALHOST),
        };
        let (client, server) = wires().await;
        let mut pace = Pace::new(server, Role::Server, ENDS, &Limits::default());
        pace.wire.write(&[IoSlice::new(&vec![0; MUCH])]);
        assert_eq!(pace.wire.room(), 0);
        let closed = poll_fn(|cx| pace.poll_close(cx));
        let mut heard = Vec::new();
        let hearing = poll_fn(|cx| {
            client.begin_turn();
            client.poll_receive(cx, |piece| {
                heard.extend_from_slice(&piece);
                Ok::<_, Fault>(())
            })
        });
        let (_, ended) = tokio::join!(closed, hearing);
        ended.expect("an end in order");
        assert!(heard.len() > MUCH);
        let goaway = [0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        assert!(heard.ends_with(&goaway), "{:?}", &heard[MUCH..]);
    }
}
