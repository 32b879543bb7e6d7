//! Tells how the watches of the API server are: metrics, what readiness waits for, `/problems`.

use std::time::{Instant, SystemTime};

use crate::api;
use crate::node::control::Control;
use crate::source::Kind;
use crate::source::kube::Health;
use crate::telemetry::metrics::{Kind as ObjectKind, WatchError};

impl Control {
    /// Counts what has happened to the watches since the last time.
    pub(super) fn count_watches(&mut self) {
        let now = self.feed.health();
        let daemon = &self.shared.metrics.daemon;
        for (at, health) in now.iter().enumerate() {
            let kind = word(health.kind);
            let of = ObjectKind { kind };
            let before = self.reports.health.get(at);
            let connected = &daemon.source_connected;
            connected.get_or_create(&of).set(health.connected.into());
            daemon
                .source_synced
                .get_or_create(&of)
                .set(health.synced.into());
            daemon
                .source_heard
                .get_or_create(&of)
                .set(health.heard.map_or(0, since_1970));
            let relists = health.relists - before.map_or(0, |before| before.relists);
            daemon.source_relists.get_or_create(&of).inc_by(relists);
            for (reason, count) in &health.errors {
                let known = before.and_then(|before| before.errors.get(reason));
                let errors = &daemon.source_errors;
                errors
                    .get_or_create(&WatchError { kind, reason })
                    .inc_by(count - known.unwrap_or(&0));
            }
        }
        self.reports.sources.watches = now.iter().map(watch).collect();
        self.reports.health = now;
    }

    /// What readiness waits for while not everything has been read.
    pub(super) fn unread(&self) -> Vec<String> {
        let unread = self.reports.health.iter().filter(|health| !health.synced);
        let mut waiting: Vec<_> = unread
            .map(|health| match &health.failing {
                Some(why) => why.clone(),
                None => {
                    let (kind, objects) = (health.kind.as_str(), health.objects);
                    format!("{kind} has not been read to its end yet, {objects} so far")
                }
            })
            .collect();
        if waiting.is_empty() {
            waiting.push("the sources have not been read yet".to_owned());
        }
        waiting
    }
}

fn watch(health: &Health) -> api::Watch {
    api::Watch {
        kind: health.kind.as_str().to_owned(),
        connected: health.connected,
        synced: health.synced,
        absent: health.absent,
        objects: health.objects,
        heard: health
            .heard
            .map(since_1970)
            .and_then(|at| u64::try_from(at).ok())
            .unwrap_or(0),
        relists: health.relists,
        errors: health.errors.values().sum(),
        error: health.failing.clone(),
    }
}

fn since_1970(at: Instant) -> i64 {
    let at = SystemTime::now().checked_sub(at.elapsed());
    let since = at.and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok());
    since.and_then(|s| s.as_secs().try_into().ok()).unwrap_or(0)
}

fn word(kind: Kind) -> &'static str {
    match kind {
        Kind::Namespace => "namespace",
        Kind::Node => "node",
        Kind::Pod => "pod",
        Kind::Service => "service",
        Kind::EndpointSlice => "endpoint_slice",
        Kind::AuthorizationPolicy => "authorization_policy",
        Kind::PeerAuthentication => "peer_authentication",
    }
}
