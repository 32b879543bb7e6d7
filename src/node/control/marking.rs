//! Brings the marks of this node's pods at the API server up to date.

use std::sync::Arc;
use std::time::Instant;

use crate::mesh::Reach;
use crate::node::control::{Control, Event};
use crate::node::mark::{self, Note, Unwritten};
use crate::node::pods::{Entry, State};
use crate::task;

/// How often a pod has failed before people are told at the API server.
const TELL: u32 = 3;

impl Control {
    /// Writes what is due, where there is an API server to write to.
    pub(super) fn mark(&mut self) {
        let Some(scribe) = self.scribe.clone() else {
            return;
        };
        if !self.reports.read_once || self.ending.is_some() || !self.in_charge() {
            return;
        }
        let now = Instant::now();
        for entry in self.pods.entries() {
            let wanted = entry.wanted();
            let captured = *entry.state() == State::Captured;
            let why_not = entry
                .last_error()
                .filter(|_| !captured && entry.failures() >= TELL);
            let marks = &mut self.marks;
            marks.see(&wanted.uid, &wanted.name, captured, why_not, now);
        }
        let snapshot = self.shared.world.load().snapshot.clone();
        for pod in snapshot.on_node(&self.shared.node) {
            // Of a pod that leaves, another daemon may have written the mark: the one that handed it over.
            let leaves =
                |entry: &Entry| matches!(entry.state(), State::Draining | State::Releasing);
            if pod.reach == Reach::Marked && self.pods.entry(&pod.uid).is_none_or(leaves) {
                let name = format!("{}/{}", pod.namespace, pod.name).into();
                self.marks.stale(&pod.uid, &name, now);
            }
        }
        let pods = &self.pods;
        self.marks.keep_only(|uid| pods.entry(uid).is_some(), now);
        for note in self.marks.due(now) {
            let (scribe, events) = (Arc::clone(&scribe), self.events.clone());
            let write = async move {
                let written = scribe.write(&note).await;
                let _ = events.send(Event::Marked(note, written));
            };
            task::spawn("mark", write).detach();
        }
    }

    pub(super) fn marked(&mut self, note: &Note, written: &Result<(), Unwritten>) {
        let first = self.marks.done(note, written, Instant::now());
        if let (true, Err(error)) = (first, written) {
            mark::report(note, error);
        }
    }
}
