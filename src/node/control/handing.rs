//! Hands everything over to the next daemon, and takes it back if that one dies.
//!
//! Who is in charge, and what may be done while nobody quite is, stands in [`Charge`]. The order of
//! things is that of [`handover`](crate::node::handover).

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};

use crate::node::control::{Control, Event};
use crate::node::enrol::Held;
use crate::node::handover::{self, Estates, Hello, Lock, PodEstate, Wish};
use crate::node::mark::Marks;
use crate::node::pods::Wanted;
use crate::node::worker::Command;
use crate::sys::netns::Netns;
use crate::task::{self, Task};
use crate::telemetry::metrics::{Daemon, Handover};

/// How long what is under way may take, before what is done is handed over without it.
const FINISHING: Duration = Duration::from_secs(10);
/// How long neighbours that were dialled may take to be accepted.
const ARRIVING: Duration = Duration::from_secs(2);
/// How long a daemon that was told to end waits for the next one, which has said hello.
pub(super) const WAITING: Duration = Duration::from_secs(10);

/// Whose the pods of this node are.
pub(super) enum Charge {
    /// Ours.
    Own,
    /// A daemon's that runs; ours when it is told through this that we are ready.
    Awaited(Option<oneshot::Sender<()>>, Instant),
    /// Ours, and about to be the next daemon's: nothing is begun any more.
    Handing(Handing),
    /// The next daemon's.
    Handed(Handed),
}

/// A hand-over that is done.
pub(super) struct Handed {
    since: Instant,
    /// Waits for the last connection from before.
    last: Task,
    /// Waits for the end of whoever serves now.
    watch: Option<Task>,
}

/// A hand-over under way.
pub(super) struct Handing {
    since: Instant,
    /// Where everything goes as soon as nothing is under way.
    answer: Option<oneshot::Sender<Estates>>,
    pods: usize,
    /// Since when nobody accepts.
    paused: Arc<OnceLock<Instant>>,
    /// What is done beside the loop.
    work: Option<Task>,
}

/// The daemon that has said hello.
pub(super) struct Successor {
    pub(super) process: u32,
    program: String,
}

impl Control {
    /// Whether this daemon, and it alone, decides about the pods now.
    pub(super) fn in_charge(&self) -> bool {
        matches!(self.charge, Charge::Own)
    }

    /// Whether the pods are about to be the next daemon's.
    pub(super) fn is_handing(&self) -> bool {
        matches!(self.charge, Charge::Handing(_))
    }

    /// Whether they are.
    pub(super) fn has_handed(&self) -> bool {
        matches!(self.charge, Charge::Handed(_))
    }

    /// Whether they are not this daemon's yet.
    pub(super) fn is_awaiting(&self) -> bool {
        matches!(self.charge, Charge::Awaited(..))
    }

    /// Takes what another daemon wants.
    pub(super) fn wished(&mut self, wish: Wish) {
        match wish {
            Wish::Greet(hello, answer) => {
                let greeted = self.greet(&hello);
                let _ = answer.send(greeted);
            }
            Wish::Inventory(answer) => {
                tracing::info!("the next daemon takes over: nothing more is begun here");
                self.charge = Charge::Handing(Handing {
                    since: Instant::now(),
                    answer: Some(answer),
                    pods: 0,
                    paused: Arc::default(),
                    work: None,
                });
                self.list_estates();
            }
            Wish::Yield(answer) => self.yield_to(answer),
            Wish::Handed => self.handed(),
            Wish::Lost(why) => self.not_handed(&why),
            Wish::Left => self.left_alone(),
        }
    }

    fn greet(&mut self, hello: &Hello) -> Result<(), String> {
        if *hello.node != *self.shared.node {
            let ours = &self.shared.node;
            return Err(format!(
                "its pods are those of node {ours}: use another --run-dir"
            ));
        }
        if self.ending.is_some() || !self.in_charge() {
            return Err("it is ending, or just about to take over itself".to_owned());
        }
        if let Some(other) = &self.successor {
            return Err(format!("process {} is to be the next one", other.process));
        }
        tracing::info!(
            successor.process = hello.process,
            successor.version = hello.program,
            "another daemon has come to take over",
        );
        let here = Netns::current().map(|here| here.cookie());
        if here.is_ok_and(|here| here == hello.network) {
            self.doors.lend_ports();
        }
        self.successor = Some(Successor {
            process: hello.process,
            program: hello.program.clone(),
        });
        Ok(())
    }

    /// Gathers what passes, once nothing is under way any more.
    pub(super) fn list_estates(&mut self) {
        let busy = (self.checking || !self.pods.is_idle()) && self.ending.is_none();
        let Charge::Handing(handing) = &mut self.charge else {
            return;
        };
        if handing.answer.is_none() || busy && handing.since.elapsed() < FINISHING {
            return;
        }
        let Some(answer) = handing.answer.take() else {
            return;
        };
        let mut pods: Vec<(Wanted, Arc<Held>)> = Vec::new();
        for pod in self.pods.captured() {
            if let Some(held) = self.held.get(&pod.uid) {
                pods.push((pod.clone(), held.clone()));
            }
        }
        handing.pods = pods.len();
        let sandboxes = self.plugged.sandboxes().cloned().collect();
        let copies = ask(&self.workers, Command::Listeners);
        let daemon = &self.shared.metrics.daemon;
        let (passed, sockets) = (&daemon.handover_pods, &daemon.handover_listeners);
        let (passed, sockets) = (passed.clone(), sockets.clone());
        let gather = async move {
            let mut listeners = HashMap::<Arc<str>, Vec<_>>::new();
            for copied in copies {
                for (uid, fd) in copied.await.unwrap_or_default() {
                    listeners.entry(uid).or_default().push(fd);
                }
            }
            let estate = |(wanted, held): (Wanted, Arc<Held>)| {
                let own = listeners.remove(&wanted.uid).unwrap_or_default();
                let (estate, listeners) = held.estate(own)?;
                Some(PodEstate {
                    netns: held.netns.clone(),
                    wanted,
                    estate,
                    listeners,
                })
            };
            let pods = pods.into_iter().filter_map(estate).collect();
            let all = Estates { pods, sandboxes };
            passed.set(all.pods.len().try_into().unwrap_or(i64::MAX));
            sockets.set(all.listeners().try_into().unwrap_or(i64::MAX));
            let _ = answer.send(all);
        };
        handing.work = Some(task::spawn("estates", gather));
    }

    /// Stops to accept. What was dialled in clear between two of our pods arrives before: the next
    /// daemon would take it for a tunnel.
    fn yield_to(&mut self, answer: oneshot::Sender<Option<OwnedFd>>) {
        let Charge::Handing(handing) = &mut self.charge else {
            return;
        };
        let lock = self.lock.as_ref().and_then(|lock| lock.share().ok());
        let (workers, paused) = (self.workers.clone(), handing.paused.clone());
        let announcements = self.shared.announcements.clone();
        let stop = async move {
            let arrived = async {
                ask_all(&workers, Command::NotAlone).await;
                while !announcements.is_empty() {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            };
            if tokio::time::timeout(ARRIVING, arrived).await.is_err() {
                tracing::warn!(
                    "connections between pods of this node are stuck, and will be reset"
                );
            }
            let _ = paused.set(Instant::now());
            ask_all(&workers, Command::Pause).await;
            let _ = answer.send(lock);
        };
        handing.work = Some(task::spawn("yield", stop));
    }

    fn handed(&mut self) {
        let Charge::Handing(handing) = &self.charge else {
            return;
        };
        let (took, pods) = (handing.since.elapsed(), handing.pods);
        let paused = handing.paused.get().map(Instant::elapsed);
        let daemon = &self.shared.metrics.daemon;
        count(daemon, "handed");
        daemon.handover_seconds.set(took.as_secs_f64());
        let listeners = daemon.handover_listeners.get();
        let (process, program) = self.names();
        tracing::info!(
            successor.process = process,
            successor.version = program,
            pods,
            listeners,
            duration = format_args!("{}ms", took.as_millis()),
            paused = format_args!("{}us", paused.unwrap_or_default().as_micros()),
            "handed over: accepting nothing more, what is carried goes on",
        );
        let settled: Vec<_> = self.pods.captured().map(|pod| pod.uid.clone()).collect();
        for held in settled.iter().filter_map(|uid| self.held.get(uid)) {
            held.give_up();
        }
        // It has a copy, and holds it alone from here on.
        self.lock = None;
        // What took too long is the next daemon's to do.
        for stop in self.under_way.drain().map(|(_, stop)| stop) {
            stop.stop();
        }
        self.doors.stand_aside();
        self.forward_waiting();
        let (drained, since) = (ask(&self.workers, Command::Drain), Instant::now());
        let last = async move {
            for worker in drained {
                let _ = worker.await;
            }
            tell_last(since);
        };
        self.charge = Charge::Handed(Handed {
            since,
            last: task::spawn("last connection", last),
            watch: None,
        });
        self.end_if_told();
    }

    fn not_handed(&mut self, why: &str) {
        let Some(successor) = self.successor.take() else {
            return;
        };
        count(&self.shared.metrics.daemon, "failed");
        tracing::warn!(
            successor.process = successor.process,
            reason = %why,
            "the next daemon has gone without taking over: going on as before",
        );
        self.charge = Charge::Own;
        if self.ending.is_none() {
            self.tell(|| Command::Resume);
            self.doors.return_to(false);
        }
        self.end_if_told();
    }

    /// The daemon that had taken over is gone. Another may have taken over from that one.
    fn left_alone(&mut self) {
        self.successor = None;
        if let Charge::Handed(handed) = &mut self.charge {
            let (run_dir, node) = (self.config.run_dir.clone(), self.shared.node.clone());
            let events = self.events.clone();
            let watch = async move {
                let lock = handover::watch(&run_dir, &node).await;
                let _ = events.send(Event::Alone(lock));
            };
            handed.watch = Some(task::spawn("watch", watch));
        }
    }

    /// No daemon serves this node any more: this one does again, as after a crash of its own.
    pub(super) fn take_back(&mut self, lock: Lock) {
        if !self.has_handed() || self.ending.is_some() {
            return;
        }
        self.lock = Some(lock);
        tracing::warn!("the daemon that had taken over is gone: taking the pods back");
        count(&self.shared.metrics.daemon, "taken_back");
        self.charge = Charge::Own;
        self.pods.begin_anew(Instant::now());
        let draining = self.pods.draining();
        self.held.retain(|uid, _| draining.contains(uid));
        // Nothing is said of a pod before it has had its time to be captured again.
        self.marks = Marks::default();
        self.tell(|| Command::Resume);
        self.doors.return_to(true);
        self.publish();
        self.show();
    }

    /// When this daemon handed over, if connections from before are still carried. Whoever asks is
    /// to tell of the last.
    pub(super) fn carries_since(&mut self) -> Option<Instant> {
        match &mut self.charge {
            Charge::Handed(handed) if !handed.last.is_over() => {
                handed.last = task::spawn("last connection", std::future::ready(()));
                Some(handed.since)
            }
            _ => None,
        }
    }

    /// Process id and version of the next daemon.
    pub(super) fn names(&self) -> (u32, &str) {
        let names = self.successor.as_ref();
        names.map_or((0, ""), |next| (next.process, &*next.program))
    }

    /// What passes is settled: a signal that came meanwhile takes effect.
    fn end_if_told(&mut self) {
        if self.told_to_end.take().is_some() && self.ending.is_none() {
            self.end();
        }
    }

    /// Whether the next daemon is about to take over, so that it is better to wait for it.
    pub(super) fn awaits_successor(&self) -> bool {
        let settled = matches!(self.charge, Charge::Handed(_) | Charge::Awaited(..));
        self.successor.is_some() && !settled
    }

    /// Ends what was told to end, once the next daemon has taken too long.
    pub(super) fn wait_no_longer(&mut self) {
        if self.told_to_end.is_some_and(|at| at.elapsed() > WAITING) {
            self.end_if_told();
        }
    }
}

/// Sends every worker a command that it answers.
pub(super) fn ask<T>(
    workers: &[mpsc::UnboundedSender<Command>],
    command: impl Fn(oneshot::Sender<T>) -> Command,
) -> Vec<oneshot::Receiver<T>> {
    let ask = |worker: &mpsc::UnboundedSender<Command>| {
        let (answer, answered) = oneshot::channel();
        let _ = worker.send(command(answer));
        answered
    };
    workers.iter().map(ask).collect()
}

/// The same, and waits for all answers.
async fn ask_all(
    workers: &[mpsc::UnboundedSender<Command>],
    command: impl Fn(oneshot::Sender<()>) -> Command,
) {
    for answered in ask(workers, command) {
        let _ = answered.await;
    }
}

/// Tells that what was carried at the hand-over `since` has ended.
pub(super) fn tell_last(since: Instant) {
    tracing::info!(
        duration = format_args!("{}ms", since.elapsed().as_millis()),
        "the last connection from before the hand-over has ended",
    );
}

pub(super) fn count(daemon: &Daemon, outcome: &'static str) {
    daemon.handovers.get_or_create(&Handover { outcome }).inc();
}
