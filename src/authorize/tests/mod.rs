//! What this stage promises: case by case in tables, and as a whole against a plain evaluator.

mod cases;
mod levels;
mod random;
mod reference;

use std::net::SocketAddr;
use std::sync::Arc;

use serde_json::Value;

use crate::authorize::{Change, Store, Verdict};
use crate::mesh::policy::{AuthorizationPolicy, PeerAuthentication};
use crate::mesh::{
    Direction, Enrolment, Flow, Identity, Labels, Local, Owner, Path, Peer, Phase, TrustDomain,
    Workload,
};

/// The root namespace of all tests.
pub(super) const ROOT: &str = "root";

pub(super) fn domain(name: &str) -> TrustDomain {
    TrustDomain::parse(name).unwrap()
}

/// A workload at 10.0.0.9 and fd00::9.
pub(super) fn workload(namespace: &str, labels: &[(&str, &str)]) -> Workload {
    let labels = labels.iter().map(|(k, v)| (Arc::from(*k), Arc::from(*v)));
    Workload {
        uid: "uid".into(),
        name: "pod".into(),
        namespace: namespace.into(),
        identity: Identity::new(&domain("cluster.local"), namespace, "sa").unwrap(),
        node: "node".into(),
        zone: "".into(),
        region: "".into(),
        ips: ["10.0.0.9", "fd00::9"].map(|ip| ip.parse().unwrap()).into(),
        labels: Labels::new(labels),
        owner: Owner {
            kind: "pod".into(),
            name: "pod".into(),
        },
        enrolment: Enrolment::Enrolled,
        phase: Phase::Running,
        host_network: false,
        reach: crate::mesh::Reach::AsEnrolled,
        netns: None,
    }
}

/// A flow from `source` to `destination`; `identity` without `spiffe://`, `-` for plaintext.
pub(super) fn flow(identity: &str, source: &str, destination: &str) -> Flow {
    let identity = (identity != "-")
        .then(|| Identity::parse(&format!("spiffe://{identity}")).expect("an identity"));
    let addr = |text: &str| text.parse::<SocketAddr>().expect("an address");
    Flow {
        direction: Direction::Inbound,
        path: match identity {
            Some(_) => Path::Tunnel,
            None => Path::Plain,
        },
        source: Peer {
            addr: addr(source),
            identity,
            workload: None,
        },
        destination: Local {
            addr: addr(destination),
            workload: None,
            service: None,
        },
    }
}

pub(super) fn authorization(name: &str, spec: &Value) -> AuthorizationPolicy {
    let (namespace, name) = name.split_once('/').unwrap();
    AuthorizationPolicy::read(name, namespace, [("", ""); 0], spec)
}

pub(super) fn rehearsal(name: &str, spec: &Value) -> AuthorizationPolicy {
    let (namespace, name) = name.split_once('/').unwrap();
    AuthorizationPolicy::read(name, namespace, [("istio.io/dry-run", "true")], spec)
}

pub(super) fn peer(name: &str, spec: &Value) -> PeerAuthentication {
    let (namespace, name) = name.split_once('/').unwrap();
    PeerAuthentication::read(name, namespace, [("", ""); 0], spec)
}

pub(super) fn store(policies: impl IntoIterator<Item = Change>) -> Store {
    let mut store = Store::new(ROOT, &domain("cluster.local"));
    policies.into_iter().for_each(|change| store.apply(change));
    store
}

/// A verdict in one line: `ok`, `ok ns/name[rule]`, or the reason with what decided; then the
/// dry-run policies.
pub(super) fn told(verdict: &Verdict) -> String {
    let at = |policy: Option<_>, rule: Option<usize>| {
        let policy = policy.map_or(String::new(), |policy| format!(" {policy}"));
        let rule = rule.map_or(String::new(), |rule| format!("[{rule}]"));
        policy + &rule
    };
    let decision = match &verdict.decision {
        Ok(permit) => format!("ok{}", at(permit.granted_by(), permit.rule())),
        Err(refusal) => {
            let denial = &refusal.denial;
            format!("{}{}", denial.reason(), at(denial.policy(), denial.rule()))
        }
    };
    let dry_run = verdict.dry_run.iter();
    let dry_run = dry_run.map(|dry| format!("; {} {}", dry.policy, dry.would.reason()));
    decision + &dry_run.collect::<String>()
}
