//! What one connection was, for metrics and the access record.
//!
//! An account is opened when a connection is accepted and closed when it has ended, whatever the
//! end: so there is exactly one record and one count per connection. In between it learns what the
//! journey finds out.

use std::cell::{Cell, OnceCell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use crate::authorize::{DryRun, Permit};
use crate::deliver::{End, Fault, Meter};
use crate::mesh::{Direction, Flow, Local, Path, Peer, Service, TunnelAddr, Workload};
use crate::node::error::{Chain, Error, of_tunnel};
use crate::node::live::{Cut, Entered};
use crate::node::pod::Pod;
use crate::node::worker::Worker;
use crate::telemetry::Outcome;
use crate::telemetry::access;
use crate::telemetry::metrics::{DryRun as DryRunLabels, Opened, Reason};
use crate::tunnel;

/// One connection's account.
pub(crate) struct Account {
    id: u64,
    direction: Direction,
    source: SocketAddr,
    since: Instant,
    tally: Rc<Tally>,
    dialled: Cell<Option<SocketAddr>>,
    workload: RefCell<Option<Arc<Workload>>>,
    permit: OnceCell<Rc<Permit>>,
    via: Cell<Option<TunnelAddr>>,
}

impl Account {
    /// Opens the account of a connection that was just accepted from `source`.
    pub(crate) fn open(worker: &Worker, direction: Direction, source: SocketAddr) -> Self {
        Self {
            id: worker.next_id(),
            direction,
            source,
            since: Instant::now(),
            tally: Rc::default(),
            dialled: Cell::new(None),
            workload: RefCell::default(),
            permit: OnceCell::new(),
            via: Cell::new(None),
        }
    }

    /// Where the relay counts its bytes; its near side is the source.
    pub(crate) fn meter_from_source(&self) -> &Meter {
        &self.tally.meter
    }

    /// Where the relay counts its bytes; its near side is the destination.
    pub(crate) fn meter_from_destination(&self) -> &Meter {
        self.tally.flipped.set(true);
        &self.tally.meter
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
    }

    /// It may pass: from here on it counts as opened, and is among the live connections of the
    /// captured `pod`. Call this without a pause after the decision, or a change is missed.
    pub(crate) fn permitted(&self, worker: &Worker, pod: &Pod, permit: &Rc<Permit>) -> Entered {
        let _ = self.permit.set(permit.clone());
        self.record(worker, permit.flow()).opened();
        let opened = worker.recorder.opened(permit.flow(), self.since);
        *self.tally.opened.borrow_mut() = Some(opened);
        let live = worker
            .live
            .enter(self.id, &pod.uid, permit, &self.tally, self.since);
        if !worker.serves(pod) {
            // Accepted before the pod was released, and nobody will come to end it.
            live.end(Cut::PodReleased);
        }
        live
    }

    /// A dry-run policy would have decided otherwise.
    pub(crate) fn would(&self, worker: &Worker, would: &DryRun) {
        let policy = would.policy.to_string();
        let labels = DryRunLabels {
            policy,
            verdict: would.would.reason(),
        };
        worker
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

    /// Closes the account: counts, and writes the access record.
    pub(crate) fn close(self, worker: &Worker, ended: Result<End, Error>) {
        let now = Instant::now();
        let (outcome, error) = match &ended {
            Ok(end) => (of_end(end), end.fault.as_ref().map(|fault| Chain(fault))),
            Err(error) => (error.outcome(), Some(Chain(error))),
        };
        if let Err(Error::Authorize(refusal)) = &ended {
            let reason = Reason {
                reason: refusal.denial.reason(),
            };
            worker
                .shared
                .metrics
                .daemon
                .policy_denials
                .get_or_create(&reason)
                .inc();
        }
        if outcome == Outcome::PolicyChanged {
            worker.shared.metrics.daemon.policy_cuts.inc();
        }
        let described;
        let flow = match (self.permit.get(), &ended) {
            (Some(permit), _) => permit.flow(),
            (None, Err(Error::Authorize(refusal))) => &refusal.flow,
            (None, Err(Error::Identify(unroutable))) => {
                described = self.describe(Some(unroutable.service().clone()));
                &described
            }
            (None, _) => {
                described = self.describe(None);
                &described
            }
        };
        let policy = match &ended {
            Err(Error::Authorize(refusal)) => refusal.denial.policy(),
            Err(Error::Cut(Cut::PolicyChanged(denial))) => denial.policy(),
            _ => self.permit.get().and_then(|permit| permit.granted_by()),
        };
        let (requested, responded) = self.tally.moved();
        self.record(worker, flow).closed(&access::End {
            outcome,
            error: error.as_ref().map(|error| error as &dyn std::fmt::Display),
            policy: policy.map(|policy| policy as &dyn std::fmt::Display),
            source_to_destination: requested,
            destination_to_source: responded,
            duration: now.saturating_duration_since(self.since),
        });
        self.tally.flush();
        let opened = self.tally.opened.borrow_mut().take();
        let opened = opened.unwrap_or_else(|| worker.recorder.opened(flow, self.since));
        opened.closed(outcome, now);
    }

    fn record<'a>(&self, worker: &'a Worker, flow: &'a Flow) -> access::Record<'a> {
        let cluster_domain = &worker.shared.cluster_domain;
        access::Record {
            id: self.id,
            flow,
            via: self.via.get(),
            cluster_domain,
        }
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

/// A connection's bytes, and its place in the counters while it lives.
#[derive(Default)]
pub(crate) struct Tally {
    meter: Meter,
    /// Whether the meter's near side is the destination.
    flipped: Cell<bool>,
    opened: RefCell<Option<Opened>>,
    counted: Cell<(u64, u64)>,
}

impl Tally {
    /// Bytes from source to destination, and back.
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
        if let Some(opened) = &*self.opened.borrow()
            && before != now
        {
            opened.moved(now.0 - before.0, now.1 - before.1);
            self.counted.set(now);
        }
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
