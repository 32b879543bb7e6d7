//! What one connection was, for metrics and the access record.
//!
//! An account is opened when a connection is accepted and closed when it has ended, whatever the
//! end: so there is exactly one record and one count per connection. In between it learns what the
//! journey finds out. Once the connection is permitted, what it was is with the [`Connection`],
//! and the account itself goes when the connection is set up.

use std::cell::{Cell, OnceCell, RefCell};
use std::fmt::Display;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use crate::authorize::{DryRun, Permit};
use crate::causes::Causes;
use crate::deliver::{End, Fault};
use crate::mesh::policy::PolicyName;
use crate::mesh::{Direction, Flow, Local, Path, Peer, Service, TunnelAddr, Workload};
use crate::node::carry::{Carrying, Joined};
use crate::node::error::{Error, of_tunnel};
use crate::node::live::{Connection, Cut, Entered, Room};
use crate::node::pod::Pod;
use crate::node::worker::Worker;
use crate::telemetry::Outcome;
use crate::telemetry::access;
use crate::telemetry::metrics::{DryRun as DryRunLabels, Opened, Reason};
use crate::tunnel;

/// The account of a connection that is being set up.
pub(crate) struct Account {
    worker: Rc<Worker>,
    pod: Rc<Pod>,
    id: u64,
    direction: Direction,
    source: SocketAddr,
    since: Instant,
    dialled: Cell<Option<SocketAddr>>,
    workload: RefCell<Option<Arc<Workload>>>,
    via: Cell<Option<TunnelAddr>>,
    /// Until it is the connection's.
    room: Cell<Option<Room>>,
    live: OnceCell<Entered>,
}

impl Account {
    /// Opens the account of a connection that was just accepted in `pod` from `source`, where there
    /// was room for it.
    pub(crate) fn open(
        worker: &Rc<Worker>,
        pod: &Rc<Pod>,
        direction: Direction,
        source: SocketAddr,
        room: Room,
    ) -> Self {
        Self {
            worker: worker.clone(),
            pod: pod.clone(),
            id: worker.next_id(),
            direction,
            source,
            since: Instant::now(),
            dialled: Cell::new(None),
            workload: RefCell::default(),
            via: Cell::new(None),
            room: Cell::new(Some(room)),
            live: OnceCell::new(),
        }
    }

    /// The address that was asked for.
    pub(crate) fn dialled(&self, to: SocketAddr) {
        self.dialled.set(Some(to));
    }

    /// The pod it comes from.
    pub(crate) fn source(&self, workload: &Arc<Workload>) {
        *self.workload.borrow_mut() = Some(workload.clone());
    }

    /// It goes through this tunnel port.
    pub(crate) fn via(&self, via: TunnelAddr) {
        self.via.set(Some(via));
        if let Some(live) = self.live.get() {
            live.via.set(Some(via));
        }
    }

    /// It is going to be dialled on, which takes a socket more. Call this before it is permitted.
    pub(crate) fn dials(&self) {
        if let Some(room) = self.room.take() {
            room.place.one_more();
            self.room.set(Some(room));
        }
    }

    /// It may pass: from here on it counts as opened, and is among the live connections of its
    /// pod. Call this once, without a pause after the decision, or a change is missed.
    pub(crate) fn permitted(&self, permit: Permit) -> &Rc<Connection> {
        self.live.get_or_init(|| {
            let (worker, pod) = (&self.worker, &self.pod);
            record(worker, self.id, permit.flow(), self.via.get()).opened();
            let opened = worker.recorder.opened(permit.flow(), self.since);
            let connection = Connection::new(self.id, (worker, pod), permit, opened, self.since);
            connection.via.set(self.via.get());
            connection.room.set(self.room.take());
            let live = Entered::new(connection);
            if !worker.serves(pod) {
                // Accepted before the pod was released, and nobody will come to end it.
                live.end(Cut::PodReleased);
            }
            live
        })
    }

    /// A dry-run policy would have decided otherwise.
    pub(crate) fn would(&self, would: &DryRun) {
        let policy = would.policy.to_string();
        let labels = DryRunLabels {
            policy,
            verdict: would.would.reason(),
        };
        self.worker
            .shared
            .metrics
            .daemon
            .dry_run
            .get_or_create(&labels)
            .inc();
        tracing::info!(
            target: access::TARGET,
            id = self.id,
            src.addr = %self.source,
            policy = %would.policy,
            verdict = would.would.reason(),
            "dry run",
        );
    }

    /// The set-up is over: what was joined is to be carried on, and what failed is closed.
    pub(crate) fn settle(mut self, set_up: Result<Joined, Error>) -> Option<Carrying> {
        let live = self.live.take();
        let error = match set_up {
            Ok(joined) => {
                let live = live.expect("only what was permitted has a meter to be joined with");
                return Some(Carrying::new(live, joined));
            }
            Err(error) => error,
        };
        match live {
            Some(live) => {
                let connection = (*live).clone();
                drop(live);
                connection.close(Err(error));
            }
            None => self.refuse(error),
        }
        None
    }

    /// Closes the account of a connection that was not permitted.
    fn refuse(self, error: Error) {
        let described;
        let flow = match &error {
            Error::Authorize(refusal) => &refusal.flow,
            Error::Identify(unroutable) => {
                described = self.describe(Some(unroutable.service().clone()));
                &described
            }
            _ => {
                described = self.describe(None);
                &described
            }
        };
        let closing = Closing {
            worker: &self.worker,
            id: self.id,
            flow,
            via: self.via.get(),
            since: self.since,
            opened: self.worker.recorder.opened(flow, self.since),
            granted_by: None,
            moved: (0, 0),
            probe: false,
        };
        closing.close(Err(&error));
    }

    /// What is known of a connection that did not get as far as a decision.
    fn describe(&self, service: Option<Arc<Service>>) -> Flow {
        let unspecified = SocketAddr::from(([0, 0, 0, 0], 0));
        Flow {
            direction: self.direction,
            source: Peer {
                addr: self.source,
                identity: None,
                workload: self.workload.borrow().clone(),
            },
            destination: Local {
                addr: self.dialled.get().unwrap_or(unspecified),
                workload: None,
                service,
            },
            path: Path::Plain,
        }
    }
}

impl Connection {
    /// Closes the account of a connection that was permitted; only the first call counts.
    pub(crate) fn close(&self, ended: Result<End, Error>) {
        let Some(opened) = self.counted_out() else {
            return;
        };
        let closing = Closing {
            worker: &self.worker,
            id: self.id,
            flow: self.permit.flow(),
            via: self.via.get(),
            since: self.since,
            opened,
            granted_by: self.permit.granted_by(),
            moved: self.moved(),
            probe: self.probe.get(),
        };
        closing.close(ended.as_ref());
    }
}

/// A connection that has ended.
struct Closing<'a> {
    worker: &'a Worker,
    id: u64,
    flow: &'a Flow,
    via: Option<TunnelAddr>,
    since: Instant,
    opened: Opened,
    granted_by: Option<&'a PolicyName>,
    /// From source to destination, and back.
    moved: (u64, u64),
    /// Whether it was found out to be kubelet's.
    probe: bool,
}

impl Closing<'_> {
    /// Counts, and writes the access record.
    fn close(self, ended: Result<&End, &Error>) {
        let now = Instant::now();
        let (outcome, error) = match ended {
            Ok(end) => (of_end(end), end.fault.as_ref().map(|fault| Causes(fault))),
            Err(error) => (error.outcome(), Some(Causes(error))),
        };
        let daemon = &self.worker.shared.metrics.daemon;
        if outcome == Outcome::PolicyChanged {
            daemon.policy_cuts.inc();
        }
        let policy = match ended {
            Err(Error::Authorize(refusal)) => {
                let reason = refusal.denial.reason();
                daemon
                    .policy_denials
                    .get_or_create(&Reason { reason })
                    .inc();
                refusal.denial.policy()
            }
            Err(Error::Cut(Cut::PolicyChanged(denial))) => denial.policy(),
            _ => self.granted_by,
        };
        let probe = self.probe.then(|| Flow {
            path: Path::Probe,
            ..self.flow.clone()
        });
        let flow = probe.as_ref().unwrap_or(self.flow);
        record(self.worker, self.id, flow, self.via).closed(&access::End {
            outcome,
            error: error.as_ref().map(|error| error as &dyn Display),
            policy: policy.map(|policy| policy as &dyn Display),
            source_to_destination: self.moved.0,
            destination_to_source: self.moved.1,
            duration: now.saturating_duration_since(self.since),
            quiet: flow.path == Path::Probe && outcome == Outcome::Complete,
        });
        self.opened.closed(outcome, now);
    }
}

fn record<'a>(
    worker: &'a Worker,
    id: u64,
    flow: &'a Flow,
    via: Option<TunnelAddr>,
) -> access::Record<'a> {
    let cluster_domain = &worker.shared.cluster_domain;
    access::Record {
        id,
        flow,
        via,
        cluster_domain,
    }
}

/// How a connection that was joined ended. A reset is an end, not a fault of ours.
fn of_end(end: &End) -> Outcome {
    match &end.fault {
        None => Outcome::Complete,
        Some(Fault::Stream(broken)) => match broken.cause.downcast_ref::<tunnel::Error>() {
            Some(error) => of_tunnel(error),
            None => Outcome::TunnelFailed,
        },
        Some(Fault::Socket(_)) => Outcome::Reset,
    }
}
