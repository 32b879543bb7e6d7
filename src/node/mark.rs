//! Tells the API server what became of this node's pods: the mark by which others know that a pod
//! is reached through its tunnel port, and events for people.
//!
//! Output only. What is marked is what the kernel holds now; nothing here is ever read back as the
//! truth. [`Marks`] decides what is to be written and when, without I/O; a [`Scribe`] writes.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use k8s_openapi::api::core::v1::{Event, Pod};
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::core::Status;
use serde_json::json;

use crate::causes::Causes;
use crate::cluster::{Clients, client};

/// The annotation that the field's control planes and meshes read.
const MARK: &str = "ambient.istio.io/redirection";
/// How long a pod that is not captured may be without a word from us, before a mark that an earlier
/// boot may have left is taken away.
const SETTLING: Duration = Duration::from_secs(5);
/// First wait after a failed write; doubles with each further one.
const FIRST_RETRY: Duration = Duration::from_secs(1);
/// Longest wait between two attempts.
const LAST_RETRY: Duration = Duration::from_secs(60);
/// How often, at most, a pod gets an event.
const BETWEEN_EVENTS: Duration = Duration::from_secs(60);
/// How often people are told again of what stays as it is: about as long as events are kept.
const AGAIN: Duration = Duration::from_secs(60 * 60);
/// The reason of an event about a pod that could not be captured.
const NOT_CAPTURED: &str = "NotCaptured";
/// Writes at the same time.
const AT_ONCE: usize = 8;
/// How long one write may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// One thing to write about a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Note {
    pub(crate) uid: Arc<str>,
    /// `namespace/name`.
    pub(crate) name: Arc<str>,
    pub(crate) what: What,
}

/// What is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum What {
    /// Whether it is captured.
    Captured(bool),
    /// What is wrong with it, for people.
    Warning {
        /// The event's reason, one word.
        reason: &'static str,
        message: String,
    },
}

/// What people are told of a pod that is as its labels and its runtime make it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Advice {
    pub(crate) uid: Arc<str>,
    /// `namespace/name`.
    pub(crate) name: Arc<str>,
    /// The event's reason, one word.
    pub(crate) reason: &'static str,
    pub(crate) message: String,
}

/// Why a note was not written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unwritten {
    /// The pod is gone, or another one has its name: there is nothing to write any more.
    #[error("the pod is gone")]
    Gone,
    /// There is no client.
    #[error("there is no client of the API server")]
    NoClient(#[source] client::Error),
    /// The API server did not take it.
    #[error("the API server did not take it")]
    Refused(#[source] Box<kube::Error>),
    /// It took too long.
    #[error("the API server did not answer within {PATIENCE:?}")]
    Late,
}

/// Writes notes.
pub(crate) trait Scribe: Send + Sync {
    /// Writes one.
    fn write<'a>(&'a self, note: &'a Note) -> BoxFuture<'a, Result<(), Unwritten>>;
}

/// What every pod's mark should be, is, and when it is written next.
#[derive(Debug, Default)]
pub(crate) struct Marks {
    pods: HashMap<Arc<str>, Marked>,
    advice: HashMap<(Arc<str>, &'static str), Advised>,
    under_way: usize,
}

#[derive(Debug)]
struct Advised {
    advice: Advice,
    due: Instant,
    busy: bool,
}

#[derive(Debug)]
struct Marked {
    name: Arc<str>,
    captured: bool,
    /// What was written last; `None` before the first.
    said: Option<bool>,
    warning: Option<String>,
    warned: Option<Instant>,
    due: Instant,
    busy: bool,
    failures: u32,
    /// Not ours any more: forgotten when its mark is gone.
    leaving: bool,
}

impl Marks {
    /// Says whether a pod is captured now, and if not for some time, why.
    pub(crate) fn see(
        &mut self,
        uid: &Arc<str>,
        name: &Arc<str>,
        captured: bool,
        why_not: Option<&str>,
        now: Instant,
    ) {
        let marked = self.pods.entry(uid.clone()).or_insert_with(|| Marked {
            name: name.clone(),
            captured: false,
            said: None,
            warning: None,
            warned: None,
            due: now + SETTLING,
            busy: false,
            failures: 0,
            leaving: false,
        });
        marked.leaving = false;
        if marked.captured != captured {
            marked.captured = captured;
            marked.due = now;
        }
        let lately = |at: Instant| now.saturating_duration_since(at) < BETWEEN_EVENTS;
        marked.warning = why_not
            .filter(|_| !marked.warned.is_some_and(lately))
            .map(str::to_owned);
    }

    /// A pod of our node that is not to be captured has a mark, maybe of a daemon before us.
    pub(crate) fn stale(&mut self, uid: &Arc<str>, name: &Arc<str>, now: Instant) {
        if !self.pods.contains_key(uid) {
            self.see(uid, name, false, None, now);
        }
        if let Some(marked) = self
            .pods
            .get_mut(uid)
            .filter(|m| !m.busy && m.said.is_none())
        {
            marked.said = Some(true);
            marked.leaving = true;
            marked.due = now;
        }
    }

    /// Only these pods are left; others lose their marks.
    pub(crate) fn keep_only(&mut self, is_left: impl Fn(&str) -> bool, now: Instant) {
        for (uid, marked) in &mut self.pods {
            if !marked.leaving && !is_left(uid) {
                marked.leaving = true;
                marked.warning = None;
                if marked.captured {
                    marked.captured = false;
                    marked.due = now;
                }
            }
        }
        self.pods
            .retain(|_, marked| !marked.leaving || marked.busy || marked.said == Some(true));
    }

    /// Whether every pod is as it was said to be.
    pub(crate) fn is_empty(&self) -> bool {
        self.pods.is_empty()
    }

    /// All that people are to be told of our pods now.
    pub(crate) fn advise(&mut self, all: Vec<Advice>, now: Instant) {
        let mut before = std::mem::take(&mut self.advice);
        for advice in all {
            let key = (advice.uid.clone(), advice.reason);
            let known = before.remove(&key);
            let known = known.filter(|known| known.advice == advice);
            let fresh = || Advised {
                advice,
                due: now,
                busy: false,
            };
            self.advice.insert(key, known.unwrap_or_else(fresh));
        }
    }

    /// What is to be written now. Each note must be answered by [`Marks::done`].
    pub(crate) fn due(&mut self, now: Instant) -> Vec<Note> {
        let mut notes = Vec::new();
        for (uid, marked) in &mut self.pods {
            if marked.busy || self.under_way >= AT_ONCE {
                continue;
            }
            let what = if marked.said != Some(marked.captured) && marked.due <= now {
                What::Captured(marked.captured)
            } else if let Some(message) = marked.warning.take() {
                marked.warned = Some(now);
                let reason = NOT_CAPTURED;
                What::Warning { reason, message }
            } else {
                continue;
            };
            marked.busy = true;
            self.under_way += 1;
            notes.push(Note {
                uid: uid.clone(),
                name: marked.name.clone(),
                what,
            });
        }
        for advised in self.advice.values_mut() {
            if advised.busy || advised.due > now || self.under_way >= AT_ONCE {
                continue;
            }
            advised.busy = true;
            self.under_way += 1;
            let Advice {
                uid,
                name,
                reason,
                message,
            } = advised.advice.clone();
            let what = What::Warning { reason, message };
            notes.push(Note { uid, name, what });
        }
        notes
    }

    /// Takes what came of a note. Says whether it is the first failure of this pod's in a row.
    pub(crate) fn done(
        &mut self,
        note: &Note,
        written: &Result<(), Unwritten>,
        now: Instant,
    ) -> bool {
        self.under_way = self.under_way.saturating_sub(1);
        if let What::Warning { reason, .. } = note.what
            && reason != NOT_CAPTURED
        {
            if let Some(advised) = self.advice.get_mut(&(note.uid.clone(), reason)) {
                advised.busy = false;
                advised.due = now + if written.is_ok() { AGAIN } else { LAST_RETRY };
            }
            return false;
        }
        let Some(marked) = self.pods.get_mut(&note.uid) else {
            return false;
        };
        marked.busy = false;
        match (written, &note.what) {
            (Ok(()) | Err(Unwritten::Gone), What::Captured(captured)) => {
                marked.said = Some(*captured);
                marked.failures = 0;
                false
            }
            // An event that is lost is said again when its time comes.
            (_, What::Warning { .. }) => false,
            (Err(_), What::Captured(_)) => {
                let wait = FIRST_RETRY * 2_u32.saturating_pow(marked.failures.min(10));
                marked.due = now + wait.min(LAST_RETRY);
                marked.failures += 1;
                marked.failures == 1
            }
        }
    }
}

/// Writes to the API server.
pub(crate) struct ApiScribe {
    clients: Clients,
    node: Arc<str>,
}

impl ApiScribe {
    /// Writes in the name of this node's daemon.
    pub(crate) fn new(clients: Clients, node: Arc<str>) -> Self {
        Self { clients, node }
    }

    async fn try_write(&self, note: &Note) -> Result<(), Unwritten> {
        let client = self.clients.client().await;
        let (client, generation) = client.map_err(Unwritten::NoClient)?;
        let (namespace, name) = note.name.split_once('/').unwrap_or(("", &note.name));
        let written = match &note.what {
            What::Captured(captured) => {
                // Of this pod alone: with the UID, a patch of its successor is refused.
                let patch = json!({ "metadata": {
                    "uid": note.uid,
                    "annotations": { MARK: captured.then_some("enabled") },
                } });
                let pods = Api::<Pod>::namespaced(client, namespace);
                let patch = Patch::Merge(patch);
                let how = PatchParams::default();
                pods.patch_status(name, &how, &patch).await.map(drop)
            }
            What::Warning { reason, message } => match self.event(note, reason, message) {
                Ok(event) => {
                    let events = Api::<Event>::namespaced(client, namespace);
                    let how = PostParams::default();
                    events.create(&how, &event).await.map(drop)
                }
                Err(error) => Err(kube::Error::SerdeError(error)),
            },
        };
        written.map_err(|error| match &error {
            kube::Error::Api(status) if is_of_another(status) => Unwritten::Gone,
            kube::Error::Api(status) if status.code == 401 => {
                self.clients.renew(generation);
                Unwritten::Refused(Box::new(error))
            }
            _ => Unwritten::Refused(Box::new(error)),
        })
    }

    fn event(&self, note: &Note, reason: &str, why: &str) -> Result<Event, serde_json::Error> {
        let (namespace, name) = note.name.split_once('/').unwrap_or(("", &note.name));
        let now = k8s_openapi::jiff::Timestamp::now().to_string();
        // The API server takes at most 1024 bytes.
        let mut end = why.len().min(1000);
        while !why.is_char_boundary(end) {
            end -= 1;
        }
        serde_json::from_value(json!({
            "metadata": { "generateName": format!("{name}."), "namespace": namespace },
            "involvedObject": {
                "apiVersion": "v1", "kind": "Pod",
                "namespace": namespace, "name": name, "uid": note.uid,
            },
            "type": "Warning",
            "reason": reason,
            "message": &why[..end],
            "source": { "component": "adit", "host": &*self.node },
            "reportingComponent": "adit",
            "reportingInstance": &*self.node,
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
        }))
    }
}

impl Scribe for ApiScribe {
    fn write<'a>(&'a self, note: &'a Note) -> BoxFuture<'a, Result<(), Unwritten>> {
        Box::pin(async move {
            let written = tokio::time::timeout(PATIENCE, self.try_write(note)).await;
            written.unwrap_or(Err(Unwritten::Late))
        })
    }
}

/// Whether an answer says that there is no such pod, or that the one of its name has another UID. A
/// patch by UID is an invalid change of the UID to the API server, not a conflict.
fn is_of_another(status: &Status) -> bool {
    let mut causes = status.details.iter().flat_map(|details| &details.causes);
    matches!(status.code, 404 | 409)
        || status.code == 422 && causes.any(|cause| cause.field == "metadata.uid")
}

/// Tells in the log about a note that was not written.
pub(crate) fn report(note: &Note, error: &Unwritten) {
    tracing::warn!(
        pod = %note.name,
        error = %Causes(error),
        "pod not marked at the API server, will try again: grant patch of pods/status and create of \
         events to the daemon's service account",
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    fn see(marks: &mut Marks, uid: &str, captured: bool, why: Option<&str>, now: Instant) {
        let (uid, name) = (Arc::from(uid), Arc::from(format!("ns/{uid}")));
        marks.see(&uid, &name, captured, why, now);
    }

    fn all(notes: &[Note]) -> Vec<(&str, What)> {
        let mut all: Vec<_> = notes.iter().map(|n| (&*n.uid, n.what.clone())).collect();
        all.sort_by_key(|(uid, _)| *uid);
        all
    }

    const REFUSED: Result<(), Unwritten> = Err(Unwritten::Late);

    #[test]
    fn a_mark_is_set_and_taken_away_once() {
        let t = Instant::now();
        let mut marks = Marks::default();
        see(&mut marks, "a", false, None, t);
        assert!(marks.due(t).is_empty(), "it may be captured in a moment");
        see(&mut marks, "a", true, None, t);
        let notes = marks.due(t);
        assert_eq!(all(&notes), [("a", What::Captured(true))]);
        assert!(marks.due(t).is_empty(), "one at a time");
        marks.done(&notes[0], &Ok(()), t);
        see(&mut marks, "a", true, None, t);
        assert!(marks.due(t + LAST_RETRY).is_empty());
        marks.keep_only(|_| false, t);
        let notes = marks.due(t);
        assert_eq!(all(&notes), [("a", What::Captured(false))]);
        marks.done(&notes[0], &Ok(()), t);
        marks.keep_only(|_| false, t);
        assert!(marks.pods.is_empty());
    }

    #[test]
    fn a_mark_of_an_earlier_boot_is_taken_away() {
        let t = Instant::now();
        let mut marks = Marks::default();
        see(&mut marks, "a", false, None, t);
        let notes = marks.due(t + SETTLING);
        assert_eq!(all(&notes), [("a", What::Captured(false))]);
    }

    #[test]
    fn a_mark_on_a_pod_that_left_the_mesh_meanwhile_is_taken_away_once() {
        let t = Instant::now();
        let mut marks = Marks::default();
        let (uid, name) = (Arc::from("a"), Arc::from("ns/a"));
        marks.stale(&uid, &name, t);
        marks.keep_only(|_| false, t);
        let notes = marks.due(t);
        assert_eq!(all(&notes), [("a", What::Captured(false))]);
        // The index says it still, for a moment.
        marks.stale(&uid, &name, t);
        marks.keep_only(|_| false, t);
        assert!(marks.due(t).is_empty());
        marks.done(&notes[0], &Ok(()), t);
        marks.keep_only(|_| false, t);
        assert!(marks.pods.is_empty());
    }

    #[test]
    fn what_is_not_written_is_tried_again_more_and_more_slowly() {
        let mut now = Instant::now();
        let mut marks = Marks::default();
        see(&mut marks, "a", true, None, now);
        let mut waits = Vec::new();
        for attempt in 0..8 {
            let from = now;
            let note = loop {
                match marks.due(now).pop() {
                    Some(note) => break note,
                    None => now += Duration::from_millis(500),
                }
            };
            waits.push((now - from).as_secs());
            let first = marks.done(&note, &REFUSED, now);
            assert_eq!(first, attempt == 0, "told once");
        }
        assert_eq!(waits, [0, 1, 2, 4, 8, 16, 32, 60]);
        // It changed its mind meanwhile.
        see(&mut marks, "a", false, None, now);
        assert_eq!(all(&marks.due(now)), [("a", What::Captured(false))]);
    }

    #[test]
    fn a_pod_that_is_gone_is_left() {
        let t = Instant::now();
        let mut marks = Marks::default();
        see(&mut marks, "a", true, None, t);
        let notes = marks.due(t);
        marks.done(&notes[0], &Err(Unwritten::Gone), t);
        assert!(marks.due(t + LAST_RETRY).is_empty());
    }

    #[test]
    fn warnings_are_rare_and_writes_few_at_once() {
        let t = Instant::now();
        let mut marks = Marks::default();
        for n in 0..20 {
            see(&mut marks, &format!("{n:02}"), false, Some("port taken"), t);
        }
        let notes = marks.due(t);
        assert_eq!(notes.len(), AT_ONCE);
        let warning = What::Warning {
            reason: NOT_CAPTURED,
            message: "port taken".into(),
        };
        assert!(notes.iter().all(|note| note.what == warning));
        for note in &notes {
            marks.done(note, &Ok(()), t);
            see(&mut marks, &note.uid, false, Some("port taken"), t);
        }
        let again = marks.due(t);
        assert!(again.iter().all(|note| !notes.contains(note)));
    }

    #[test]
    fn advice_is_given_once_an_hour_and_no_more_when_it_is_taken() {
        let t = Instant::now();
        let mut marks = Marks::default();
        let advice = |message: &str| Advice {
            uid: "a".into(),
            name: "ns/a".into(),
            reason: "UnknownLabelValue",
            message: message.into(),
        };
        marks.advise(vec![advice("one")], t);
        let notes = marks.due(t);
        assert_eq!(notes.len(), 1);
        assert!(marks.due(t).is_empty(), "it is under way");
        marks.done(&notes[0], &Ok(()), t);
        marks.advise(vec![advice("one")], t);
        assert!(marks.due(t + LAST_RETRY).is_empty(), "it was said");
        let again = marks.due(t + AGAIN);
        assert_eq!(again.len(), 1);
        marks.done(&again[0], &REFUSED, t + AGAIN);
        assert_eq!(marks.due(t + AGAIN + LAST_RETRY).len(), 1, "it was lost");
        marks.advise(vec![advice("another")], t);
        assert_eq!(marks.due(t).len(), 1, "it is another");
        marks.advise(Vec::new(), t);
        assert!(marks.due(t + AGAIN * 9).is_empty());
        assert_eq!(marks.advice.len(), 0);
    }
}
