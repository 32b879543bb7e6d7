//! What each rule says, of clusters that differ from a sound one in one thing.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Deserialize;
use serde_json::{Value, json};

use super::*;
use crate::api;
use crate::check::facts::{Cluster, Mesh, Place, Rights, Root, SecretNotes, ThisNode};
use crate::check::finding::State;
use crate::check::shape;
use crate::identify::Settings;
use crate::mesh::TrustDomain;

mod installation;
mod kubernetes;
mod node;
mod pods;
mod policies;

const DAY: Duration = Duration::from_secs(86_400);

/// 2026-01-05, eight in the evening.
fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_767_643_200)
}

fn namespace(name: &str, labels: Value) -> Value {
    json!({ "kind": "Namespace", "metadata": { "name": name, "labels": labels } })
}

fn on() -> Value {
    json!({ "adit.mesh/mode": "ambient" })
}

fn node(name: &str) -> Value {
    json!({
        "kind": "Node",
        "metadata": { "name": name, "labels": { "kubernetes.io/os": "linux" } },
        "status": {
            "conditions": [{ "type": "Ready", "status": "True" }],
            "nodeInfo": { "kernelVersion": "6.1.0-18-amd64", "containerRuntimeVersion": "containerd://2.1.0" },
        },
    })
}

/// A pod that has been running since morning; `more` is merged into it.
fn pod(namespace: &str, name: &str, node: &str, more: Value) -> Value {
    let mut pod = json!({
        "kind": "Pod",
        "metadata": {
            "namespace": namespace, "name": name, "labels": { "app": name },
            "annotations": {}, "creationTimestamp": "2026-01-05T08:00:00Z",
        },
        "spec": { "nodeName": node, "containers": [{ "name": "app", "image": "app:1" }] },
        "status": { "phase": "Running", "conditions": [{ "type": "Ready", "status": "True" }] },
    });
    merge(&mut pod, more);
    pod
}

/// The same, captured.
fn captured(name: &str, more: Value) -> Value {
    let mark =
        json!({ "metadata": { "annotations": { "ambient.istio.io/redirection": "enabled" } } });
    let mut pod = pod("shop", name, "n1", mark);
    merge(&mut pod, more);
    pod
}

fn merge(into: &mut Value, more: Value) {
    match (into, more) {
        (Value::Object(into), Value::Object(more)) => {
            for (key, value) in more {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, more) => *into = more,
    }
}

fn workload(kind: &str, name: &str, image: &str, status: Value) -> Value {
    json!({
        "kind": kind,
        "metadata": { "namespace": "adit-system", "name": name },
        "spec": {
            "replicas": 2,
            "selector": { "matchLabels": { "app": name } },
            "template": { "spec": {
                "serviceAccountName": name,
                "containers": [{ "name": "adit", "image": image, "args": ["node", "--ca", "https://adit-control:15012"] }],
            } },
        },
        "status": status,
    })
}

fn ours(name: &str, node: &str) -> Value {
    pod(
        "adit-system",
        &format!("{name}-{node}"),
        node,
        json!({
            "metadata": { "labels": { "app": name } },
            "spec": { "containers": [{ "name": "adit", "image": "adit:0.1.0" }] },
        }),
    )
}

/// A cluster in which nothing is wrong.
fn sound() -> Vec<Value> {
    let ready = json!({ "desiredNumberScheduled": 2, "numberReady": 2 });
    vec![
        node("n1"),
        node("n2"),
        namespace("kube-system", json!({})),
        namespace("adit-system", json!({})),
        namespace("shop", on()),
        namespace("other", json!({})),
        workload("DaemonSet", "adit-node", "adit:0.1.0", ready),
        workload(
            "Deployment",
            "adit-control",
            "adit:0.1.0",
            json!({ "readyReplicas": 2 }),
        ),
        ours("adit-node", "n1"),
        ours("adit-node", "n2"),
        ours("adit-control", "n1"),
        captured("web", json!({})),
        captured("db", json!({})),
        json!({ "kind": "ServiceAccount", "metadata": { "namespace": "shop", "name": "web" } }),
        json!({ "kind": "RuntimeClass", "metadata": { "name": "safe" }, "handler": "kata-qemu" }),
    ]
}

fn facts(objects: &[Value]) -> Facts {
    let mut settings = Settings::new(TrustDomain::parse("cluster.local").unwrap());
    settings.cluster_domain = "cluster.local".to_owned();
    let of = |kind: &'static str| objects.iter().filter(move |one| one["kind"] == kind);
    let root = Root {
        subject: "CN=adit root".to_owned(),
        ends: Some(now() + 3000 * DAY),
        trust_domain: Some("cluster.local".to_owned()),
    };
    let data = |name: &str| of("ConfigMap").find(|map| map["metadata"]["name"] == name);
    let cluster = Cluster {
        server: "v1.34.0".to_owned(),
        rights: Vec::new(),
        nodes: Ok(of("Node")
            .map(|one| read::<shape::Node>(one).fact())
            .collect()),
        namespaces: Ok(of("Namespace")
            .map(|one| read::<shape::Bare>(one).namespace())
            .collect()),
        pods: Ok(of("Pod")
            .map(|one| read::<shape::Pod>(one).fact("adit-system"))
            .collect()),
        accounts: Ok(of("ServiceAccount").map(account).collect()),
        daemon_sets: Ok(of("DaemonSet")
            .map(|one| read::<shape::Controller>(one).fact())
            .collect()),
        deployments: Ok(of("Deployment")
            .map(|one| read::<shape::Controller>(one).fact())
            .collect()),
        definitions: Ok(vec![
            "authorizationpolicies.security.istio.io".to_owned(),
            "peerauthentications.security.istio.io".to_owned(),
        ]),
        admission: Ok(vec!["adit-node".to_owned()]),
        authorization: Ok(of("AuthorizationPolicy")
            .map(shape::authorization)
            .collect()),
        peers: Ok(of("PeerAuthentication")
            .map(shape::peer_authentication)
            .collect()),
        network_policies: Ok(of("NetworkPolicy")
            .map(|one| read::<shape::NetworkPolicy>(one).fact())
            .collect()),
        foreign_policies: Ok(of("CiliumNetworkPolicy")
            .map(|one| shape::foreign("CiliumNetworkPolicy", one))
            .collect()),
        cilium: Ok(data("cilium-config").map(|map| read::<shape::ConfigMap>(map).data)),
        felix: Ok(of("FelixConfiguration").map(shape::felix).next()),
        runtimes: Ok(of("RuntimeClass")
            .map(read::<shape::RuntimeClass>)
            .map(|one| (one.metadata.name, one.handler))
            .collect()),
        roots: Ok(Some(vec![root])),
        secret: Ok(Some(SecretNotes::default())),
    };
    Facts {
        pre: false,
        now: now(),
        version: "0.1.0",
        place: Place {
            namespace: "adit-system".to_owned(),
            bundle: "adit-ca-root".to_owned(),
            secret: "adit-ca".to_owned(),
        },
        told: Mesh {
            settings,
            root_namespace: "adit-system".to_owned(),
        },
        cluster: Asked::Answered(Box::new(cluster)),
        node: None,
    }
}

fn read<'v, T: Deserialize<'v>>(value: &'v Value) -> T {
    T::deserialize(value).unwrap()
}

fn account(one: &Value) -> (String, String) {
    let text = |field: &str| one["metadata"][field].as_str().unwrap().to_owned();
    (text("namespace"), text("name"))
}

/// The finding whose name begins so.
#[track_caller]
fn finding(facts: &Facts, name: &str) -> Finding {
    let mut all = crate::check::rules::check(facts).into_iter();
    let found = all.find(|one| one.name.starts_with(name));
    found.unwrap_or_else(|| panic!("no check {name:?}"))
}

/// Holds that exactly this check notices what is different, and says all of `words`.
#[track_caller]
fn check(different: &[Value], name: &str, state: State, words: &[&str]) {
    let mut objects = sound();
    for one in different {
        let same = |known: &Value| {
            ["kind", "/metadata/namespace", "/metadata/name"]
                .iter()
                .all(|path| {
                    let at = |of: &Value| of.pointer(path).or(of.get(*path)).cloned();
                    at(known) == at(one)
                })
        };
        objects.retain(|known| !same(known));
        objects.push(one.clone());
    }
    changed(&facts(&objects), name, state, words);
}

/// The same, of facts.
#[track_caller]
fn changed(facts: &Facts, name: &str, state: State, words: &[&str]) {
    let all = crate::check::rules::check(facts);
    let odd: Vec<_> = all
        .iter()
        .filter(|one| !matches!(one.state, State::Pass | State::Skipped))
        .collect();
    let found = all.iter().find(|one| one.name.starts_with(name));
    let found = found.unwrap_or_else(|| panic!("no check {name:?}"));
    assert_eq!(found.state, state, "{found:#?}");
    let said = format!("{} {}", found.found, found.items.join("\n"));
    for word in words {
        assert!(said.contains(word), "no {word:?} in {said}");
    }
    if matches!(state, State::Warn | State::Fail) {
        assert!(
            !found.hint.is_empty() && !found.link.is_empty(),
            "{found:#?}"
        );
        assert_eq!(odd, [found], "only this check notices it");
    }
}

/// A change of the facts of a sound cluster.
fn with(change: impl FnOnce(&mut Facts)) -> Facts {
    let mut facts = facts(&sound());
    change(&mut facts);
    facts
}

fn in_cluster(change: impl FnOnce(&mut Cluster)) -> Facts {
    with(|facts| change(cluster_of(facts)))
}

fn cluster_of(facts: &mut Facts) -> &mut Cluster {
    match &mut facts.cluster {
        Asked::Answered(cluster) => cluster,
        other => panic!("{other:?}"),
    }
}

#[test]
fn nothing_is_wrong_in_a_sound_cluster() {
    let facts = facts(&sound());
    for found in crate::check::rules::check(&facts) {
        let local = found.name == "the certificates of nodes are in force";
        let expect = if local { State::Skipped } else { State::Pass };
        assert_eq!(found.state, expect, "{found:#?}");
        assert!(found.hint.is_empty() && found.link.is_empty());
        assert!(!found.found.is_empty());
    }
    assert_eq!(finding(&facts, "pods that should").found, "2 pods captured");
    assert_eq!(
        finding(&facts, "labels of namespaces").found,
        "1 namespace enrolled"
    );
}

#[test]
fn what_is_not_known_is_skipped_and_says_why() {
    let no = || Err("pods is forbidden (403)".to_owned());
    let facts = in_cluster(|cluster| {
        cluster.nodes = Err("forbidden (403)".to_owned());
        cluster.pods = no();
        cluster.network_policies = Err("forbidden (403)".to_owned());
        cluster.runtimes = Err("forbidden (403)".to_owned());
    });
    for found in crate::check::rules::check(&facts) {
        assert!(
            matches!(found.state, State::Pass | State::Skipped),
            "{found:#?}"
        );
    }
    for name in [
        "pods that should",
        "nodes have a kernel",
        "every node",
        "tunnels reach",
        "all is of",
        "policies bind",
    ] {
        let found = finding(&facts, name);
        assert_eq!(found.state, State::Skipped, "{found:#?}");
        assert!(found.found.contains("forbidden"), "{found:#?}");
    }
    let all_gone = in_cluster(|cluster| {
        let no = || "forbidden (403)".to_owned();
        *cluster = Cluster {
            server: cluster.server.clone(),
            rights: Vec::new(),
            nodes: Err(no()),
            namespaces: Err(no()),
            pods: Err(no()),
            accounts: Err(no()),
            daemon_sets: Err(no()),
            deployments: Err(no()),
            definitions: Err(no()),
            admission: Err(no()),
            authorization: Err(no()),
            peers: Err(no()),
            network_policies: Err(no()),
            foreign_policies: Err(no()),
            cilium: Err(no()),
            felix: Err(no()),
            runtimes: Err(no()),
            roots: Err(no()),
            secret: Err(no()),
        };
    });
    let failed = crate::check::rules::check(&all_gone)
        .into_iter()
        .filter(|one| one.state != State::Skipped);
    assert_eq!(failed.count(), 1, "the version of the server is known");
}

#[test]
fn before_an_installation_nothing_is_asked_of_one() {
    let objects: Vec<_> = sound()
        .into_iter()
        .filter(|one| one["metadata"]["namespace"] != "adit-system" && one["kind"] != "Pod")
        .collect();
    let mut facts = facts(&objects);
    facts.pre = true;
    let cluster = cluster_of(&mut facts);
    cluster.definitions = Ok(Vec::new());
    cluster.admission = Ok(Vec::new());
    cluster.roots = Ok(None);
    cluster.secret = Ok(None);
    let all = crate::check::rules::check(&facts);
    assert!(all.iter().all(|one| one.state == State::Pass), "{all:#?}");
    assert!(
        all.iter()
            .all(|one| !["installation", "certificates"].contains(&one.group))
    );
}

/// A link into the README that leads nowhere is worse than none.
#[test]
fn links_lead_somewhere() {
    let readme = include_str!("../../../README.md");
    let headings = readme
        .lines()
        .filter_map(|line| line.trim_start_matches('#').strip_prefix(' '));
    let anchors: Vec<_> = headings
        .map(|text| text.to_lowercase().replace(' ', "-"))
        .collect();
    let sources = [
        include_str!("kubernetes.rs"),
        include_str!("network.rs"),
        include_str!("install.rs"),
        include_str!("certificates.rs"),
        include_str!("labels.rs"),
        include_str!("pods.rs"),
        include_str!("policies.rs"),
        include_str!("tunnels.rs"),
        include_str!("node.rs"),
    ];
    let links = sources
        .iter()
        .flat_map(|text| text.lines())
        .filter_map(|line| line.trim().strip_prefix("link: \"")?.strip_suffix("\","));
    let mut many = 0;
    for link in links.filter(|link| !link.is_empty()) {
        many += 1;
        match link.strip_prefix("README.md#") {
            Some(anchor) => assert!(anchors.iter().any(|one| one == anchor), "{link}"),
            None => assert!(
                link.starts_with("https://kubernetes.io/docs/")
                    || link.starts_with("https://docs.kernel.org/"),
                "{link}"
            ),
        }
    }
    assert!(many > 30, "{many}");
}
