//! What a decision costs, by number and kind of the policies that bind the workload.
//!
//! `cargo bench --bench decide`. Each figure is one decision of one of 256 flows in turn: making
//! the flow's value, which every connection needs anyway, is measured alone as `flow`. The
//! target: under 2 µs with 1,000 policies. After criterion's figures, the 99th percentile of
//! single decisions is printed, with what the clock itself adds.

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use adit::authorize::{Change, Evaluator, Store};
use adit::mesh::policy::AuthorizationPolicy;
use adit::mesh::{
    Direction, Enrolment, Flow, Identity, Labels, Local, Owner, Path, Peer, Phase, TrustDomain,
    Workload,
};
use criterion::{Criterion, criterion_group};
use serde_json::{Value, json};

/// The kinds of policies, each with 10 and 1,000 bound to the workload.
const KINDS: [&str; 7] = [
    "principals",
    "mixed",
    "blocks",
    "ports",
    "prefixes",
    "suffixes",
    "negatives",
];

/// The spec of policy number `at` of a kind. Most flows match none of the DENY policies and one
/// of the last ALLOW policies.
fn spec(kind: &str, at: usize) -> Value {
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
        "suffixes" => source(json!({"principals": [format!("*/sa/other-{at}")]})),
        "prefixes" => source(json!({"principals": [format!("cluster.local/ns/team-{}/*", at)]})),
        "negatives" => deny(json!({"notNamespaces": ["team-*"], "notIpBlocks": [net()]})),
        _ => spec(["principals", "blocks", "ports"][at % 3], at),
    }
}

fn evaluator(kind: &str, policies: usize) -> Evaluator {
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

fn workload(domain: &TrustDomain) -> Workload {
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
        netns: None,
    }
}

fn flows() -> Vec<Flow> {
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

fn decide(criterion: &mut Criterion) {
    let flows = flows();
    let mut next = flows.iter().cycle().cloned();
    criterion.bench_function("flow", |bench| bench.iter(|| next.next()));
    for kind in KINDS {
        for policies in [10, 1000] {
            let evaluator = evaluator(kind, policies);
            let mut next = flows.iter().cycle().cloned();
            criterion.bench_function(&format!("{kind}/{policies}"), |bench| {
                bench.iter(|| evaluator.decide(next.next().expect("a cycle never ends")));
            });
        }
    }
    criterion.bench_function("compile/mixed/1000", |bench| {
        let domain = TrustDomain::parse("cluster.local").unwrap();
        let mut store = Store::new("adit-system", &domain);
        for at in 0..1000 {
            let name = format!("policy-{at:04}");
            let policy =
                AuthorizationPolicy::read(&name, "shop", [("", ""); 0], &spec("mixed", at));
            store.apply(Change::Authorization(policy));
        }
        let (policies, workload) = (store.policies(), workload(&domain));
        bench.iter(|| policies.evaluator(&workload));
    });
}

/// The 99th percentile of single decisions.
fn percentile(one: &mut impl FnMut()) -> Duration {
    let mut took: Vec<Duration> = (0..200_000)
        .map(|_| {
            let start = Instant::now();
            one();
            start.elapsed()
        })
        .collect();
    took.sort_unstable();
    took[took.len() * 99 / 100]
}

#[expect(clippy::print_stdout, reason = "a benchmark's output")]
fn tails() {
    println!("p99 of the clock alone: {:?}", percentile(&mut || {}));
    let flows = flows();
    for kind in KINDS {
        for policies in [10, 1000] {
            let evaluator = evaluator(kind, policies);
            let mut at = 0;
            let p99 = percentile(&mut || {
                at = (at + 1) % flows.len();
                black_box(evaluator.decide(flows[at].clone()));
            });
            println!("p99 of {kind}/{policies}: {p99:?}");
        }
    }
}

criterion_group!(benches, decide);

fn main() {
    benches();
    tails();
    Criterion::default().configure_from_args().final_summary();
}
