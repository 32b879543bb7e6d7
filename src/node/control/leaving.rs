//! Leaves the node for good, when the mesh is taken away and not only the daemon.
//!
//! That a daemon is told to end says nothing: an upgrade does so, and a daemon that then let its pods
//! go would let them out in clear. But whoever uninstalls deletes the daemon's own namespace, which
//! nothing can stop any more, and the watch tells so before the runtime ends the daemon
//! ([`Index::is_over`](crate::identify::Index::is_over)). From then on no pod is wanted: each is drained and
//! left as if its label had been removed, its mark is taken away, and the CNI plugin leaves the node.

use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::node::control::Control;
use crate::node::pods::{Entry, State};

/// How long a daemon that has left its pods tries to take their marks away: its account may be gone
/// with the namespace, and then it never can.
const UNMARKING: Duration = Duration::from_secs(3);

/// How far leaving is.
pub(super) struct Leaving {
    /// Tells whoever keeps the plugin installed.
    over: watch::Sender<bool>,
    /// When the daemon was told to end, too.
    told: Option<Instant>,
    /// When the last pod was left.
    alone: Option<Instant>,
}

impl Leaving {
    /// Not begun; `over` will tell when it is.
    pub(super) fn new(over: watch::Sender<bool>) -> Self {
        Self {
            over,
            told: None,
            alone: None,
        }
    }

    /// The mesh is over.
    pub(super) fn begin(&self) {
        if !self.over.send_replace(true) {
            tracing::warn!(
                "the daemon's namespace is being deleted: pods are released, the cni plugin is removed"
            );
        }
    }

    /// The daemon was told to end, and will once it has left.
    pub(super) fn told(&mut self, now: Instant) {
        self.told = Some(now);
    }

    /// Whether it was told to end.
    pub(super) fn is_told(&self) -> bool {
        self.told.is_some()
    }
}

impl Control {
    /// Whether nothing is left to do on this node, and the daemon was told to end.
    pub(super) fn has_left(&mut self) -> bool {
        if !self.leaving.is_told() || self.is_handing() || self.is_in_pods() {
            return false;
        }
        if self.has_handed() {
            tracing::info!("pods left, the rest of this node is the next daemon's");
            return true;
        }
        let now = Instant::now();
        let alone = *self.leaving.alone.get_or_insert(now);
        let marks = self.marks.is_empty();
        if !marks && now.saturating_duration_since(alone) < UNMARKING {
            return false;
        }
        self.forget_namespaces();
        self.doors.leave();
        if let Some(lock) = self.lock.take() {
            lock.remove(&self.config.run_dir);
        }
        tracing::info!(marks_left = !marks, "node left");
        true
    }

    /// Whether there is a pod that this daemon has yet to leave. One that it would have captured is
    /// the next daemon's, once that has the others.
    fn is_in_pods(&self) -> bool {
        let handed = self.has_handed();
        let begun = |entry: &Entry| matches!(entry.state(), State::Pending | State::Enrolling);
        self.pods.entries().any(|entry| !(handed && begun(entry)))
    }
}
