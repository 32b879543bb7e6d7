//! Takes over from the daemon that runs: when, and what becomes of what it gives.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::capture::WorkerListeners;
use crate::causes::Causes;
use crate::node::control::handing::{Charge, count};
use crate::node::control::{Control, Event};
use crate::node::enrol::{Enroller, Held, Inherited};
use crate::node::handover::{self, Estates, Lock, Predecessor};
use crate::node::plugin::Known;
use crate::node::world::LocalPod;
use crate::task::{self, Task};

/// How long certificates are waited for, if some have come: one that cannot be had must not keep
/// this node from an upgrade. While none at all can be had, the daemon that runs is the better one.
const CERTIFICATES: Duration = Duration::from_secs(30);

/// What came of the hand-over.
pub(super) struct Legacy {
    pods: Vec<Inherited>,
    sandboxes: Vec<Known>,
    /// Pods that came and are not what they should be, with the reason.
    failed: Vec<(Arc<str>, String)>,
    listeners: usize,
    /// What the daemon in charge holds, once that is this one.
    lock: Option<Lock>,
    /// Why the other has not said that it stops, if it is gone.
    orphaned: Option<String>,
    since: Instant,
}

/// The conversation with the daemon before this one, while that lives.
pub(super) struct Before {
    pub(super) process: u32,
    _task: Task,
}

impl Control {
    /// Begins to talk with the daemon that runs; what it has is asked for when this one is ready.
    pub(super) fn await_predecessor(&mut self, predecessor: Predecessor) {
        let (ready, told) = oneshot::channel();
        let (enroller, events) = (self.enroller.clone(), self.events.clone());
        let process = predecessor.process;
        let (run_dir, node) = (self.config.run_dir.clone(), self.shared.node.clone());
        let talk = async move {
            match succeed(&predecessor, told, &enroller, (&run_dir, &node)).await {
                Ok(legacy) => {
                    let _ = events.send(Event::Inherited(Box::new(legacy)));
                }
                Err(error) => {
                    let _ = events.send(Event::NotInherited(error));
                    return;
                }
            }
            predecessor.gone().await;
            let _ = events.send(Event::PredecessorGone);
        };
        self.charge = Charge::Awaited(Some(ready), Instant::now());
        self.before = Some(Before {
            process,
            _task: task::spawn("predecessor", talk),
        });
    }

    /// Says that this daemon is ready, once it could serve the pods as well as the one that runs.
    pub(super) fn take_when_ready(&mut self) {
        let enough = self.has_certificates();
        let read = self.reports.read_once;
        if let Charge::Awaited(ready, _) = &mut self.charge
            && read
            && enough
            && let Some(ready) = ready.take()
        {
            let _ = ready.send(());
        }
    }

    fn has_certificates(&self) -> bool {
        let Charge::Awaited(_, since) = &self.charge else {
            return false;
        };
        let world = self.shared.world.load();
        let certificates = &self.shared.certificates;
        let has = |pod: &Arc<LocalPod>| certificates.current(&pod.workload.identity).is_some();
        let late = since.elapsed() > CERTIFICATES;
        world.pods.values().all(has) || late && world.pods.values().any(has)
    }

    /// The pods are this daemon's.
    pub(super) fn inherited(&mut self, legacy: Legacy) {
        let Legacy {
            pods,
            sandboxes,
            failed,
            listeners,
            lock,
            orphaned,
            since,
        } = legacy;
        self.charge = Charge::Own;
        self.lock = lock;
        for known in sandboxes {
            self.plugged.add(known);
        }
        let now = Instant::now();
        let count_pods = pods.len();
        let mut serve = Vec::new();
        for pod in pods {
            let uid = pod.wanted.uid.clone();
            self.held.insert(uid.clone(), pod.held.clone());
            serve.push((uid, pod.wanted.name.clone(), pod.held, pod.listeners));
            self.pods.inherit(pod.wanted, now);
        }
        // What waits in the listeners is to meet the world that knows its pod.
        if self.reports.read_once {
            self.publish();
        }
        for (uid, name, held, listeners) in serve {
            // The index may have said meanwhile that the pod is gone or elsewhere.
            if self
                .held
                .get(&uid)
                .is_some_and(|now| Arc::ptr_eq(now, &held))
            {
                self.serve(&uid, &name, &held.netns, listeners);
                self.settle_in(uid, held);
            }
        }
        let took = since.elapsed();
        self.doors.tend();
        for (name, why) in failed {
            tracing::warn!(pod = %name, reason = %why, "pod not taken over, will be captured anew");
        }
        let daemon = &self.shared.metrics.daemon;
        count(daemon, "inherited");
        daemon
            .handover_pods
            .set(count_pods.try_into().unwrap_or(i64::MAX));
        daemon
            .handover_listeners
            .set(listeners.try_into().unwrap_or(i64::MAX));
        daemon.handover_seconds.set(took.as_secs_f64());
        tracing::info!(
            predecessor.process = self.before.as_ref().map(|before| before.process),
            pods = count_pods,
            listeners,
            duration = format_args!("{}ms", took.as_millis()),
            "taken over",
        );
        if let Some(why) = orphaned {
            tracing::warn!(reason = %why, "the daemon before has ended meanwhile");
            self.predecessor_gone();
        }
    }

    /// Makes an inherited capture this daemon's own, beside the loop.
    fn settle_in(&self, uid: Arc<str>, held: Arc<Held>) {
        let (enroller, events) = (self.enroller.clone(), self.events.clone());
        let settle = async move {
            let settled = enroller.settle_in(held).await;
            let _ = events.send(Event::Settled(uid, settled));
        };
        task::spawn("settle in", settle).detach();
    }

    pub(super) fn settled_in(
        &mut self,
        uid: &Arc<str>,
        settled: Result<Vec<WorkerListeners>, String>,
    ) {
        match settled {
            Ok(listeners) => self.serve_anew(uid, listeners),
            // The next comparison with the kernel tries again.
            Err(why) => {
                tracing::warn!(pod.uid = %uid, reason = %why, "pod not yet as it should be")
            }
        }
    }

    /// The daemon before this one is gone, and with it what it carried and kept.
    pub(super) fn predecessor_gone(&mut self) {
        if self.before.take().is_none() {
            return;
        }
        tracing::info!("the daemon before this one is gone");
        self.searched.clear();
        self.reports.looked_for_leftovers = false;
        if self.reports.read_once {
            self.publish();
        }
    }
}

/// Waits until this daemon is ready, and takes over. An error says that the other goes on.
async fn succeed(
    predecessor: &Predecessor,
    ready: oneshot::Receiver<()>,
    enroller: &Enroller,
    (run_dir, node): (&Path, &str),
) -> Result<Legacy, handover::Error> {
    tokio::select! {
        _ = ready => {}
        () = predecessor.gone() => {
            if handover::lives(run_dir, node).await {
                return Err(handover::Error::GoneOn);
            }
            let lock = handover::left_to(run_dir).await?;
            let mut nothing = Legacy::new(Estates::default(), enroller, Instant::now()).await;
            nothing.orphaned = Some("it ended before this one was ready".to_owned());
            nothing.lock = Some(lock);
            return Ok(nothing);
        }
    }
    let since = Instant::now();
    let (estates, whole) = predecessor.inventory().await;
    // Looked at first: what takes time is to be over when nobody accepts.
    let mut legacy = Legacy::new(estates, enroller, since).await;
    let taken = match whole {
        Ok(()) => predecessor.take(run_dir).await,
        Err(cut) => Err(cut),
    };
    legacy.lock = Some(match taken {
        Ok(lock) => lock,
        Err(error) if handover::lives(run_dir, node).await => return Err(error),
        Err(error) => {
            let lock = handover::left_to(run_dir).await?;
            legacy.orphaned = Some(Causes(&error).to_string());
            lock
        }
    });
    Ok(legacy)
}

impl Legacy {
    async fn new(estates: Estates, enroller: &Enroller, since: Instant) -> Self {
        let listeners = estates.listeners();
        let (pods, failed) = enroller.inherit(estates.pods).await;
        Self {
            pods,
            sandboxes: estates.sandboxes,
            failed,
            listeners,
            lock: None,
            orphaned: None,
            since,
        }
    }
}
