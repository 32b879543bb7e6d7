//! The connections one worker carries now: listed on request, ended when they must end.
//!
//! A connection is here from the moment it is permitted, also while its destination is being
//! dialled: what changes meanwhile must find it. Its task does everything from there on under
//! [`Connection::poll_ended`]. Dropping that work resets both sides, so ending a connection is
//! telling it why.
//!
//! All that is kept of a connection while it is silent is here, in one allocation, and in its task
//! ([`carry`](crate::node::carry)).

use std::cell::{Cell, RefCell};
use std::fmt;
use std::future::Future;
use std::ops::Deref;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use crate::authorize::{Denial, Permit};
use crate::deliver::Meter;
use crate::mesh::{Direction, TunnelAddr};
use crate::node::error::Error;
use crate::node::places::Place;
use crate::node::pod::Pod;
use crate::node::sources::Called;
use crate::node::worker::Worker;
use crate::telemetry::metrics::Opened;

/// A register with room for so many is small enough.
const FEW: usize = 64;

/// Why the node ends a connection that could have gone on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Cut {
    /// A changed policy denies it now, for this reason.
    PolicyChanged(Denial),
    /// Its pod is released or gone.
    PodReleased,
    /// The daemon ends, and its time to drain is over.
    Drained,
}

impl Cut {
    /// A stable word for records and metrics.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::PolicyChanged(_) => "policy_changed",
            Self::PodReleased => "pod_released",
            Self::Drained => "drained",
        }
    }
}

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PolicyChanged(denial) => write!(f, "policy changed: {denial}"),
            Self::PodReleased => f.write_str("its pod is released or gone"),
            Self::Drained => f.write_str("the time to drain is over"),
        }
    }
}

/// One connection under way.
pub(crate) struct Connection {
    /// Unique in this daemon, also in the access record.
    pub(crate) id: u64,
    /// Who carries it.
    pub(crate) worker: Rc<Worker>,
    /// The captured pod it was accepted in.
    pub(crate) pod: Rc<Pod>,
    /// What was permitted.
    pub(crate) permit: Permit,
    /// When it was accepted.
    pub(crate) since: Instant,
    /// The tunnel port it goes through.
    pub(crate) via: Cell<Option<TunnelAddr>>,
    meter: Meter,
    /// Bytes from source to destination and back that are in the counters.
    counted: Cell<(u64, u64)>,
    /// What it holds of the daemon's places.
    pub(crate) room: Cell<Option<Room>>,
    /// Its place in the counters, until it has ended.
    opened: Cell<Option<Opened>>,
    /// Whether the meter's near side is the destination.
    flipped: Cell<bool>,
    /// Whether it is known to be a probe of this node's kubelet, though policy permits it anyway.
    pub(crate) probe: Cell<bool>,
    /// Where it is in the register.
    place: Cell<usize>,
    cut: RefCell<Option<Cut>>,
    /// Its one task, while that waits.
    waiting: Cell<Option<Waker>>,
}

impl Connection {
    /// A connection that was permitted, and counted as opened.
    pub(crate) fn new(
        id: u64,
        (worker, pod): (&Rc<Worker>, &Rc<Pod>),
        permit: Permit,
        opened: Opened,
        since: Instant,
    ) -> Rc<Self> {
        Rc::new(Self {
            id,
            worker: worker.clone(),
            pod: pod.clone(),
            permit,
            since,
            via: Cell::default(),
            meter: Meter::default(),
            counted: Cell::default(),
            room: Cell::default(),
            opened: Cell::new(Some(opened)),
            flipped: Cell::default(),
            probe: Cell::default(),
            place: Cell::default(),
            cut: RefCell::default(),
            waiting: Cell::default(),
        })
    }

    /// Does `work`, unless the node ends this connection before; then the caller drops `work`.
    /// Pinned by the caller, it is held once.
    pub(crate) async fn unless_ended<T>(
        &self,
        mut work: Pin<&mut impl Future<Output = Result<T, Error>>>,
    ) -> Result<T, Error> {
        let done = std::future::poll_fn(|cx| match self.poll_ended(cx) {
            Poll::Ready(cut) => Poll::Ready(Err(Error::Cut(cut))),
            Poll::Pending => work.as_mut().poll(cx),
        });
        done.await
    }

    /// Ready when the node ends this connection. Only one task may wait for it.
    pub(crate) fn poll_ended(&self, cx: &Context<'_>) -> Poll<Cut> {
        if let Some(cut) = &*self.cut.borrow() {
            return Poll::Ready(cut.clone());
        }
        let waiting = self.waiting.take();
        let waiting = waiting.filter(|waker| waker.will_wake(cx.waker()));
        self.waiting
            .set(Some(waiting.unwrap_or_else(|| cx.waker().clone())));
        Poll::Pending
    }

    /// Ends the connection; the first reason stands.
    pub(crate) fn end(&self, why: Cut) {
        self.cut.borrow_mut().get_or_insert(why);
        if let Some(waiting) = self.waiting.take() {
            waiting.wake();
        }
    }

    /// Bytes so far, from source to destination and back.
    pub(crate) fn moved(&self) -> (u64, u64) {
        let (sent, received) = (self.meter.sent.get(), self.meter.received.get());
        if self.flipped.get() {
            (received, sent)
        } else {
            (sent, received)
        }
    }

    /// Adds to the counters what moved since the last time.
    pub(crate) fn flush(&self) {
        let (before, now) = (self.counted.get(), self.moved());
        if before == now {
            return;
        }
        if let Some(opened) = self.opened.take() {
            opened.moved(now.0 - before.0, now.1 - before.1);
            self.opened.set(Some(opened));
            self.counted.set(now);
        }
    }

    /// Takes it out of the counters; nothing is counted after that.
    pub(crate) fn counted_out(&self) -> Option<Opened> {
        self.flush();
        self.opened.take()
    }
}

/// What a connection holds of the daemon's places, and of its source's if it arrives at its pod.
#[derive(Debug)]
pub(crate) struct Room {
    pub(crate) place: Place,
    pub(crate) _called: Option<Called>,
}

/// Where the relay of a connection counts its bytes.
pub(crate) struct Metered(Rc<Connection>);

impl Metered {
    /// The relay's near side is the source.
    pub(crate) fn from_source(connection: &Rc<Connection>) -> Self {
        Self(connection.clone())
    }

    /// The relay's near side is the destination.
    pub(crate) fn from_destination(connection: &Rc<Connection>) -> Self {
        connection.flipped.set(true);
        Self(connection.clone())
    }
}

impl AsRef<Meter> for Metered {
    fn as_ref(&self) -> &Meter {
        &self.0.meter
    }
}

/// All connections of one worker.
#[derive(Default)]
pub(crate) struct Live {
    /// Each knows its place here.
    connections: RefCell<Vec<Rc<Connection>>>,
}

impl Live {
    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.connections.borrow().len()
    }

    /// How many there are in one pod.
    pub(crate) fn in_pod(&self, pod: &str) -> usize {
        let connections = self.connections.borrow();
        connections.iter().filter(|c| &*c.pod.uid == pod).count()
    }

    /// Calls `see` with every connection. It must not end one's task at once.
    pub(crate) fn each(&self, see: impl FnMut(&Connection)) {
        let connections = self.connections.borrow();
        connections.iter().map(Rc::as_ref).for_each(see);
    }

    /// Ends each connection for which `why` has a reason.
    pub(crate) fn end(&self, why: impl Fn(&Connection) -> Option<Cut>) -> usize {
        let mut ended = 0;
        self.each(|connection| {
            if let Some(cut) = why(connection) {
                connection.end(cut);
                ended += 1;
            }
        });
        ended
    }

    /// Ends each *inbound* connection for which there is a denial now.
    pub(crate) fn revoke(&self, denied: impl Fn(&Connection) -> Option<Denial>) -> usize {
        self.end(|connection| {
            let inbound = connection.permit.flow().direction == Direction::Inbound;
            let denial = inbound.then(|| denied(connection)).flatten();
            denial.map(Cut::PolicyChanged)
        })
    }

    fn leave(&self, connection: &Connection) {
        let mut connections = self.connections.borrow_mut();
        let place = connection.place.get();
        connections.swap_remove(place);
        if let Some(moved) = connections.get(place) {
            moved.place.set(place);
        }
        // A burst leaves no more behind than what it was.
        if connections.capacity() > FEW && connections.len() < connections.capacity() / 4 {
            let room = connections.capacity() / 2;
            connections.shrink_to(room);
        }
    }
}

/// A connection that is registered as live; leaves the register when dropped.
pub(crate) struct Entered(Rc<Connection>);

impl Entered {
    /// Registers a connection with its worker.
    pub(crate) fn new(connection: Rc<Connection>) -> Self {
        let mut connections = connection.worker.live.connections.borrow_mut();
        connection.place.set(connections.len());
        connections.push(connection.clone());
        drop(connections);
        Self(connection)
    }
}

impl Deref for Entered {
    type Target = Rc<Connection>;

    fn deref(&self) -> &Rc<Connection> {
        &self.0
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        self.0.worker.live.leave(&self.0);
    }
}
