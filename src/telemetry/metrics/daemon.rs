//! The `adit_*` metrics of the daemon itself: the one list of them, with help texts and labels.
//!
//! The programs set and count them. None is touched more often than once per connection.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Metric, Registry};

/// Label `kind`: `pod`, `service`, …
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Kind {
    /// The word.
    pub kind: &'static str,
}

/// Label `state`: a pod's (`pending`, `enrolled`, `failed`, `draining`, `unsupported`) or a certificate's
/// (`valid`, `missing`, `expired`).
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct State {
    /// The word.
    pub state: &'static str,
}

/// Label `reason`: the stable word of an error or a denial.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Reason {
    /// The word.
    pub reason: &'static str,
}

/// Label `answer`: what the CNI plugin was told of a sandbox (`enrolled`, `bypass`, `refused`,
/// `unknown`).
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Plugin {
    /// The word.
    pub answer: &'static str,
}

/// Label `outcome` of a hand-over: `inherited`, `handed`, `failed`, `taken_back`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Handover {
    /// The word.
    pub outcome: &'static str,
}

/// Labels of a failed handshake.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Failure {
    /// `outbound` or `inbound`, seen from the pod.
    pub direction: &'static str,
    /// The stable word of the error.
    pub reason: &'static str,
}

/// Label `file`: a source file, as the operator named it or as it lies in the directory he named.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct FileName {
    /// Its path.
    pub file: String,
}

/// Labels of a failure to list or watch a kind.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct WatchError {
    /// The kind.
    pub kind: &'static str,
    /// The stable word of the failure.
    pub reason: &'static str,
}

/// Labels of a verdict that was only tried.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct DryRun {
    /// `namespace/name` of the policy.
    pub policy: String,
    /// How it would have turned the decision: `would_allow`, `would_deny`, `would_not_allow`,
    /// `would_refuse`.
    pub verdict: &'static str,
}

/// One metric per direction, without a look-up.
#[derive(Clone, Debug, Default)]
pub struct ByDirection<M> {
    /// Leaving our pods.
    pub outbound: M,
    /// Arriving at our pods.
    pub inbound: M,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Way {
    direction: &'static str,
}

/// Every metric of the daemon. The registered help text says what each field is.
#[derive(Debug)]
#[expect(missing_docs, reason = "the help texts below are the documentation")]
pub struct Daemon {
    pub workers: Gauge,
    pub index_objects: Family<Kind, Gauge>,
    pub source_problems: Family<FileName, Gauge>,
    pub source_loads: Counter,
    pub source_changes: Counter,
    pub source_connected: Family<Kind, Gauge>,
    pub source_synced: Family<Kind, Gauge>,
    pub source_heard: Family<Kind, Gauge>,
    pub source_relists: Family<Kind, Counter>,
    pub source_errors: Family<WatchError, Counter>,
    pub pods: Family<State, Gauge>,
    pub mislabelled: Family<Kind, Gauge>,
    pub enrolments: Counter,
    pub enrol_failures: Family<Reason, Counter>,
    pub capture_repairs: Counter,
    pub sandboxes: Family<Plugin, Counter>,
    pub plugin_installed: Gauge,
    pub kubelet_known: Gauge,
    pub handovers: Family<Handover, Counter>,
    pub handover_pods: Gauge,
    pub handover_listeners: Gauge,
    pub handover_seconds: Gauge<f64, AtomicU64>,
    pub connections_kept: Gauge,
    pub connections_reset: Counter,
    pub certificates: Family<State, Gauge>,
    pub certificates_issued: Counter,
    pub certificate_failures: Family<Reason, Counter>,
    pub certificate_expiry: Gauge,
    pub tunnels: ByDirection<Gauge>,
    pub tunnels_opened: ByDirection<Counter>,
    pub streams: ByDirection<Gauge>,
    pub tunnel_unread: Gauge,
    pub streams_shed: Counter,
    pub connections: Gauge,
    pub connections_refused: Family<Reason, Counter>,
    pub connection_places: Gauge,
    pub handshake_failures: Family<Failure, Counter>,
    pub policy_denials: Family<Reason, Counter>,
    pub policy_cuts: Counter,
    pub dry_run: Family<DryRun, Counter>,
    pub unknown_destinations: Counter,
    pub same_node: Counter,
    pub busy_poll: Counter<f64, AtomicU64>,
}

impl Daemon {
    /// Registers all of them.
    pub(crate) fn register(to: &mut Registry) -> Self {
        build(to);
        let to = to.sub_registry_with_prefix("adit");
        Self {
            workers: add(to, "workers", "Worker threads that carry connections"),
            index_objects: add(to, "index_objects", "Objects in the index, by kind"),
            source_problems: add(
                to,
                "source_problems",
                "Problems found in the source files at present, by file",
            ),
            source_loads: add(
                to,
                "source_loads",
                "Times that changed sources were read and applied",
            ),
            source_changes: add(
                to,
                "source_changes",
                "Objects added, changed or removed by the sources",
            ),
            source_connected: add(
                to,
                "source_connected",
                "Whether the API server is watched at present, by kind",
            ),
            source_synced: add(
                to,
                "source_synced",
                "Whether the API server's objects have been read to their end once, by kind",
            ),
            source_heard: add(
                to,
                "source_heard_timestamp_seconds",
                "When the API server was last heard, in seconds since 1970, by kind; 0 for never",
            ),
            source_relists: add(
                to,
                "source_relists",
                "Times that the API server's objects were listed anew after the first time, by kind",
            ),
            source_errors: add(
                to,
                "source_errors",
                "Failures to list or watch the API server's objects, by kind and reason",
            ),
            pods: add(
                to,
                "pods",
                "Pods of this node that belong to the mesh, by state: pending, enrolled, failed, draining, unsupported",
            ),
            mislabelled: add(
                to,
                "mislabelled",
                "Pods of this node, and namespaces, whose enrolment label says nothing known, by kind",
            ),
            enrolments: add(to, "enrolments", "Pods brought under capture"),
            enrol_failures: add(
                to,
                "enrol_failures",
                "Attempts to bring a pod under capture that failed, by reason",
            ),
            capture_repairs: add(
                to,
                "capture_repairs",
                "Times that a pod's rules or listeners were found gone and were put back",
            ),
            kubelet_known: add(
                to,
                "kubelet_known",
                "1 while this node's kubelet is known, so that its probes pass whatever policy says",
            ),
            plugin_installed: add(
                to,
                "cni_installed",
                "1 while the CNI plugin is in place on the node, 0 while it is not or is not meant to be",
            ),
            sandboxes: add(
                to,
                "cni_sandboxes",
                "New sandboxes that the CNI plugin asked about, by answer",
            ),
            handovers: add(
                to,
                "handovers",
                "Hand-overs between this daemon and the one before or after it, by outcome: inherited, handed, failed, taken_back",
            ),
            handover_pods: add(
                to,
                "handover_pods",
                "Pods that passed in the last hand-over",
            ),
            handover_listeners: add(
                to,
                "handover_listeners",
                "Listeners that passed in the last hand-over",
            ),
            handover_seconds: add(
                to,
                "handover_seconds",
                "How long the last hand-over took, from the request for the pods to the first accept of the next daemon",
            ),
            connections_kept: add(
                to,
                "connections_kept",
                "Connections older than their pod's enrolment that still live outside the mesh",
            ),
            connections_reset: add(
                to,
                "connections_reset",
                "Connections older than their pod's enrolment that were reset",
            ),
            certificates: add(
                to,
                "certificates",
                "Certificates of identities on this node, by state: valid, missing, expired",
            ),
            certificates_issued: add(
                to,
                "certificates_issued",
                "Certificates received from the authority, renewals included",
            ),
            certificate_failures: add(
                to,
                "certificate_failures",
                "Attempts to get a certificate that failed, by reason",
            ),
            certificate_expiry: add(
                to,
                "certificate_expiry_timestamp_seconds",
                "When the certificate that ends first ends, in seconds since 1970; 0 without any",
            ),
            tunnels: directions(to, "tunnels", "Tunnels open at present"),
            tunnels_opened: directions(to, "tunnels_opened", "Tunnels opened"),
            tunnel_unread: add(
                to,
                "tunnel_unread_bytes",
                "Bytes that came through tunnels and wait for applications to read",
            ),
            streams_shed: add(
                to,
                "streams_shed",
                "Connections in tunnels that were reset because too many bytes waited for their readers",
            ),
            streams: directions(to, "streams", "Connections inside tunnels at present"),
            connections: add(to, "connections", "Connections that are carried at present"),
            connections_refused: add(
                to,
                "connections_refused",
                "Connections and tunnels turned away for lack of room, by reason: pod_share, source_share, source_tunnels",
            ),
            connection_places: add(
                to,
                "connection_places",
                "Sockets that this daemon has room for, by its limits of open files and memory",
            ),
            handshake_failures: add(
                to,
                "handshake_failures",
                "Tunnels that did not come to be, by direction and reason",
            ),
            policy_denials: add(
                to,
                "policy_denials",
                "Connections to our pods that policy refused, by reason",
            ),
            policy_cuts: add(
                to,
                "policy_cuts",
                "Live connections ended because a changed policy denies them",
            ),
            dry_run: add(
                to,
                "policy_dry_run",
                "Connections that a policy under dry run would have decided, by policy and verdict",
            ),
            unknown_destinations: add(
                to,
                "unknown_destinations",
                "Connections passed through unchanged because the index does not know the address",
            ),
            same_node: add(
                to,
                "same_node_connections",
                "Connections between two pods of this node that took the short way",
            ),
            busy_poll: add(
                to,
                "busy_poll_seconds",
                "Time that workers spent awake waiting for what comes next",
            ),
        }
    }

    /// Replaces the counts of problems: files that are not named have none.
    pub fn set_source_problems(&self, by_file: impl IntoIterator<Item = (String, usize)>) {
        self.source_problems.clear();
        for (file, count) in by_file {
            let count = count.try_into().unwrap_or(i64::MAX);
            let gauge = self.source_problems.get_or_create_owned(&FileName { file });
            gauge.set(count);
        }
    }
}

/// The build, under our name and under the one that the field's boards ask for.
pub(in crate::telemetry::metrics) fn build(to: &mut Registry) {
    let version = env!("CARGO_PKG_VERSION");
    to.register(
        "adit_build",
        "What this daemon was built from",
        Info::new([("version", version)]),
    );
    let build: Family<[(&str, &str); 2], Gauge> = Family::default();
    build
        .get_or_create_owned(&[("component", "adit"), ("tag", version)])
        .set(1);
    to.register("istio_build", "Version of the component", build);
}

pub(in crate::telemetry::metrics) fn add<M: Metric + Clone + Default>(
    to: &mut Registry,
    name: &str,
    help: &str,
) -> M {
    let metric = M::default();
    to.register(name, help, metric.clone());
    metric
}

fn directions<M>(to: &mut Registry, name: &str, help: &str) -> ByDirection<M>
where
    M: Clone + Default,
    Family<Way, M>: Metric,
{
    let family: Family<Way, M> = add(to, name, help);
    let of = |direction| family.get_or_create_owned(&Way { direction });
    ByDirection {
        outbound: of("outbound"),
        inbound: of("inbound"),
    }
}
