//! The `adit_control_*` metrics of the certificate authority: the one list of them.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::telemetry::log::Dropped;
use crate::telemetry::metrics::daemon::{Reason, add, build};
use crate::telemetry::metrics::{process, text};

/// Every metric of the authority. The registered help text says what each field is.
#[derive(Debug)]
#[expect(missing_docs, reason = "the help texts below are the documentation")]
pub struct Control {
    pub issued: Counter,
    pub refused: Family<Reason, Counter>,
    pub issue_seconds: Counter<f64, std::sync::atomic::AtomicU64>,
    pub connections: Gauge,
    pub connections_refused: Counter,
    pub handshake_failures: Counter,
    pub reviews: Counter,
    pub nodes_watched: Gauge,
    pub keep_failures: Family<Reason, Counter>,
    pub authority_expiry: Gauge,
    pub roots: Gauge,
    registry: Registry,
}

impl Control {
    /// Empty metrics.
    #[must_use]
    pub fn new(dropped: Option<Dropped>) -> Self {
        let mut registry = Registry::default();
        build(&mut registry);
        registry.register_collector(Box::new(process::Process::new(dropped)));
        let to = registry.sub_registry_with_prefix("adit_control");
        let mut control = Self {
            issued: add(to, "certificates_issued", "Certificates signed"),
            refused: add(
                to,
                "certificates_refused",
                "Requests for a certificate that were refused, by reason",
            ),
            issue_seconds: add(
                to,
                "issue_seconds",
                "Time spent on requests that were granted, from their arrival to the signature",
            ),
            connections: add(to, "connections", "Connections of nodes at present"),
            connections_refused: add(
                to,
                "connections_refused",
                "Connections refused because their address held its share of all",
            ),
            handshake_failures: add(
                to,
                "handshake_failures",
                "Connections that did not get through TLS",
            ),
            reviews: add(
                to,
                "token_reviews",
                "Tokens that the API server was asked about",
            ),
            nodes_watched: add(
                to,
                "nodes_watched",
                "Nodes whose pods are watched at present",
            ),
            keep_failures: add(
                to,
                "authority_failures",
                "Times that the authority could not be read or published, by reason",
            ),
            authority_expiry: add(
                to,
                "authority_expiry_timestamp_seconds",
                "When the authority's certificate ends, in seconds since 1970; 0 without one",
            ),
            roots: add(
                to,
                "roots",
                "Roots that are trusted: more than one during a rotation",
            ),
            registry: Registry::default(),
        };
        control.registry = registry;
        control
    }

    /// All metrics as OpenMetrics text.
    #[must_use]
    pub fn encode(&self) -> String {
        text(&self.registry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_tells_about_the_authority() {
        let metrics = Control::new(None);
        metrics.issued.inc();
        let refused = Reason { reason: "no_token" };
        metrics.refused.get_or_create(&refused).inc();
        let text = metrics.encode();
        for line in [
            "adit_control_certificates_issued_total 1",
            "adit_control_certificates_refused_total{reason=\"no_token\"} 1",
            "adit_control_authority_expiry_timestamp_seconds 0",
        ] {
            assert!(text.lines().any(|l| l == line), "no {line:?} in\n{text}");
        }
    }
}
