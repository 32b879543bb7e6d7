//! Compiled evaluator and plain evaluator agree on generated policies and flows.

use std::net::{IpAddr, SocketAddr};

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;
use serde_json::{Map, Value, json};

use crate::authorize::tests::reference::Reference;
use crate::authorize::tests::{ROOT, domain, flow, workload};
use crate::authorize::{Change, Store};
use crate::mesh::policy::{AuthorizationPolicy, PeerAuthentication};
use crate::mesh::{Flow, Path};

type Json = BoxedStrategy<Value>;

const DOMAINS: [&str; 3] = ["cluster.local", "mesh.example", "other.example"];

fn word(words: &'static [&'static str]) -> Json {
    select(words).prop_map(Value::from).boxed()
}

fn principal() -> Json {
    let exact = (
        select(&DOMAINS[..]),
        select(&["a", "b"][..]),
        select(&["x", "y"][..]),
    )
        .prop_map(|(domain, ns, sa)| Value::from(format!("{domain}/ns/{ns}/sa/{sa}")));
    let other = word(&[
        "*",
        "*/ns/a/sa/x",
        "*/sa/y",
        "cluster.local/*",
        "cluster.local/ns/a/*",
        "cluster.local*",
        "mesh.example/ns/b/*",
        "spiffe://cluster.local/ns/a/sa/x",
        "no-identity",
    ]);
    prop_oneof![3 => exact, 2 => other].boxed()
}

fn namespace() -> Json {
    word(&["a", "b", "root", "*", "a*", "*b"])
}

fn account() -> Json {
    word(&["x", "y", "a/x", "b/y", "b/x"])
}

fn ip() -> Json {
    word(&[
        "10.0.0.1",
        "10.0.0.2",
        "10.0.0.0/31",
        "10.0.0.0/24",
        "0.0.0.0/0",
        "::/0",
        "fd00::/64",
        "fd00::1",
        "10.0.0.9",
        "10.0.0.8/30",
        "::ffff:10.0.0.0/127",
    ])
}

fn port() -> Json {
    word(&["80", "81", "443"])
}

/// An object in which each field is now and then set to a short list.
fn lists(fields: Vec<(&'static str, Json)>) -> Json {
    let fields: Vec<_> = fields
        .into_iter()
        .map(|(name, value)| {
            let list = prop_oneof![4 => vec(value.clone(), 1..3), 1 => vec(value, 0..1)];
            option::weighted(0.25, list.prop_map(move |list| (name, Value::from(list))))
        })
        .collect();
    fields
        .prop_map(|set| {
            let set = set.into_iter().flatten();
            Value::Object(set.map(|(name, list)| (name.to_owned(), list)).collect())
        })
        .boxed()
}

fn source() -> Json {
    let fields = lists(vec![
        ("principals", principal()),
        ("notPrincipals", principal()),
        ("namespaces", namespace()),
        ("notNamespaces", namespace()),
        ("serviceAccounts", account()),
        ("notServiceAccounts", account()),
        ("ipBlocks", ip()),
        ("notIpBlocks", ip()),
    ]);
    with_rare(fields, "requestPrincipals", json!(["*"]))
        .prop_map(|fields| json!({ "source": fields }))
        .boxed()
}

fn operation() -> Json {
    let fields = lists(vec![("ports", port()), ("notPorts", port())]);
    with_rare(fields, "methods", json!(["GET"]))
        .prop_map(|fields| json!({ "operation": fields }))
        .boxed()
}

fn condition() -> Json {
    let keyed = |key: &'static str, value: Json| {
        let lists = lists(vec![
            ("values", value.clone()),
            ("notValues", value.clone()),
        ]);
        (lists, value).prop_map(move |(mut lists, value)| {
            let map = lists.as_object_mut().unwrap();
            if map.values().all(|list| list == &json!([])) {
                map.insert("values".to_owned(), json!([value]));
            }
            map.insert("key".to_owned(), key.into());
            lists
        })
    };
    prop_oneof![
        4 => keyed("source.ip", ip()),
        4 => keyed("source.namespace", namespace()),
        4 => keyed("source.principal", principal()),
        4 => keyed("source.serviceAccount", account()),
        4 => keyed("destination.ip", ip()),
        4 => keyed("destination.port", port()),
        1 => keyed("request.headers[x]", namespace()),
    ]
    .boxed()
}

fn with_rare(object: Json, field: &'static str, value: Value) -> Json {
    (object, prop::bool::weighted(0.06))
        .prop_map(move |(mut object, rare)| {
            if rare {
                object[field] = value.clone();
            }
            object
        })
        .boxed()
}

fn rule() -> Json {
    let parts = (
        option::weighted(0.7, vec(source(), 0..3)),
        option::weighted(0.4, vec(operation(), 0..3)),
        option::weighted(0.3, vec(condition(), 0..3)),
    );
    let rule = parts.prop_map(|(from, to, when)| {
        let parts = [("from", from), ("to", to), ("when", when)];
        let set = parts
            .into_iter()
            .filter_map(|(name, list)| Some((name, list?)));
        Value::Object(
            set.map(|(name, list)| (name.to_owned(), list.into()))
                .collect(),
        )
    });
    rule.boxed()
}

fn selector() -> impl Strategy<Value = Option<Value>> {
    let labels = select(vec![
        json!({}),
        json!({"app": "web"}),
        json!({"app": "web", "tier": "1"}),
        json!({"app": "db"}),
        json!({"tier": 1}),
    ]);
    option::weighted(
        0.4,
        labels.prop_map(|labels| json!({ "matchLabels": labels })),
    )
}

fn set(parts: Vec<(&str, Option<Value>)>) -> Value {
    let set = parts
        .into_iter()
        .filter_map(|(name, v)| Some((name.to_owned(), v?)));
    Value::Object(set.collect::<Map<_, _>>())
}

fn authorization() -> impl Strategy<Value = AuthorizationPolicy> {
    let action = prop_oneof![
        5 => Just(Some("ALLOW")), 3 => Just(None), 8 => Just(Some("DENY")), 1 => Just(Some("AUDIT")),
    ];
    let rules = option::weighted(0.95, vec(rule(), 0..4));
    let dry_run = prop::bool::weighted(0.25);
    let place = (select(&["a", "b", ROOT][..]), 0..4usize);
    (place, action, selector(), rules, dry_run).prop_map(
        |((namespace, name), action, selector, rules, dry_run)| {
            let spec = set(vec![
                ("action", action.map(Into::into)),
                ("selector", selector),
                ("rules", rules.map(Into::into)),
            ]);
            let annotations = dry_run.then_some(("istio.io/dry-run", "true"));
            AuthorizationPolicy::read(&format!("p{name}"), namespace, annotations, &spec)
        },
    )
}

fn mode() -> impl Strategy<Value = Option<Value>> {
    let modes = [
        "UNSET",
        "DISABLE",
        "PERMISSIVE",
        "STRICT",
        "STRICT",
        "MUTUAL",
    ];
    let modes = select(modes.to_vec()).prop_map(|mode| json!({ "mode": mode }));
    option::weighted(0.8, modes)
}

fn peer() -> impl Strategy<Value = PeerAuthentication> {
    let ports = option::weighted(0.3, (select(&["80", "443"][..]), mode()));
    let created = option::of(select(
        &["2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"][..],
    ));
    let place = (select(&["a", "b", ROOT][..]), 0..4usize);
    (place, mode(), selector(), ports, created).prop_map(
        |((namespace, name), mode, selector, ports, created)| {
            let spec = set(vec![
                ("mtls", mode),
                ("selector", selector),
                (
                    "portLevelMtls",
                    ports.map(|(port, mode)| json!({ port: mode })),
                ),
            ]);
            let none = [("", ""); 0];
            let peer = PeerAuthentication::read(&format!("p{name}"), namespace, none, &spec);
            peer.created(created)
        },
    )
}

fn any_flow() -> impl Strategy<Value = Flow> {
    let identity = (
        select(&DOMAINS[..]),
        select(&["a", "b"][..]),
        select(&["x", "y"][..]),
    )
        .prop_map(|(domain, ns, sa)| format!("{domain}/ns/{ns}/sa/{sa}"));
    let identity = prop_oneof![3 => identity, 1 => Just("-".to_owned())];
    let from = select(vec![
        "10.0.0.1",
        "10.0.0.2",
        "10.0.1.1",
        "fd00::1",
        "2001:db8::1",
    ]);
    let to = select(vec!["10.0.0.9", "fd00::9"]);
    let path = select(vec![Path::Tunnel, Path::SameNode, Path::Plain]);
    (identity, from, to, select(vec![80u16, 81, 443]), path).prop_map(
        |(identity, from, to, port, path)| {
            let addr =
                |ip: &str, port| SocketAddr::new(ip.parse::<IpAddr>().unwrap(), port).to_string();
            let mut flow = flow(&identity, &addr(from, 1), &addr(to, port));
            flow.path = path;
            flow
        },
    )
}

/// As an API server keeps them: one per name.
fn unique<T>(all: Vec<T>, name: impl Fn(&T) -> String) -> Vec<T> {
    let mut seen = std::collections::BTreeSet::new();
    let mut all = all;
    all.retain(|one| seen.insert(name(one)));
    all
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 3000,
        // A failure prints its smallest example; no file is left at the top of the tree.
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn the_compiled_evaluator_is_the_plain_one(
        authorization in vec(authorization(), 0..7),
        peer in vec(peer(), 0..5),
        flows in vec(any_flow(), 12),
        crowded: bool,
        own in select(vec!["cluster.local", "mesh.example"]),
        labels in select(vec![&[("app", "web")][..], &[("app", "web"), ("tier", "1")], &[]]),
        namespace in select(vec!["a", "b", ROOT]),
    ) {
        let mut authorization = unique(authorization, |p| p.name.to_string());
        if crowded {
            // Enough that answers are kept, and none that changes one.
            let rules = vec![json!({"from": [{"source": {"principals": ["nobody"]}}]}); 9];
            let spec = json!({"action": "DENY", "rules": rules});
            let annotations = [("istio.io/dry-run", "true")];
            authorization.push(AuthorizationPolicy::read("crowd", ROOT, annotations, &spec));
        }
        let peer = unique(peer, |p| p.name.to_string());
        let mut store = Store::new(ROOT, &domain(own));
        authorization.iter().for_each(|p| store.apply(Change::Authorization(p.clone())));
        peer.iter().for_each(|p| store.apply(Change::PeerAuthentication(p.clone())));
        let workload = workload(namespace, labels);
        let evaluator = store.policies().evaluator(&workload);
        let reference = Reference {
            root: ROOT,
            trust_domain: own,
            authorization: &authorization,
            peer: &peer,
        };
        for flow in flows {
            let (expect, dry_run) = reference.decide(&workload, &flow);
            let considered = evaluator.considered(&flow);
            let verdict = evaluator.decide(flow);
            prop_assert_eq!(&verdict.dry_run, &dry_run);
            match (&verdict.decision, &expect) {
                (Ok(permit), Ok(expect)) => {
                    let got = permit.granted_by().cloned().zip(permit.rule());
                    prop_assert_eq!(&got, expect);
                    prop_assert_eq!(evaluator.recheck(permit), None);
                }
                (Err(refusal), Err(expect)) => {
                    prop_assert_eq!(&refusal.denial, expect);
                }
                (got, expect) => prop_assert!(false, "{:?} instead of {:?}", got, expect),
            }
            // What is told of the policies agrees with what was decided by them.
            let decided = match &expect {
                Ok(grant) => grant.clone(),
                Err(denial) => denial.policy().cloned().zip(denial.rule()),
            };
            if let Some((name, rule)) = decided {
                let told = considered.iter().find(|c| c.policy.name == name).unwrap();
                prop_assert_eq!(told.rules.iter().position(Option::is_none), Some(rule));
            }
        }
    }
}
