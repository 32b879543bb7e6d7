//! Carries out what [`Pods`](crate::node::pods::Pods) decides: captures pods, checks them against
//! the kernel, leaves them.
//!
//! Everything here talks to the kernel and to `nft`, so it runs on blocking threads, a few pods at a
//! time; a namespace in which a call hangs holds up no other pod.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Semaphore;

use crate::capture::{self, Capture, Drift, WorkerListeners};
use crate::node::error::Chain;
use crate::node::pods::Wanted;
use crate::sys::netns::Netns;
use crate::task;

/// How many pods are worked on at the same time.
const AT_ONCE: usize = 8;

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

    /// Captures a pod.
    ///
    /// # Errors
    ///
    /// One sentence for people: what was tried, why it failed and what mends it.
    pub(crate) async fn enrol(&self, pod: Wanted) -> Result<Enrolled, String> {
        let options = self.options;
        self.blocking("enrol", move || {
            let path = pod.netns.as_deref().ok_or(
                "nobody has told its network namespace: annotate the pod with adit.mesh/netns",
            )?;
            let netns = open(path)?;
            let mut capture = capture::enrol(&netns, &pod.ips, &options)
                .map_err(|error| Chain(&error).to_string())?;
            let listeners = capture.take_listeners();
            Ok(Enrolled {
                held: Held::new(netns, capture),
                listeners,
            })
        })
        .await
    }

    /// Captures again a pod that is being drained; its listeners are still there.
    pub(crate) async fn resume(&self, held: Arc<Held>) -> Result<Enrolled, String> {
        self.blocking("resume", move || {
            if let Some(capture) = held.capture().as_mut() {
                capture
                    .resume()
                    .map_err(|error| Chain(&error).to_string())?;
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
                .map_err(|error| Chain(&error).to_string()),
            None => Ok(()),
        })
        .await
    }

    /// Leaves the namespace as it was found.
    pub(crate) async fn release(&self, held: Arc<Held>) -> Result<(), String> {
        self.blocking("release", move || match held.capture().take() {
            Some(capture) => capture.release().map_err(|error| Chain(&error).to_string()),
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

    /// Removes what a dead daemon left in pods that are not to be captured; says in how many.
    pub(crate) async fn clean(&self, paths: Vec<Arc<str>>) -> usize {
        let clean = move || {
            let left = |path: &Arc<str>| {
                let netns = Netns::open(Path::new(&**path)).ok()?;
                capture::leftover(&netns)
                    .ok()?
                    .then(|| capture::clean(&netns).ok())
                    .flatten()
            };
            paths.iter().filter_map(left).count()
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

fn check(pod: &Wanted, held: &Held) -> Checked {
    let Some(path) = pod.netns.as_deref() else {
        return Checked::Lost("its network namespace is not known any more".to_owned());
    };
    let netns = match open(path) {
        Ok(netns) => netns,
        Err(why) => return Checked::Lost(why),
    };
    if netns != held.netns {
        return Checked::Lost(format!("another network namespace stands at {path}"));
    }
    let mut guard = held.capture();
    let Some(capture) = guard.as_mut() else {
        return Checked::Sound;
    };
    let checked = match capture.verify(&netns) {
        Ok(()) => Checked::Sound,
        Err(drift) if !drift.repairable() => Checked::Lost(Chain(&drift).to_string()),
        Err(drift) => match capture.repair() {
            Ok(()) => Checked::Mended(drift, capture.take_listeners()),
            Err(error) => Checked::Lost(format!("{drift}; mending failed: {}", Chain(&error))),
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
