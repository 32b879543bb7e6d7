//! What a decision costs, by number and kind of the policies that bind the workload.
//!
//! `cargo bench --bench decide`. Each figure is one decision of one of 256 flows in turn: making
//! the flow's value, which every connection needs anyway, is measured alone as `flow`. The
//! target: under 2 µs with 1,000 policies. After criterion's figures, the 99th percentile of
//! single decisions is printed, with what the clock itself adds; then what the first decision of a
//! kind of flow costs where answers are kept, and decisions of many workloads in turn, which find
//! nothing in the processor's caches.

use std::hint::black_box;
use std::time::{Duration, Instant};

use adit::authorize::{Change, Store};
use adit::mesh::TrustDomain;
use adit::mesh::policy::AuthorizationPolicy;
use criterion::{Criterion, criterion_group};

use policies::{evaluator, flows, spec, workload};

#[path = "support/policies.rs"]
mod policies;

/// The kinds of policies, each with 10 and 1,000 bound to the workload.
const KINDS: [&str; 8] = [
    "principals",
    "mixed",
    "blocks",
    "ports",
    "prefixes",
    "suffixes",
    "endings",
    "negatives",
];

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
    for kind in ["endings", "negatives"] {
        let mut took: Vec<Duration> = flows[..100]
            .iter()
            .map(|flow| {
                let evaluator = evaluator(kind, 1000);
                let start = Instant::now();
                black_box(evaluator.decide(flow.clone()));
                start.elapsed()
            })
            .collect();
        took.sort_unstable();
        println!(
            "the first of its kind by {kind}/1000: median {:?}",
            took[50]
        );
    }
    for policies in [3, 30] {
        let evaluators: Vec<_> = (0..250).map(|_| evaluator("mixed", policies)).collect();
        let mut at = 0_usize;
        let p99 = percentile(&mut || {
            at = at
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let (one, flow) = (&evaluators[(at >> 33) % 250], &flows[(at >> 50) % 256]);
            black_box(one.decide(flow.clone()));
        });
        println!("p99 of mixed/{policies} for any of 250 workloads: {p99:?}");
    }
}

criterion_group!(benches, decide);

fn main() {
    benches();
    tails();
    Criterion::default().configure_from_args().final_summary();
}
