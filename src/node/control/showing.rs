//! Tells people where things stand: the board behind the admin pages, gauges, and the log lines
//! about sources.

use std::cell::OnceCell;
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Instant;

use prometheus_client::metrics::gauge::Gauge;

use crate::api;
use crate::identify::Snapshot;
use crate::mesh::Workload;
use crate::node::admin::Board;
use crate::node::config::Source;
use crate::node::control::handing::Charge;
use crate::node::control::{Control, advising};
use crate::node::listing;
use crate::node::world::World;
use crate::source::Poll;
use crate::telemetry::metrics::{Daemon, Kind as ObjectKind, Member, State};

impl Control {
    /// Tells about problems when they appear and when they go.
    pub(super) fn report(&mut self, poll: &Poll) {
        let problems: Vec<_> = poll.problems.iter().map(listing::problem).collect();
        let before = std::mem::take(&mut self.reports.sources.problems);
        for problem in problems.iter().filter(|problem| !before.contains(problem)) {
            tracing::error!(
                file = %problem.file,
                line = problem.line,
                object = %problem.object,
                reason = %problem.message,
                "source has a problem, the last good state stays",
            );
        }
        for problem in before.iter().filter(|problem| !problems.contains(problem)) {
            tracing::info!(file = %problem.file, object = %problem.object, "source problem is gone");
        }
        let mut by_file = BTreeMap::<String, usize>::new();
        for problem in &problems {
            *by_file.entry(problem.file.clone()).or_default() += 1;
        }
        self.shared.metrics.daemon.set_source_problems(by_file);
        self.reports.sources = api::Sources {
            files: self.config.source.paths(),
            problems,
            notes: std::mem::take(&mut self.reports.sources.notes),
            watches: std::mem::take(&mut self.reports.sources.watches),
        };
        for note in &poll.notes {
            tracing::info!(note = %note, "sources hold what is not used");
            self.reports.sources.notes.push(note.clone());
        }
    }

    /// Tells whether kubelet is known, when that changes.
    pub(super) fn report_kubelet(&mut self, known: bool) {
        self.shared.metrics.daemon.kubelet_known.set(known.into());
        if self.reports.kubelet.replace(known) == Some(known) {
            return;
        }
        if known {
            tracing::info!("kubelet found: its probes pass whatever policy says");
        } else if matches!(self.config.source, Source::Files(_)) {
            tracing::info!("no kubelet here: nothing passes as its probe");
        } else {
            tracing::warn!(
                "kubelet not found: its probes are judged as any plain connection; the daemon must \
                 see the node's processes (hostPID)",
            );
        }
    }

    /// Tells once which pods claim an address that is another's.
    pub(super) fn report_contested(&mut self, snapshot: &Snapshot) {
        let count = snapshot.counts().contested_addresses;
        if count == 0 || count == self.reports.contested {
            self.reports.contested = count;
            return;
        }
        self.reports.contested = count;
        for (claimant, ip) in listing::contested(snapshot) {
            let owner = snapshot.workload_at(ip);
            tracing::warn!(
                address = %ip,
                claimant = %format_args!("{}/{}", claimant.namespace, claimant.name),
                owner = owner.map(|pod| tracing::field::display(format!("{}/{}", pod.namespace, pod.name))),
                "address claimed twice",
            );
        }
    }

    /// Shows people where things stand.
    pub(super) fn show(&mut self) {
        self.count_watches();
        let world = self.shared.world.load();
        let ours = world.snapshot.on_node(&self.shared.node);
        let unsupported = ours.filter(|pod| advising::is_unsupported(pod));
        let pods: Vec<_> = self
            .pods
            .entries()
            .map(|entry| {
                let held = self.held.get(&entry.wanted().uid);
                listing::pod(entry, held.map(|held| &**held), &world)
            })
            .chain(unsupported.map(|pod| listing::unsupported(pod)))
            .collect();
        gauges(&self.shared.metrics.daemon, &pods);
        self.count_objects(&world);
        let board = Board {
            pods,
            sources: self.reports.sources.clone(),
            waiting: self.waiting(),
        };
        self.board.store(Arc::new(board));
    }

    fn count_objects(&self, world: &World) {
        let daemon = &self.shared.metrics.daemon;
        let set = |gauge: &Gauge, count: usize| gauge.set(count.try_into().unwrap_or(i64::MAX));
        let counts = world.snapshot.counts();
        for (kind, count) in [
            ("namespace", counts.namespaces),
            ("node", counts.nodes),
            ("pod", counts.workloads),
            ("service", counts.services),
            ("endpoint_slice", counts.endpoint_slices),
            (
                "authorization_policy",
                world.policies.authorization().count(),
            ),
            (
                "peer_authentication",
                world.policies.peer_authentication().count(),
            ),
        ] {
            set(
                &daemon.index_objects.get_or_create(&ObjectKind { kind }),
                count,
            );
        }
        let certificates = listing::certificates(&self.shared.certificates.report());
        for state in ["valid", "missing", "expired"] {
            let count = certificates.iter().filter(|one| one.state == state).count();
            set(&daemon.certificates.get_or_create(&State { state }), count);
        }
        let ends = certificates
            .iter()
            .map(|one| one.not_after)
            .filter(|end| *end > 0)
            .min();
        daemon
            .certificate_expiry
            .set(ends.unwrap_or(0).try_into().unwrap_or(i64::MAX));
    }

    fn waiting(&self) -> Vec<String> {
        let mut waiting = Vec::new();
        if self.ending.is_some() {
            waiting.push("the daemon is ending".to_owned());
        }
        match &self.charge {
            Charge::Own | Charge::Handing(_) => {}
            Charge::Awaited(..) => {
                let process = self.before.as_ref().map_or(0, |before| before.process);
                waiting.push(format!(
                    "process {process} serves the pods, and has not handed them over yet"
                ));
            }
            Charge::Handed(_) => {
                let (process, _) = self.names();
                return vec![format!(
                    "the pods are served by the next daemon, process {process}"
                )];
            }
        }
        if !self.reports.read_once {
            waiting.extend(self.unread());
        }
        waiting.extend(self.pods.waiting().map(|entry| {
            let name = &entry.wanted().name;
            match entry.last_error() {
                None => format!("pod {name} is not captured yet"),
                Some(why) => format!("pod {name} is not captured: {why}"),
            }
        }));
        waiting
    }

    /// Ends the counters of what is gone.
    pub(super) fn expire(&self) {
        let world = self.shared.world.load();
        let snapshot = &world.snapshot;
        let owners = OnceCell::new();
        let owners = || {
            owners.get_or_init(|| {
                let named =
                    |pod: &'_ Arc<Workload>| (pod.namespace.clone(), pod.owner.name.clone());
                snapshot.workloads().map(named).collect::<HashSet<_>>()
            })
        };
        self.shared
            .metrics
            .traffic
            .expire(Instant::now(), |member| match member {
                Member::Workload { namespace, name } => {
                    owners().contains(&(namespace.into(), name.into()))
                }
                Member::Service { namespace, name } => snapshot.service(namespace, name).is_some(),
            });
    }
}

/// Sets the gauges that follow from the pods.
fn gauges(daemon: &Daemon, pods: &[api::Pod]) {
    for state in [
        api::PodState::Pending,
        api::PodState::Enrolled,
        api::PodState::Failed,
        api::PodState::Draining,
        api::PodState::Unsupported,
    ] {
        let count = pods.iter().filter(|pod| pod.state == state).count();
        let labels = State {
            state: state.as_str(),
        };
        daemon
            .pods
            .get_or_create(&labels)
            .set(count.try_into().unwrap_or(i64::MAX));
    }
    let kept: usize = pods.iter().map(|pod| pod.connections_kept).sum();
    daemon
        .connections_kept
        .set(kept.try_into().unwrap_or(i64::MAX));
}
