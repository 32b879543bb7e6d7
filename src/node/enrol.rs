//! Carries out what [`Pods`](crate::node::pods::Pods) decides: captures pods, checks them against
//! the kernel, leaves them.
//!
//! Everything here talks to the kernel and to `nft`, so it runs on blocking threads, a few pods at a
//! time; a namespace in which a call hangs holds up no other pod.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;

use crate::capture::{self, Capture, Drift, Estate, Sought, WorkerListeners};
use crate::causes::Causes;
use crate::node::handover::PodEstate;
use crate::node::pods::{Place, Wanted};
use crate::sys::netns::Netns;
use crate::task;

/// How many pods are worked on at the same time.
const AT_ONCE: usize = 8;

/// How long a new sandbox may be without its loopback.
const LOOPBACK: Duration = Duration::from_secs(3);

/// How a sentence about a pod that was searched for in vain begins.
pub(crate) const NOT_FOUND: &str = "its network namespace was not found";

/// Tells an enrolment that is under way that it is of no more use.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stop(Arc<AtomicBool>);

impl Stop {
    pub(crate) fn stop(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    fn check(&self) -> Result<(), String> {
        if self.is_stopped() {
            return Err("it was given up: the pod is gone, or elsewhere".to_owned());
        }
        Ok(())
    }
}

/// A captured pod's hold on the kernel.
pub(crate) struct Held {
    /// The namespace the capture is in.
    pub(crate) netns: Netns,
    /// Connections older than the capture that were reset.
    pub(crate) reset: usize,
    /// Connections older than the capture that still live beside it.
    kept: AtomicUsize,
    /// Gone once released: a check that comes late must not put rules back.
    capture: Mutex<Option<Capture>>,
}

impl Held {
    fn new(netns: Netns, capture: Capture) -> Arc<Self> {
        let treated = capture.existing();
        let (kept, reset) = (AtomicUsize::new(treated.kept.len()), treated.reset);
        Arc::new(Self {
            netns,
            reset,
            kept,
            capture: Mutex::new(Some(capture)),
        })
    }

    /// Connections older than the capture that still live beside it.
    pub(crate) fn kept(&self) -> usize {
        self.kept.load(Ordering::Relaxed)
    }

    /// What another daemon is to know of it, with those of `listeners` that are its own, in order.
    pub(crate) fn estate(&self, listeners: Vec<OwnedFd>) -> Option<(Estate, Vec<OwnedFd>)> {
        let guard = self.capture();
        let capture = guard.as_ref()?;
        Some((capture.estate()?, capture.in_order(listeners)))
    }

    /// The capture is another daemon's from now on: nothing is done to it any more.
    pub(crate) fn give_up(&self) {
        // Dropping a capture leaves it as it stands.
        drop(self.capture().take());
    }

    fn capture(&self) -> MutexGuard<'_, Option<Capture>> {
        self.capture.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a successful enrolment yields.
pub(crate) struct Enrolled {
    /// To be kept for as long as the pod is captured.
    pub(crate) held: Arc<Held>,
    /// One set per worker.
    pub(crate) listeners: Vec<WorkerListeners>,
}

/// A captured pod that another daemon handed over.
pub(crate) struct Inherited {
    /// What it is, as the other had it.
    pub(crate) wanted: Wanted,
    /// To be kept for as long as the pod is captured.
    pub(crate) held: Arc<Held>,
    /// One set per worker.
    pub(crate) listeners: Vec<WorkerListeners>,
}

/// What a check of one pod found.
pub(crate) enum Checked {
    /// All as it should be.
    Sound,
    /// Something was missing and is in place again; listeners that had to be made anew.
    Mended(Drift, Vec<WorkerListeners>),
    /// The namespace behind the pod is another one, or what is missing cannot be put back.
    Lost(String),
}

/// The shell around [`capture`].
#[derive(Clone)]
pub(crate) struct Enroller {
    options: capture::Options,
    places: Arc<Semaphore>,
}

impl Enroller {
    /// An enroller with these options for every pod.
    pub(crate) fn new(options: capture::Options) -> Self {
        Self {
            options,
            places: Arc::new(Semaphore::new(AT_ONCE)),
        }
    }

    /// Captures a pod; one that is to be searched for must have been found. Of a `fresh` one it is
    /// known that nothing runs in it yet. What it waits for ends with `stop`.
    ///
    /// # Errors
    ///
    /// One sentence for people: what was tried, why it failed and what mends it.
    pub(crate) async fn enrol(
        &self,
        pod: Wanted,
        found: Option<Netns>,
        fresh: bool,
        stop: Stop,
    ) -> Result<Enrolled, String> {
        let options = capture::Options {
            fresh,
            ..self.options
        };
        self.blocking("enrol", move || {
            stop.check()?;
            let netns = match (&pod.place, found) {
                (_, Some(netns)) => netns,
                (Place::Held(netns), None) => netns.clone(),
                (Place::Path(path), None) => open(path)?,
                (Place::Search, None) => return Err("it was not searched for".to_owned()),
            };
            let mut capture = enrol(&netns, &pod, &options, &stop)?;
            let listeners = capture.take_listeners();
            Ok(Enrolled {
                held: Held::new(netns, capture),
                listeners,
            })
        })
        .await
    }

    /// Takes over captured pods, as far as they are what the other daemon says; tells by name why
    /// others are not. Nothing of them changes yet.
    pub(crate) async fn inherit(
        &self,
        pods: Vec<PodEstate>,
    ) -> (Vec<Inherited>, Vec<(Arc<str>, String)>) {
        let options = self.options;
        let inherit = move || {
            let (mut taken, mut failed) = (Vec::new(), Vec::new());
            for pod in pods {
                let PodEstate {
                    wanted,
                    netns,
                    estate,
                    listeners,
                } = pod;
                match capture::inherit(&netns, estate, listeners, &options) {
                    Ok(mut capture) => {
                        let listeners = capture.take_listeners();
                        let held = Held::new(netns, capture);
                        taken.push(Inherited {
                            wanted,
                            held,
                            listeners,
                        });
                    }
                    Err(error) => failed.push((wanted.name, Causes(&error).to_string())),
                }
            }
            (taken, failed)
        };
        task::blocking("inherit", inherit).await.unwrap_or_default()
    }

    /// Makes an inherited capture as this daemon wants it; listeners that had to be made.
    pub(crate) async fn settle_in(&self, held: Arc<Held>) -> Result<Vec<WorkerListeners>, String> {
        self.blocking("settle in", move || {
            let mut guard = held.capture();
            let Some(capture) = guard.as_mut() else {
                return Ok(Vec::new());
            };
            let settled = capture.settle_in();
            settled.map_err(|error| Causes(&error).to_string())?;
            Ok(capture.take_listeners())
        })
        .await
    }

    /// Looks for the namespaces of these pods, all in one look through the node's processes.
    pub(crate) async fn find(&self, pods: &[Wanted]) -> HashMap<Arc<str>, Result<Netns, String>> {
        let sought = |pod: &Wanted| Sought {
            uid: pod.uid.clone(),
            addresses: pod.ips.to_vec(),
        };
        let sought: Vec<_> = pods.iter().map(sought).collect();
        let find = move || {
            let found = capture::find(Path::new("/proc"), &sought).into_iter();
            let text =
                |missing| format!("its network namespace was not found: {}", Causes(&missing));
            found
                .map(|(uid, netns)| (uid, netns.map_err(text)))
                .collect()
        };
        task::blocking("find", find).await.unwrap_or_default()
    }

    /// Captures again a pod that is being drained; its listeners are still there.
    pub(crate) async fn resume(&self, held: Arc<Held>) -> Result<Enrolled, String> {
        self.blocking("resume", move || {
            if let Some(capture) = held.capture().as_mut() {
                capture
                    .resume()
                    .map_err(|error| Causes(&error).to_string())?;
            }
            Ok(Enrolled {
                held,
                listeners: Vec::new(),
            })
        })
        .await
    }

    /// Lets new connections of a pod pass by; live ones run on.
    pub(crate) async fn stop_new(&self, held: Arc<Held>) -> Result<(), String> {
        self.blocking("drain", move || match held.capture().as_mut() {
            Some(capture) => capture
                .stop_new()
                .map_err(|error| Causes(&error).to_string()),
            None => Ok(()),
        })
        .await
    }

    /// Whether no connection of a pod is carried any more, by any daemon; not, where that cannot be
    /// known.
    pub(crate) async fn is_quiet(&self, held: Arc<Held>) -> bool {
        let quiet = self.blocking("count", move || match held.capture().as_ref() {
            Some(capture) => capture.is_quiet().map_err(|e| Causes(&e).to_string()),
            None => Ok(true),
        });
        quiet.await.unwrap_or(false)
    }

    /// Leaves the namespace as it was found.
    pub(crate) async fn release(&self, held: Arc<Held>) -> Result<(), String> {
        self.blocking("release", move || match held.capture().take() {
            Some(capture) => capture
                .release()
                .map_err(|error| Causes(&error).to_string()),
            None => Ok(()),
        })
        .await
    }

    /// Compares captured pods with the kernel and mends what can be mended.
    pub(crate) async fn check(&self, pods: Vec<(Wanted, Arc<Held>)>) -> HashMap<Arc<str>, Checked> {
        let check = move || {
            pods.into_iter()
                .map(|(pod, held)| (pod.uid.clone(), check(&pod, &held)))
                .collect()
        };
        task::blocking("check", check).await.unwrap_or_default()
    }

    /// Removes what a dead daemon left in pods that are not to be captured; says in how many. Those
    /// whose place nobody has told are looked for.
    pub(crate) async fn clean(&self, pods: Vec<Wanted>) -> usize {
        let (sought, told): (Vec<_>, Vec<_>) =
            pods.into_iter().partition(|pod| pod.place == Place::Search);
        let found = if sought.is_empty() {
            HashMap::new()
        } else {
            self.find(&sought).await
        };
        let clean = move || {
            let told = told.into_iter().filter_map(|pod| match pod.place {
                Place::Path(path) => Netns::open(Path::new(&*path)).ok(),
                Place::Held(netns) => Some(netns),
                Place::Search => None,
            });
            let left = |netns: &Netns| {
                capture::leftover(netns).unwrap_or(false) && capture::clean(netns).is_ok()
            };
            told.chain(found.into_values().flatten())
                .filter(left)
                .count()
        };
        task::blocking("clean", clean).await.unwrap_or_default()
    }

    async fn blocking<T: Send + 'static>(
        &self,
        name: &'static str,
        work: impl FnOnce() -> Result<T, String> + Send + 'static,
    ) -> Result<T, String> {
        let _place = self.places.acquire().await;
        task::blocking(name, work)
            .await
            .unwrap_or_else(|| Err(format!("{name} panicked: see the log")))
    }
}

/// As [`capture::enrol`]. A runtime may make a new sandbox's loopback at the same time as it
/// executes the chain that we are the end of; it is waited for.
fn enrol(
    netns: &Netns,
    pod: &Wanted,
    options: &capture::Options,
    stop: &Stop,
) -> Result<Capture, String> {
    let until = Instant::now() + LOOPBACK;
    loop {
        match capture::enrol(netns, &pod.ips, options) {
            Err(capture::Error::NoLoopback) if options.fresh && Instant::now() < until => {
                std::thread::sleep(Duration::from_millis(5));
                stop.check()?;
            }
            done => return done.map_err(|error| Causes(&error).to_string()),
        }
    }
}

fn check(pod: &Wanted, held: &Held) -> Checked {
    // A namespace without a path is the pod's as long as it has the pod's addresses, which the
    // check below looks at.
    let netns = match &pod.place {
        Place::Path(path) => match open(path) {
            Ok(netns) if netns != held.netns => {
                return Checked::Lost(format!("another network namespace stands at {path}"));
            }
            Ok(netns) => netns,
            Err(why) => return Checked::Lost(why),
        },
        Place::Held(_) | Place::Search => held.netns.clone(),
    };
    let mut guard = held.capture();
    let Some(capture) = guard.as_mut() else {
        return Checked::Sound;
    };
    let checked = match capture.verify(&netns) {
        Ok(()) => Checked::Sound,
        Err(drift) if !drift.repairable() => Checked::Lost(Causes(&drift).to_string()),
        Err(drift) => match capture.repair() {
            Ok(()) => Checked::Mended(drift, capture.take_listeners()),
            Err(error) => Checked::Lost(format!("{drift}; mending failed: {}", Causes(&error))),
        },
    };
    if held.kept() > 0 && capture.forget_ended().is_ok() {
        held.kept
            .store(capture.existing().kept.len(), Ordering::Relaxed);
    }
    checked
}

fn open(path: &str) -> Result<Netns, String> {
    Netns::open(Path::new(path))
        .map_err(|error| format!("cannot open its network namespace {path}: {error}"))
}
