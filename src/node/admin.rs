//! Answers the questions of people and scrapers.
//!
//! What changes rarely lies on a [`Board`] that the control loop renews; the world, the
//! certificates and the counters are read where they are; only the live connections must be asked
//! of the workers.

use std::sync::Arc;
use std::time::Instant;

use arc_swap::ArcSwap;
use tokio::sync::{mpsc, oneshot};

use crate::api;
use crate::explain;
use crate::node::config::{Config, SameNode};
use crate::node::listing;
use crate::node::worker::{Command, Shared};
use crate::telemetry::http::admin::Admin;
use crate::telemetry::log::Log;

/// What the control loop shows to people.
#[derive(Default)]
pub(crate) struct Board {
    /// This node's pods of the mesh.
    pub(crate) pods: Vec<api::Pod>,
    /// The sources and what is wrong there.
    pub(crate) sources: api::Sources,
    /// What readiness waits for; empty when ready.
    pub(crate) waiting: Vec<String>,
}

impl Board {
    /// Before the control loop has shown anything.
    pub(crate) fn starting() -> Self {
        Self {
            waiting: vec!["the daemon is starting".to_owned()],
            ..Self::default()
        }
    }
}

/// Where questions are answered.
pub(crate) struct Desk {
    pub(crate) shared: Arc<Shared>,
    pub(crate) board: Arc<ArcSwap<Board>>,
    pub(crate) workers: Vec<mpsc::UnboundedSender<Command>>,
    pub(crate) config: Config,
    pub(crate) log: Log,
    pub(crate) started: Instant,
}

impl Admin for Desk {
    fn status(&self) -> api::Status {
        let board = self.board.load();
        let world = self.shared.world.load();
        let certificates = self.certificates();
        let daemon = &self.shared.metrics.daemon;
        let gauge = |gauge: &prometheus_client::metrics::gauge::Gauge| {
            u64::try_from(gauge.get()).unwrap_or_default()
        };
        let counted = world.snapshot.counts();
        let pods = |state| board.pods.iter().filter(|pod| pod.state == state).count();
        let with = |state| certificates.iter().filter(|one| one.state == state).count();
        let failed_pods = board.pods.iter().filter(|pod| !pod.error.is_empty());
        let failed_pods =
            failed_pods.map(|pod| format!("pod {}/{}: {}", pod.namespace, pod.name, pod.error));
        let failed_certificates = certificates.iter().filter_map(|one| {
            let error = one.error.as_deref()?;
            Some(format!("certificate of {}: {error}", one.identity))
        });
        api::Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            node: self.shared.node.to_string(),
            uptime_seconds: self.started.elapsed().as_secs_f64(),
            ready: board.waiting.is_empty(),
            waiting_for: board.waiting.clone(),
            workers: self.workers.len(),
            pods: api::PodCounts {
                enrolled: pods(api::PodState::Enrolled),
                pending: pods(api::PodState::Pending),
                failed: pods(api::PodState::Failed),
                draining: pods(api::PodState::Draining),
                unsupported: pods(api::PodState::Unsupported),
            },
            certificates: api::CertificateCounts {
                valid: with("valid"),
                missing: with("missing"),
                expired: with("expired"),
                failing: certificates.iter().filter(|one| one.failures > 0).count(),
            },
            objects: api::ObjectCounts {
                workloads: counted.workloads,
                services: counted.services,
                policies: listing::policies(&world.policies).len(),
            },
            tunnels_outbound: gauge(&daemon.tunnels.outbound),
            tunnels_inbound: gauge(&daemon.tunnels.inbound),
            connections: gauge(&daemon.connections),
            connections_kept: board
                .pods
                .iter()
                .map(|pod| pod.connections_kept as u64)
                .sum(),
            problems: board.sources.problems.clone(),
            watches: board.sources.watches.clone(),
            failures: failed_pods.chain(failed_certificates).collect(),
        }
    }

    fn config(&self) -> api::Config {
        let config = &self.config;
        let text = |path: &std::path::Path| path.display().to_string();
        api::Config {
            sources: config.source.paths(),
            ca: config.ca.to_string(),
            trust_domain: config.trust_domain.to_string(),
            cluster_domain: config.cluster_domain.clone(),
            root_namespace: config.root_namespace.clone(),
            workers: config.workers,
            same_node: config.same_node.as_str().to_owned(),
            existing: config.existing.as_str().to_owned(),
            enrol_labels: config
                .enrol_labels
                .iter()
                .map(|(key, value)| format!("{key}={value}"))
                .collect(),
            excluded_namespaces: config.excluded_namespaces.clone(),
            run_dir: text(&config.run_dir),
            admin: config.admin.to_string(),
            metrics: config.metrics.to_string(),
            ready: config.ready.to_string(),
            drain_seconds: config.drain.as_secs_f64(),
            cert_validity_seconds: config.cert_validity.as_secs_f64(),
        }
    }

    fn sources(&self) -> api::Sources {
        self.board.load().sources.clone()
    }

    fn workloads(&self) -> Vec<api::Workload> {
        let world = self.shared.world.load();
        world
            .snapshot
            .workloads()
            .map(|workload| api::Workload::from(&**workload))
            .collect()
    }

    fn services(&self) -> Vec<api::Service> {
        let world = self.shared.world.load();
        let snapshot = &world.snapshot;
        snapshot
            .services()
            .map(|service| listing::service(snapshot, service))
            .collect()
    }

    fn policies(&self) -> Vec<api::Policy> {
        listing::policies(&self.shared.world.load().policies)
    }

    fn certificates(&self) -> Vec<api::Certificate> {
        listing::certificates(&self.shared.certificates.report())
    }

    fn pods(&self) -> Vec<api::Pod> {
        self.board.load().pods.clone()
    }

    async fn connections(&self) -> Vec<api::Connection> {
        let mut all = Vec::new();
        for worker in &self.workers {
            let (answer, listed) = oneshot::channel();
            if worker.send(Command::List(answer)).is_ok() {
                all.extend(listed.await.unwrap_or_default());
            }
        }
        all
    }

    fn explain(&self, source: &str, destination: &str) -> Result<serde_json::Value, String> {
        let world = self.shared.world.load();
        let settings = explain::Settings {
            cluster_domain: &self.shared.cluster_domain,
            same_node_direct: self.shared.same_node == SameNode::Direct,
        };
        let (snapshot, policies) = (&*world.snapshot, &*world.policies);
        let explanation = explain::explain(snapshot, policies, settings, source, destination)
            .map_err(|error| error.to_string())?;
        serde_json::to_value(explanation).map_err(|error| error.to_string())
    }

    fn log_filter(&self) -> String {
        self.log.filter().as_str().to_owned()
    }

    fn change_log_filter(&self, filter: Option<&str>) -> Result<String, String> {
        let changed = self.log.change(filter).map_err(|error| error.to_string())?;
        Ok(changed.as_str().to_owned())
    }

    fn readiness(&self) -> Result<(), Vec<String>> {
        let board = self.board.load();
        if board.waiting.is_empty() {
            Ok(())
        } else {
            Err(board.waiting.clone())
        }
    }

    fn metrics(&self) -> String {
        self.shared.metrics.encode()
    }
}
