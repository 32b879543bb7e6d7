//! A running watch: initial events, history, bookmarks, and how it breaks.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper::body::Frame;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::routes::status;
use super::server::{Break, Live, Shared, hangup};
use super::store::{Entry, Resource, Selector, Step, Verb};

/// About as many bytes are sent at once.
const FRAME: usize = 64 << 10;

/// What a watch asked for.
pub(super) struct Asked {
    pub(super) resource: Resource,
    pub(super) version: String,
    /// Only of this namespace.
    pub(super) namespace: Option<String>,
    pub(super) selector: Selector,
    /// Metadata only.
    pub(super) partial: bool,
    pub(super) bookmarks: bool,
    /// Where it starts; `None` for now, with everything there is as initial events.
    pub(super) from: Option<u64>,
    /// Whether the end of initial events is to be told.
    pub(super) tell_end: bool,
    pub(super) timeout: Duration,
}

pub(super) struct Watch {
    shared: Arc<Shared>,
    asked: Asked,
    initial: VecDeque<Arc<Entry>>,
    /// The version at which the initial events end, until that is told.
    initial_end: Option<u64>,
    position: u64,
    every: Duration,
    next_bookmark: Instant,
    deadline: Instant,
    changed: watch::Receiver<u64>,
    commands: mpsc::UnboundedReceiver<Break>,
    over: bool,
    /// Whether the connection is to end in disorder.
    hang: bool,
}

impl Watch {
    pub(super) fn new(shared: Arc<Shared>, asked: Asked) -> Self {
        let (sender, commands) = mpsc::unbounded_channel();
        let mut state = shared.lock();
        state.watches.push(Live {
            resource: asked.resource.plural.clone(),
            commands: sender,
        });
        let now = state.store.version;
        let (every, behind) = (state.options.bookmarks, state.options.behind);
        let mut initial = VecDeque::new();
        let mut position = asked.from.unwrap_or(now);
        if asked.from.is_none() {
            let shelf = state.store.shelf(&asked.resource);
            let mut objects = shelf.objects.clone();
            for step in shelf.history.iter().rev().take(behind) {
                position = step.version - 1;
                match &step.before {
                    Some(before) => objects.insert(before.name.clone(), before.clone()),
                    None => objects.remove(&step.entry.name),
                };
            }
            initial = objects.into_values().filter(|e| asked.fits(e)).collect();
        }
        drop(state);
        Self {
            changed: shared.changed.subscribe(),
            initial,
            initial_end: asked.tell_end.then_some(now),
            position,
            every,
            next_bookmark: Instant::now() + every,
            deadline: Instant::now() + asked.timeout,
            shared,
            asked,
            commands,
            over: false,
            hang: false,
        }
    }

    /// The next bytes of the stream.
    pub(super) async fn next(mut self) -> Option<(io::Result<Frame<Bytes>>, Self)> {
        if self.over {
            return None;
        }
        if self.hang {
            self.over = true;
            return Some((Err(hangup()), self));
        }
        loop {
            if let Ok(command) = self.commands.try_recv() {
                return self.break_off(command).await;
            }
            let text = self.gather();
            if !text.is_empty() {
                return Some((Ok(Frame::data(text.into())), self));
            }
            if self.over {
                return None;
            }
            let bookmarks = self.asked.bookmarks;
            tokio::select! {
                _ = self.changed.changed() => {}
                command = self.commands.recv() => match command {
                    Some(command) => return self.break_off(command).await,
                    None => return None,
                },
                () = tokio::time::sleep_until(self.next_bookmark), if bookmarks => {
                    self.next_bookmark = Instant::now() + self.every;
                    if self.position > self.shared.lock().store.version {
                        continue;
                    }
                    let line = self.bookmark(self.position, false);
                    return Some((Ok(Frame::data(line.into())), self));
                }
                () = tokio::time::sleep_until(self.deadline) => return None,
            }
        }
    }

    async fn break_off(mut self, how: Break) -> Option<(io::Result<Frame<Bytes>>, Self)> {
        let frame = |text: String| Ok(Frame::data(Bytes::from(text)));
        match how {
            Break::End => None,
            Break::Stall => {
                std::future::pending::<()>().await;
                None
            }
            Break::Garbage => Some((
                frame("{\"type\":\"ADDED\",\"object\":oops}\n".to_owned()),
                self,
            )),
            Break::Gone | Break::Error(_) => {
                self.over = true;
                let code = if let Break::Error(code) = how {
                    code
                } else {
                    410
                };
                let text = self.error(code);
                Some((frame(text), self))
            }
            Break::MidLine => {
                self.hang = true;
                let half = r#"{"type":"MODIFIED","object":{"kind":"Pod","apiVersion":"v1","meta"#;
                Some((frame(half.to_owned()), self))
            }
        }
    }

    /// Everything that is to be said now, up to a frame.
    fn gather(&mut self) -> String {
        let mut text = String::new();
        while let Some(entry) = self.initial.pop_front() {
            self.line(&mut text, "ADDED", &entry);
            if text.len() > FRAME {
                return text;
            }
        }
        let shared = self.shared.clone();
        let mut state = shared.lock();
        let now = state.store.version;
        let shelf = state.store.shelf(&self.asked.resource);
        if self.position < shelf.dropped {
            self.over = true;
            text.push_str(&self.error(410));
            return text;
        }
        let from = shelf
            .history
            .partition_point(|step| step.version <= self.position);
        let mut all = true;
        for step in &shelf.history[from..] {
            self.position = step.version;
            if let Some((what, entry)) = self.asked.sees(step) {
                self.line(&mut text, what, entry);
            }
            if text.len() > FRAME {
                all = false;
                break;
            }
        }
        if let Some(version) = self.initial_end.filter(|end| all || self.position > *end) {
            self.initial_end = None;
            text.push_str(&self.bookmark(version.max(self.position), true));
        }
        if all {
            // From a version of the future, nothing is told until that has come.
            self.position = self.position.max(now);
        }
        text
    }

    fn line(&self, text: &mut String, what: &str, entry: &Entry) {
        let object = if self.asked.partial {
            entry.metadata()
        } else {
            entry.full(&self.asked.resource, &self.asked.version)
        };
        text.push_str("{\"type\":\"");
        text.push_str(what);
        text.push_str("\",\"object\":");
        text.push_str(&object);
        text.push_str("}\n");
    }

    fn bookmark(&self, version: u64, end: bool) -> String {
        let (kind, api_version) = if self.asked.partial {
            ("PartialObjectMetadata", "meta.k8s.io/v1".to_owned())
        } else {
            let resource = &self.asked.resource;
            (&*resource.kind, resource.api_version(&self.asked.version))
        };
        let mut metadata =
            json!({ "resourceVersion": version.to_string(), "creationTimestamp": null });
        if end {
            metadata["annotations"] = json!({ "k8s.io/initial-events-end": "true" });
        }
        let object: Value =
            json!({ "kind": kind, "apiVersion": api_version, "metadata": metadata });
        format!("{{\"type\":\"BOOKMARK\",\"object\":{object}}}\n")
    }

    fn error(&self, code: u16) -> String {
        let object = status(code, "on command, or too old resource version");
        format!("{{\"type\":\"ERROR\",\"object\":{object}}}\n")
    }
}

impl Asked {
    fn fits(&self, entry: &Entry) -> bool {
        self.namespace.as_ref().is_none_or(|n| *n == entry.name.0) && self.selector.fits(entry)
    }

    /// What a step is to a watch that sees only some objects.
    fn sees<'s>(&self, step: &'s Step) -> Option<(&'static str, &'s Entry)> {
        let before = step.before.as_ref().is_some_and(|entry| self.fits(entry));
        let now = step.verb != Verb::Deleted && self.fits(&step.entry);
        let what = match (before, now) {
            (false, false) => return None,
            (false, true) => "ADDED",
            (true, true) => "MODIFIED",
            (true, false) => "DELETED",
        };
        Some((what, &step.entry))
    }
}
