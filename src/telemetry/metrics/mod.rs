//! Metrics, as Prometheus scrapes them.
//!
//! Two halves: the `istio_tcp_*` counters of connections, labelled by workload ([`Traffic`]), and
//! the `adit_*` metrics of the daemon itself ([`Daemon`]). [`Metrics`] holds both and writes them
//! in the OpenMetrics text format. The certificate authority has its own ([`Control`]). No label is an address, a pod's own name or raw text of a peer:
//! what a label may hold is bounded by the cluster's objects.

mod control;
mod daemon;
mod labels;
mod process;
mod traffic;

use std::time::Instant;

use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;

use crate::telemetry::log::Dropped;

pub use control::Control;
pub use daemon::{
    ByDirection, Daemon, DryRun, Failure, FileName, Handover, Kind, Plugin, Reason, State,
    WatchError,
};
pub use labels::Member;
pub use traffic::{Opened, Recorder, Traffic};

/// The content type of [`Metrics::encode`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Everything this daemon counts.
#[derive(Debug)]
pub struct Metrics {
    /// Connections, by workload.
    pub traffic: Traffic,
    /// The daemon itself.
    pub daemon: Daemon,
    registry: Registry,
}

impl Metrics {
    /// Empty metrics for a daemon of so many workers. `dropped` counts the log lines that found
    /// the log's queue full.
    #[must_use]
    pub fn new(
        workers: usize,
        cluster_domain: &str,
        dropped: Option<Dropped>,
        now: Instant,
    ) -> Self {
        let mut registry = Registry::default();
        let traffic = Traffic::new(workers, cluster_domain, now);
        registry.register_collector(Box::new(traffic.clone()));
        let daemon = Daemon::register(&mut registry);
        daemon.workers.set(workers.try_into().unwrap_or(i64::MAX));
        registry.register_collector(Box::new(process::Process::new(dropped)));
        Self {
            traffic,
            daemon,
            registry,
        }
    }

    /// All metrics as OpenMetrics text.
    #[must_use]
    pub fn encode(&self) -> String {
        text(&self.registry)
    }
}

fn text(registry: &Registry) -> String {
    let mut text = String::new();
    encode(&mut text, registry).expect("writing to a string does not fail");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_is_openmetrics_and_tells_about_the_process() {
        let metrics = Metrics::new(2, "cluster.local", None, Instant::now());
        metrics.daemon.tunnels.outbound.inc();
        let text = metrics.encode();
        assert!(text.ends_with("# EOF\n"));
        for line in [
            "adit_workers 2",
            "adit_tunnels{direction=\"outbound\"} 1",
            "adit_log_lines_dropped_total 0",
            "# TYPE istio_tcp_sent_bytes counter",
        ] {
            assert!(text.lines().any(|l| l == line), "no {line:?} in\n{text}");
        }
        for name in [
            "process_open_fds ",
            "process_resident_memory_bytes ",
            "adit_build_info{",
        ] {
            assert!(
                text.lines().any(|l| l.starts_with(name)),
                "no {name:?} in\n{text}"
            );
        }
    }
}
