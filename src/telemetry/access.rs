//! The access record: one line per connection at its end, and one at its start on request.
//!
//! Both are `tracing` events of the target `access`: the end at `info`, the start at `debug`, so
//! that `--log info,access=debug` asks for both and `--log info,access=off` for none. The end of a
//! probe that went well is at `debug`, too: kubelet makes one every few seconds and pod. Field names
//! are the field's (ztunnel's), with `path`, `reason` and `policy` added. A field that is not
//! known is left out.
//!
//! Writing never waits: see [`log`](crate::telemetry::log).

use std::fmt::Display;
use std::net::SocketAddr;
use std::time::Duration;

use crate::mesh::{Direction, Flow, Identity, Service, TunnelAddr, Workload, service_hostname};
use crate::telemetry::Outcome;

/// The target of both events, for filters.
pub const TARGET: &str = "access";

/// A connection, as its record describes it.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    /// Its number in this daemon, as in the admin dump.
    pub id: u64,
    /// Who, to whom, by which way.
    pub flow: &'a Flow,
    /// The tunnel port it goes through, on the tunnel path.
    pub via: Option<TunnelAddr>,
    /// For the full names of services.
    pub cluster_domain: &'a str,
}

/// What became of it.
#[derive(Clone, Copy)]
pub struct End<'a> {
    /// How it ended.
    pub outcome: Outcome,
    /// What went wrong, as a person wants to read it: the error with its causes.
    pub error: Option<&'a dyn Display>,
    /// `namespace/name` of the policy that decided, where one did.
    pub policy: Option<&'a dyn Display>,
    /// Bytes from source to destination.
    pub source_to_destination: u64,
    /// Bytes from destination to source.
    pub destination_to_source: u64,
    /// From accept to end.
    pub duration: Duration,
    /// Whether it is one of many that nobody looks for.
    pub quiet: bool,
}

/// An event of the log with the two ends of a record's connection, and what else is given. A macro,
/// because fields and level of an event are constants.
macro_rules! say {
    ($level:ident, $record:expr, $ends:expr, $($rest:tt)+) => {
        tracing::$level!(
            target: TARGET,
            id = $record.id,
            src.addr = %$record.flow.source.addr,
            src.workload = $ends.source.map(|w| &*w.name),
            src.namespace = $ends.source.map(|w| &*w.namespace),
            src.identity = $ends.source_identity.map(tracing::field::display),
            dst.addr = %$ends.address,
            dst.hbone_addr = $ends.hbone_address.map(tracing::field::display),
            dst.service = $ends.service().as_deref(),
            dst.workload = $ends.destination.map(|w| &*w.name),
            dst.namespace = $ends.destination.map(|w| &*w.namespace),
            dst.identity = $ends.destination_identity.map(tracing::field::display),
            direction = $record.flow.direction.as_str(),
            path = $record.flow.path.as_str(),
            $($rest)+
        )
    };
}

impl Record<'_> {
    /// Records the start.
    pub fn opened(&self) {
        let ends = Ends::of(self);
        say!(debug, self, ends, "connection opened");
    }

    /// Records the end.
    pub fn closed(&self, end: &End<'_>) {
        let ends = Ends::of(self);
        let (sent, received) = end.seen_from_pod(self.flow.direction);
        let record = end.outcome.reason().map_or("connection complete", |_| {
            if end.outcome.failed() {
                "connection failed"
            } else {
                "connection closed"
            }
        });
        macro_rules! say_end {
            ($level:ident) => {
                say!(
                    $level,
                    self,
                    ends,
                    bytes_sent = sent,
                    bytes_recv = received,
                    duration = format_args!("{}ms", end.duration.as_millis()),
                    reason = end.outcome.reason(),
                    policy = end.policy.map(tracing::field::display),
                    error = end.error.map(tracing::field::display),
                    "{record}"
                )
            };
        }
        if end.quiet {
            say_end!(debug);
        } else {
            say_end!(info);
        }
    }
}

impl End<'_> {
    /// Bytes sent and received by our pod: records look from the pod, unlike the metrics.
    fn seen_from_pod(&self, direction: Direction) -> (u64, u64) {
        match direction {
            Direction::Outbound => (self.source_to_destination, self.destination_to_source),
            Direction::Inbound => (self.destination_to_source, self.source_to_destination),
        }
    }
}

/// The two ends of a record, as far as they are known and vouched for.
struct Ends<'a> {
    source: Option<&'a Workload>,
    source_identity: Option<&'a Identity>,
    destination: Option<&'a Workload>,
    destination_identity: Option<&'a Identity>,
    address: SocketAddr,
    hbone_address: Option<SocketAddr>,
    service: Option<&'a Service>,
    cluster_domain: &'a str,
}

impl<'a> Ends<'a> {
    fn of(record: &Record<'a>) -> Self {
        let flow = record.flow;
        let destination = flow.destination.workload.as_deref();
        let authenticated = flow.path.authenticated();
        Self {
            source: flow.source.workload.as_deref(),
            source_identity: flow.source.identity.as_ref().filter(|_| authenticated),
            destination,
            destination_identity: destination
                .filter(|_| authenticated)
                .map(|workload| &workload.identity),
            address: record.via.map_or(flow.destination.addr, TunnelAddr::get),
            hbone_address: record.via.map(|_| flow.destination.addr),
            service: flow.destination.service.as_deref(),
            cluster_domain: record.cluster_domain,
        }
    }

    /// The service's full name, which only a line that is written needs.
    fn service(&self) -> Option<String> {
        let service = self.service?;
        Some(service_hostname(service, self.cluster_domain))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mesh::{Local, Path, Peer, TrustDomain};
    use crate::telemetry::line::tests::logged;
    use crate::telemetry::log;

    fn flow(direction: Direction) -> Flow {
        let domain = TrustDomain::parse("cluster.local").unwrap();
        Flow {
            direction,
            source: Peer {
                addr: "10.0.0.1:40000".parse().unwrap(),
                identity: Some(Identity::new(&domain, "shop", "web").unwrap()),
                workload: None,
            },
            destination: Local {
                addr: "10.0.0.2:6379".parse().unwrap(),
                workload: None,
                service: None,
            },
            path: Path::Tunnel,
        }
    }

    fn close(direction: Direction, outcome: Outcome) {
        let flow = flow(direction);
        let record = Record {
            id: 7,
            flow: &flow,
            via: Some(TunnelAddr::new("10.0.0.2:15008".parse().unwrap())),
            cluster_domain: "cluster.local",
        };
        record.opened();
        record.closed(&End {
            outcome,
            error: outcome.failed().then_some(&"no way" as &dyn Display),
            policy: None,
            source_to_destination: 10,
            destination_to_source: 200,
            duration: Duration::from_millis(31),
            quiet: false,
        });
    }

    #[test]
    fn a_record_in_json_has_the_fields_of_the_field() {
        let text = logged("info", log::Format::Json, || {
            close(Direction::Outbound, Outcome::Complete);
        });
        assert_eq!(
            text.lines().count(),
            1,
            "the start is not recorded unasked: {text}"
        );
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        let check = |field: &str, expect: serde_json::Value| assert_eq!(json[field], expect);
        check("level", "INFO".into());
        check("target", "access".into());
        check("message", "connection complete".into());
        check("src.addr", "10.0.0.1:40000".into());
        check(
            "src.identity",
            "spiffe://cluster.local/ns/shop/sa/web".into(),
        );
        check("dst.addr", "10.0.0.2:15008".into());
        check("dst.hbone_addr", "10.0.0.2:6379".into());
        check("direction", "outbound".into());
        check("path", "tunnel".into());
        check("bytes_sent", 10.into());
        check("bytes_recv", 200.into());
        check("duration", "31ms".into());
        check("reason", serde_json::Value::Null);
    }

    #[test]
    fn a_record_in_text_looks_from_the_pod_and_says_why() {
        let text = logged("info", log::Format::Text, || {
            close(Direction::Inbound, Outcome::DialFailed);
        });
        for part in [
            "INFO access: connection failed",
            "bytes_sent=200 bytes_recv=10",
            "reason=\"dial_failed\"",
            "error=no way",
        ] {
            assert!(text.contains(part), "no {part:?} in {text}");
        }
        assert!(!text.contains("policy"), "{text}");
    }
}
