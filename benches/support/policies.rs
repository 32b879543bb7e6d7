//! Policies of several kinds in any number, a workload that they bind, and flows to it: shared by
//! the benchmarks of time (`decide`) and of instructions (`counts`).

use std::sync::Arc;

use adit::authorize::{Change, Evaluator, Store};
use adit::mesh::policy::AuthorizationPolicy;
use adit::mesh::{
    Direction, Enrolment, Flow, Identity, Labels, Local, Owner, Path, Peer, Phase, TrustDomain,
    Workload,
};
use serde_json::{Value, json};

/// The spec of policy number `at` of a kind. Most flows match none of the DENY policies and one
/// of the last ALLOW policies.
pub(crate) fn spec(kind: &str, at: usize) -> Value {
    let source = |source: Value| json!({"rules": [{"from": [{"source": source}]}]});
    let deny = |source: Value| json!({"action": "DENY", "rules": [{"from": [{"source": source}]}]});
    let net = || format!("172.16.{}.{}/30", at / 64 % 256, at % 64 * 4);
    match kind {
        "principals" => source(json!({"principals": [
            format!("cluster.local/ns/team-{}/sa/app-{}", at / 10, at % 10),
        ]})),
        "blocks" => deny(json!({"ipBlocks": [net(), "192.168.7.0/24"]})),
        "ports" => json!({"action": "DENY", "rules": [
            {"to": [{"operation": {"ports": [(20000 + at).to_string()]}}]},
        ]}),
        "endings" => source(json!({"principals": [format!("*-of-{at}")]})),
        "suffixes" => source(json!({"principals": [format!("*/sa/other-{at}")]})),
        "prefixes" => source(json!({"principals": [format!("cluster.local/ns/team-{}/*", at)]})),
        "negatives" => deny(json!({"notNamespaces": ["team-*"], "notIpBlocks": [net()]})),
        _ => spec(["principals", "blocks", "ports"][at % 3], at),
    }
}

/// The evaluator of a workload that so many policies of a kind bind.
pub(crate) fn evaluator(kind: &str, policies: usize) -> Evaluator {
    let domain = TrustDomain::parse("cluster.local").unwrap();
    let mut store = Store::new("adit-system", &domain);
    for at in 0..policies {
        let name = format!("policy-{at:04}");
        let policy = AuthorizationPolicy::read(&name, "shop", [("", ""); 0], &spec(kind, at));
        assert!(policy.notices.is_empty(), "{:?}", policy.notices);
        store.apply(Change::Authorization(policy));
    }
    store.policies().evaluator(&workload(&domain))
}

/// The workload.
pub(crate) fn workload(domain: &TrustDomain) -> Workload {
    Workload {
        uid: "uid".into(),
        name: "web-0".into(),
        namespace: "shop".into(),
        identity: Identity::new(domain, "shop", "web").unwrap(),
        node: "node".into(),
        zone: "".into(),
        region: "".into(),
        ips: ["10.0.0.9".parse().unwrap()].into_iter().collect(),
        labels: Labels::new([("app".into(), "web".into())]),
        owner: Owner {
            kind: "deployment".into(),
            name: "web".into(),
        },
        enrolment: Enrolment::Enrolled,
        phase: Phase::Running,
        host_network: false,
        reach: adit::mesh::Reach::AsEnrolled,
        netns: None,
    }
}

/// 256 flows of 100 identities, each from an address of its own.
pub(crate) fn flows() -> Vec<Flow> {
    let domain = TrustDomain::parse("cluster.local").unwrap();
    let workload = Arc::new(workload(&domain));
    (0..256)
        .map(|at| {
            let identity = Identity::new(
                &domain,
                &format!("team-{}", at % 100),
                &format!("app-{}", at % 10),
            );
            Flow {
                direction: Direction::Inbound,
                source: Peer {
                    addr: format!("10.0.1.{at}:40000").parse().unwrap(),
                    identity: Some(identity.unwrap()),
                    workload: Some(Arc::clone(&workload)),
                },
                destination: Local {
                    addr: "10.0.0.9:8080".parse().unwrap(),
                    workload: Some(Arc::clone(&workload)),
                    service: None,
                },
                path: Path::Tunnel,
            }
        })
        .collect()
}
