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
        cluster: Some(cluster),
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
    with(|facts| change(facts.cluster.as_mut().unwrap()))
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
fn the_cluster_must_be_new_enough_and_let_us() {
    let server = |version: &str| in_cluster(|cluster| cluster.server = version.to_owned());
    changed(
        &server("v1.30.2-gke.100"),
        "the API server is",
        State::Pass,
        &["v1.30.2"],
    );
    changed(
        &server("v1.29.9"),
        "the API server is",
        State::Fail,
        &["v1.29.9"],
    );
    changed(&server("main"), "the API server is", State::Warn, &["main"]);
    let rights = |granted| {
        in_cluster(|cluster| {
            cluster.rights = vec![Rights {
                who: "this account".to_owned(),
                purpose: "install Adit",
                granted,
            }];
        })
    };
    let lacks = Ok(vec![
        ("create namespaces".to_owned(), true),
        ("create daemonsets.apps".to_owned(), false),
    ]);
    changed(
        &rights(lacks),
        "what must be allowed",
        State::Fail,
        &["this account lacks 1 right", "create daemonsets"],
    );
    changed(
        &rights(Err("forbidden".to_owned())),
        "what must be allowed",
        State::Skipped,
        &["forbidden"],
    );
    let kernel = |version: &str| {
        let mut old = node("n2");
        old["status"]["nodeInfo"]["kernelVersion"] = json!(version);
        old
    };
    check(
        &[kernel("5.10.0-28-amd64")],
        "nodes have a kernel",
        State::Fail,
        &["n2: 5.10.0"],
    );
    check(
        &[kernel("4.18.0-553.el8.x86_64")],
        "nodes have a kernel",
        State::Warn,
        &["4.18"],
    );
    check(
        &[kernel("5.14.0")],
        "nodes have a kernel",
        State::Pass,
        &["2 nodes"],
    );
    let mut docker = node("n2");
    docker["status"]["nodeInfo"]["containerRuntimeVersion"] = json!("docker://27.0.1");
    check(
        &[docker],
        "nodes have a container runtime",
        State::Warn,
        &["n2: docker://27"],
    );
}

fn cilium(settings: Value) -> Vec<Value> {
    let mut set = workload(
        "DaemonSet",
        "cilium",
        "quay.io/cilium/cilium:v1.18.0@sha256:00",
        json!({}),
    );
    set["metadata"]["namespace"] = json!("kube-system");
    let map = json!({
        "kind": "ConfigMap", "metadata": { "namespace": "kube-system", "name": "cilium-config" },
        "data": settings,
    });
    vec![set, map]
}

#[test]
fn networks_that_do_not_go_with_a_mesh_are_told() {
    let exclusive = "the pod network leaves";
    let services = "connections to services";
    check(
        &cilium(json!({ "cni-exclusive": "false" })),
        exclusive,
        State::Pass,
        &["Cilium"],
    );
    check(
        &cilium(json!({})),
        "the pod network is known",
        State::Pass,
        &["Cilium"],
    );
    check(
        &cilium(json!({ "cni-exclusive": "true" })),
        exclusive,
        State::Fail,
        &["cni-exclusive"],
    );
    let replaced = json!({ "kube-proxy-replacement": "true" });
    check(
        &cilium(replaced),
        services,
        State::Warn,
        &["kube-proxy-replacement"],
    );
    check(
        &cilium(json!({ "bpf-lb-sock": "true" })),
        services,
        State::Warn,
        &["bpf-lb-sock"],
    );
    let off = json!({ "kube-proxy-replacement": "true", "bpf-lb-sock": "false" });
    check(&cilium(off), services, State::Pass, &[]);
    let hosts = json!({ "kube-proxy-replacement": "true", "bpf-lb-sock-hostns-only": "true" });
    check(&cilium(hosts), services, State::Pass, &[]);
    check(
        &cilium(json!({ "enable-wireguard": "true" })),
        "packets are not",
        State::Warn,
        &["wireguard"],
    );
    let felix = |spec: Value| vec![json!({ "kind": "FelixConfiguration", "spec": spec })];
    check(
        &felix(json!({ "bpfEnabled": true })),
        services,
        State::Warn,
        &["Calico"],
    );
    check(
        &felix(json!({ "bpfEnabled": false })),
        services,
        State::Pass,
        &[],
    );
    let off = json!({ "bpfEnabled": true, "bpfConnectTimeLoadBalancing": "Disabled" });
    check(&felix(off), services, State::Pass, &["Calico"]);
    let set = |name: &str, image: &str| {
        let mut set = workload("DaemonSet", name, image, json!({}));
        set["metadata"]["namespace"] = json!("kube-system");
        set
    };
    check(
        &[set("kube-multus-ds", "multus-cni:4")],
        "pods have one network",
        State::Warn,
        &["kube-multus-ds"],
    );
    let mut aws = set(
        "aws-node",
        "602401143452.dkr.ecr.eu-west-1.amazonaws.com/amazon-k8s-cni:v1.19",
    );
    check(
        &[aws.clone()],
        "the pod network is known",
        State::Pass,
        &["AWS VPC CNI"],
    );
    aws["spec"]["template"]["spec"]["containers"][0]["env"] =
        json!([{ "name": "ENABLE_POD_ENI", "value": "true" }]);
    check(
        &[aws],
        "no security groups",
        State::Warn,
        &["ENABLE_POD_ENI"],
    );
    let ztunnel = set("ztunnel", "istio/ztunnel:1.31");
    check(
        std::slice::from_ref(&ztunnel),
        "no other mesh",
        State::Warn,
        &["kube-system/ztunnel"],
    );
    let mut daemon = workload(
        "DaemonSet",
        "adit-node",
        "adit:0.1.0",
        json!({ "desiredNumberScheduled": 2, "numberReady": 2 }),
    );
    let words = json!([
        "node",
        "--ca=https://adit-control:1",
        "--enrol-label=istio.io/dataplane-mode=ambient"
    ]);
    daemon["spec"]["template"]["spec"]["containers"][0]["args"] = words;
    let mut facts = facts(&[sound(), vec![ztunnel]].concat());
    let label = ("istio.io/dataplane-mode".to_owned(), "ambient".to_owned());
    facts.told.settings.enrol_labels.push(label);
    let sets = facts
        .cluster
        .as_mut()
        .unwrap()
        .daemon_sets
        .as_mut()
        .unwrap();
    sets.retain(|set| set.name != "adit-node");
    sets.push(read::<shape::Controller>(&daemon).fact());
    changed(&facts, "no other mesh", State::Fail, &["both take"]);
}

#[test]
fn an_installation_that_is_not_whole_is_told() {
    let set = |status| workload("DaemonSet", "adit-node", "adit:0.1.0", status);
    let half = set(json!({ "desiredNumberScheduled": 2, "numberReady": 1 }));
    check(&[half], "the DaemonSet is there", State::Fail, &["1 of 2"]);
    let none = set(json!({ "desiredNumberScheduled": 0, "numberReady": 0 }));
    check(
        &[none],
        "the DaemonSet is there",
        State::Fail,
        &["nodeSelector"],
    );
    let absent = in_cluster(|cluster| cluster.daemon_sets = Ok(Vec::new()));
    changed(
        &absent,
        "the DaemonSet is there",
        State::Fail,
        &["adit-node in adit-system"],
    );
    check(&[node("n3")], "every node has", State::Fail, &["n3"]);
    let mut windows = node("n3");
    windows["metadata"]["labels"]["kubernetes.io/os"] = json!("windows");
    let mut down = node("n4");
    down["status"]["conditions"][0]["status"] = json!("False");
    check(
        &[windows, down],
        "every node has",
        State::Pass,
        &["2 nodes"],
    );
    let control = |ready: u64| {
        workload(
            "Deployment",
            "adit-control",
            "adit:0.1.0",
            json!({ "readyReplicas": ready }),
        )
    };
    check(
        &[control(0)],
        "the certificate authority",
        State::Fail,
        &["0 of 2"],
    );
    check(
        &[control(1)],
        "the certificate authority",
        State::Warn,
        &["1 of 2"],
    );
    let undefined = in_cluster(|cluster| {
        cluster.definitions = Ok(vec!["authorizationpolicies.security.istio.io".to_owned()])
    });
    changed(
        &undefined,
        "the policy kinds",
        State::Fail,
        &["peerauthentications"],
    );
    let unguarded = in_cluster(|cluster| cluster.admission = Ok(vec!["other".to_owned()]));
    changed(
        &unguarded,
        "daemons are kept",
        State::Warn,
        &["no ValidatingAdmissionPolicy"],
    );
    let mut newer = ours("adit-node", "n2");
    newer["spec"]["containers"][0]["image"] = json!("adit:0.2.0");
    check(
        &[newer],
        "all is of one version",
        State::Warn,
        &["adit:0.2.0: adit-node-n2 on n2", "2 images"],
    );
    let program = with(|facts| facts.version = "0.3.0");
    changed(
        &program,
        "all is of one version",
        State::Warn,
        &["this program is 0.3.0"],
    );
}

#[test]
fn the_daemons_settings_count() {
    let daemon = |env: Value, args: Value| {
        let mut set = workload(
            "DaemonSet",
            "adit-node",
            "adit:0.1.0",
            json!({ "desiredNumberScheduled": 2, "numberReady": 2 }),
        );
        let container = &mut set["spec"]["template"]["spec"]["containers"][0];
        container["env"] = env;
        container["args"] = args;
        set
    };
    let name = "daemons, authority and this check";
    let ca = "--ca=https://adit-control:15012";
    let other = daemon(
        json!([{ "name": "ADIT_TRUST_DOMAIN", "value": "acme.org" }]),
        json!([ca]),
    );
    let mut found = facts(&sound());
    let cluster = found.cluster.as_mut().unwrap();
    let sets = cluster.daemon_sets.as_mut().unwrap();
    *sets = vec![read::<shape::Controller>(&other).fact()];
    assert_eq!(finding(&found, name).state, State::Fail);
    assert_eq!(finding(&found, "the roots are of").state, State::Fail);

    let excluded = daemon(
        json!([]),
        json!(["node", ca, "--exclude-namespace", "kube-system,other"]),
    );
    check(
        &[excluded],
        name,
        State::Warn,
        &["--exclude-namespace", "kube-system,other"],
    );
    let same = daemon(
        json!([{ "name": "ADIT_TRUST_DOMAIN", "value": "$(DOMAIN)" }]),
        json!([ca]),
    );
    check(&[same], name, State::Pass, &["cluster.local"]);
    let istiod = daemon(
        json!([]),
        json!(["--ca", "https://istiod.istio-system:15012"]),
    );
    let mut found = facts(&sound());
    let cluster = found.cluster.as_mut().unwrap();
    cluster.daemon_sets = Ok(vec![read::<shape::Controller>(&istiod).fact()]);
    cluster.deployments = Ok(Vec::new());
    cluster.roots = Ok(None);
    changed(
        &found,
        "the certificate authority",
        State::Pass,
        &["istiod"],
    );
}

#[test]
fn roots_that_end_are_told_in_time() {
    let roots = |ends: &[Option<i64>]| {
        in_cluster(|cluster| {
            let root = |days: &Option<i64>| Root {
                subject: "CN=one".to_owned(),
                ends: days.map(|days| match u32::try_from(days) {
                    Ok(days) => now() + days * DAY,
                    Err(_) => now() - DAY,
                }),
                trust_domain: None,
            };
            cluster.roots = Ok(Some(ends.iter().map(root).collect()));
        })
    };
    let name = "the roots are published";
    changed(&roots(&[Some(100)]), name, State::Pass, &["100 days"]);
    changed(
        &roots(&[Some(20), Some(900)]),
        name,
        State::Warn,
        &["CN=one: ends in 20 days"],
    );
    changed(
        &roots(&[Some(-1), Some(900)]),
        name,
        State::Warn,
        &["is over"],
    );
    changed(
        &roots(&[Some(-1)]),
        name,
        State::Fail,
        &["no root is in force"],
    );
    changed(&roots(&[None]), name, State::Fail, &["cannot be read"]);
    changed(&roots(&[]), name, State::Fail, &["no certificate"]);
    let gone = in_cluster(|cluster| cluster.roots = Ok(None));
    changed(&gone, name, State::Fail, &["adit-system/adit-ca-root"]);
    let foreign = in_cluster(|cluster| {
        cluster.roots.as_mut().unwrap().as_mut().unwrap()[0].trust_domain =
            Some("acme.org".to_owned());
    });
    changed(&foreign, "the roots are of", State::Fail, &["acme.org"]);
    let rotating = |days: u32| {
        in_cluster(|cluster| {
            let staged = Some(now() - days * DAY);
            cluster.secret = Ok(Some(SecretNotes {
                staged,
                promoted: None,
            }));
        })
    };
    changed(&rotating(2), "no exchange", State::Pass, &["2 days"]);
    changed(&rotating(40), "no exchange", State::Warn, &["40 days"]);
}

#[test]
fn labels_that_do_nothing_are_told() {
    let labelled = |name: &str, labels: Value| vec![namespace(name, labels)];
    let typo = labelled("other", json!({ "adit.mesh/mode": "ambiet" }));
    check(
        &typo,
        "labels of namespaces",
        State::Fail,
        &["other: adit.mesh/mode=ambiet"],
    );
    let out = labelled("other", json!({ "adit.mesh/mode": "none" }));
    check(&out, "labels of namespaces", State::Pass, &[]);
    check(
        &labelled("kube-system", on()),
        "excluded namespaces",
        State::Fail,
        &["kube-system"],
    );
    let key = labelled("other", json!({ "adit.mesh/node": "ambient" }));
    check(&key, "labels are known", State::Warn, &["adit.mesh/node"]);
    let both = labelled(
        "shop",
        json!({ "adit.mesh/mode": "ambient", "istio.io/dataplane-mode": "ambient" }),
    );
    check(&both, "namespaces are of one mesh", State::Fail, &["shop"]);
    let field = labelled("other", json!({ "istio.io/dataplane-mode": "ambient" }));
    check(&field, "the field's label", State::Warn, &["other"]);
    let injected = labelled(
        "shop",
        json!({ "adit.mesh/mode": "ambient", "istio-injection": "enabled" }),
    );
    check(
        &injected,
        "enrolled namespaces get",
        State::Warn,
        &["shop: istio-injection"],
    );
    let off = labelled(
        "shop",
        json!({ "adit.mesh/mode": "ambient", "istio-injection": "disabled", "istio.io/rev": "x" }),
    );
    check(&off, "enrolled namespaces get", State::Pass, &[]);
    let mut linkerd = namespace("shop", on());
    linkerd["metadata"]["annotations"] = json!({ "linkerd.io/inject": "enabled" });
    check(
        &[linkerd],
        "enrolled namespaces get",
        State::Warn,
        &["linkerd.io/inject"],
    );
    let odd = captured(
        "web",
        json!({ "metadata": { "labels": { "adit.mesh/mode": "on" } } }),
    );
    check(
        &[odd],
        "labels of pods",
        State::Warn,
        &["shop/web: adit.mesh/mode=on"],
    );
}

#[test]
fn pods_that_are_not_captured_are_told() {
    let name = "pods that should";
    let bare = |more: Value| vec![pod("shop", "web", "n1", more)];
    check(
        &bare(json!({})),
        name,
        State::Fail,
        &["shop/web on n1", "1 pod not captured, 1 are"],
    );
    check(
        &bare(json!({ "metadata": { "creationTimestamp": "2026-01-05T19:59:30Z" } })),
        name,
        State::Pass,
        &[],
    );
    check(
        &bare(json!({ "metadata": { "deletionTimestamp": "2026-01-05T19:00:00Z" } })),
        name,
        State::Pass,
        &[],
    );
    check(
        &bare(json!({ "metadata": { "labels": { "adit.mesh/mode": "none" } } })),
        name,
        State::Pass,
        &[],
    );
    check(
        &bare(json!({ "status": { "phase": "Pending" } })),
        name,
        State::Pass,
        &[],
    );
    check(
        &bare(json!({ "status": { "phase": "Succeeded" } })),
        name,
        State::Pass,
        &[],
    );
    let opted = json!({ "metadata": { "labels": { "adit.mesh/mode": "none" } } });
    check(
        &[captured("web", opted)],
        "no pod is called",
        State::Warn,
        &["shop/web on n1: opted_out"],
    );
    let host = json!({ "spec": { "hostNetwork": true } });
    check(
        &bare(host),
        "enrolled namespaces have no pods on",
        State::Warn,
        &["shop/web"],
    );
    let sidecar = json!({ "metadata": { "annotations": { "sidecar.istio.io/status": "{}" } } });
    check(
        &bare(sidecar),
        "enrolled namespaces have no pods with a",
        State::Warn,
        &["shop/web: Istio"],
    );
    let linkerd = json!({ "spec": { "initContainers": [{ "name": "linkerd-proxy" }] } });
    check(
        &[captured("web", linkerd)],
        "enrolled namespaces have no pods with a",
        State::Warn,
        &["Linkerd"],
    );
    let file = json!({ "metadata": { "annotations": { "kubernetes.io/config.mirror": "00" } } });
    check(
        &[captured("web", file)],
        "enrolled namespaces have no static",
        State::Fail,
        &["shop/web"],
    );
    let kata = json!({ "spec": { "runtimeClassName": "safe" } });
    check(
        &[captured("web", kata)],
        "pods of the mesh use",
        State::Fail,
        &["runtime kata-qemu"],
    );
    let port = json!({ "spec": { "containers": [{ "name": "a", "ports": [{ "containerPort": 15006 }] }] } });
    check(
        &[captured("web", port)],
        "no application",
        State::Fail,
        &["shop/web: 15006"],
    );
    let sandboxed = json!({ "spec": { "runtimeClassName": "gvisor" } });
    check(
        &bare(sandboxed),
        "enrolled namespaces have no pods of sandboxed",
        State::Warn,
        &["shop/web"],
    );
    let waits = json!({ "status": { "phase": "Pending" } });
    check(
        &bare(waits),
        "pods of the mesh start",
        State::Warn,
        &["shop/web on n1"],
    );
    let pulls = json!({ "status": { "phase": "Pending", "podIPs": [{ "ip": "10.0.0.1" }] } });
    check(&bare(pulls), "pods of the mesh start", State::Pass, &[]);
    // Of others nothing is asked.
    let other = json!({ "spec": { "hostNetwork": true, "runtimeClassName": "safe" } });
    check(&[pod("other", "web", "n1", other)], name, State::Pass, &[]);
}

fn policy(namespace: &str, spec: Value) -> Vec<Value> {
    vec![json!({
        "kind": "AuthorizationPolicy", "metadata": { "namespace": namespace, "name": "p" }, "spec": spec,
    })]
}

fn from(field: &str, value: &str) -> Value {
    json!({ "rules": [{ "from": [{ "source": { field: [value] } }] }] })
}

#[test]
fn policies_that_do_something_else_are_told() {
    let at = |spec| policy("shop", spec);
    check(
        &at(from("principals", "cluster.local/ns/shop/sa/web")),
        "policies are",
        State::Pass,
        &["1 policy"],
    );
    check(
        &at(json!({ "action": "MAYBE" })),
        "policies are",
        State::Fail,
        &["shop/p", "MAYBE"],
    );
    let http = json!({ "rules": [{ "to": [{ "operation": { "methods": ["GET"] } }] }] });
    check(
        &at(http),
        "policies ask",
        State::Warn,
        &["methods", "never matches"],
    );
    check(
        &at(json!({ "rules": [{ "from": [{ "source": {} }] }] })),
        "every part",
        State::Warn,
        &["sets no field"],
    );
    let disable = vec![json!({
        "kind": "PeerAuthentication", "metadata": { "namespace": "shop", "name": "p" },
        "spec": { "mtls": { "mode": "DISABLE" } },
    })];
    check(
        &disable,
        "every part",
        State::Warn,
        &["PeerAuthentication shop/p"],
    );
    let selects = |app: &str| json!({ "selector": { "matchLabels": { "app": app } } });
    check(&at(selects("web")), "policies bind", State::Pass, &[]);
    check(
        &at(selects("wbe")),
        "policies bind",
        State::Warn,
        &["matches no pod"],
    );
    check(
        &policy("other", json!({})),
        "policies bind",
        State::Warn,
        &["no pods in its namespace"],
    );
    check(
        &policy("adit-system", json!({})),
        "policies bind",
        State::Pass,
        &[],
    );
    check(
        &policy("adit-system", selects("wbe")),
        "policies bind",
        State::Warn,
        &["matches no pod"],
    );
    let outside = [
        policy("other", json!({})),
        vec![pod("other", "x", "n1", json!({}))],
    ]
    .concat();
    check(&outside, "policies bind", State::Warn, &["not enforced"]);
    let domain = from("principals", "acme.org/ns/shop/sa/web");
    check(&at(domain), "principals are", State::Fail, &["acme.org"]);
    check(
        &at(from("namespaces", "shpo")),
        "namespaces and service accounts",
        State::Warn,
        &["shpo"],
    );
    let wbe = from("principals", "cluster.local/ns/shop/sa/wbe");
    check(
        &at(wbe),
        "namespaces and service accounts",
        State::Warn,
        &["rules[0].from[0]", "shop/wbe"],
    );
    let istio = [
        policy("istio-system", json!({})),
        vec![captured("x", json!({})), namespace("istio-system", on())],
    ];
    let inside = json!({ "metadata": { "namespace": "istio-system" } });
    let istio = [istio.concat(), vec![captured("y", inside)]].concat();
    check(
        &istio,
        "policies for the whole mesh",
        State::Warn,
        &["istio-system/p"],
    );
}

fn network_policy(spec: Value) -> Vec<Value> {
    vec![
        json!({ "kind": "NetworkPolicy", "metadata": { "namespace": "shop", "name": "np" }, "spec": spec }),
    ]
}

fn tcp(port: u16) -> Value {
    json!({ "protocol": "TCP", "port": port })
}

#[test]
fn network_policies_that_keep_tunnels_out_are_told() {
    let (ingress, egress) = ("tunnels reach", "tunnels leave");
    let inward = |rules: Value| network_policy(json!({ "podSelector": {}, "ingress": rules }));
    let selected = |app: &str| json!([{ "podSelector": { "matchLabels": { "app": app } } }]);
    let lacking = inward(json!([{ "ports": [tcp(8080)] }]));
    check(
        &lacking,
        ingress,
        State::Fail,
        &["shop/np", "ingress[0]", "not on port 15008"],
    );
    check(
        &inward(json!([{ "ports": [tcp(8080), tcp(15008)] }])),
        ingress,
        State::Pass,
        &["1 policy"],
    );
    let apart = json!([{ "ports": [tcp(8080)] }, { "from": [{ "podSelector": {} }], "ports": [tcp(15008)] }]);
    check(&inward(apart), ingress, State::Pass, &[]);
    let others = json!([{ "from": selected("web"), "ports": [tcp(8080)] }, { "from": selected("db"), "ports": [tcp(15008)] }]);
    check(&inward(others), ingress, State::Fail, &["in from shop/web"]);
    check(&inward(json!([{}])), ingress, State::Pass, &[]);
    let range = json!([{ "ports": [{ "port": 15000, "endPort": 15010 }] }]);
    check(&inward(range), ingress, State::Pass, &[]);
    check(
        &inward(json!([{ "ports": [{ "port": "http" }] }])),
        ingress,
        State::Fail,
        &["ingress[0]"],
    );
    check(
        &inward(json!([{ "ports": [{ "protocol": "UDP", "port": 15008 }] }])),
        ingress,
        State::Pass,
        &[],
    );
    check(
        &inward(json!([])),
        ingress,
        State::Warn,
        &["nothing may reach"],
    );
    check(
        &inward(json!(null)),
        ingress,
        State::Warn,
        &["nothing may reach"],
    );
    // Whoever is not in the mesh comes in plain.
    let foreign = json!([{ "namespaceSelector": { "matchLabels": { "name": "x" } } }]);
    check(
        &inward(json!([{ "from": foreign, "ports": [tcp(8080)] }])),
        ingress,
        State::Pass,
        &[],
    );
    let block = json!([{ "ipBlock": { "cidr": "192.0.2.0/24", "except": ["192.0.2.1/32"] } }]);
    check(
        &inward(json!([{ "from": block, "ports": [tcp(8080)] }])),
        ingress,
        State::Pass,
        &[],
    );
    let bound = json!({ "podSelector": { "matchLabels": { "app": "db" } }, "ingress": [{ "ports": [tcp(1)] }] });
    check(
        &network_policy(bound),
        ingress,
        State::Fail,
        &["lets shop/db in"],
    );
    let nobody = json!({ "podSelector": { "matchLabels": { "app": "x" } }, "ingress": [{ "ports": [tcp(1)] }] });
    check(&network_policy(nobody), ingress, State::Pass, &[]);

    let outward = |rules: Value| {
        network_policy(json!({ "podSelector": {}, "policyTypes": ["Egress"], "egress": rules }))
    };
    check(
        &outward(json!([{ "ports": [tcp(443)] }])),
        egress,
        State::Fail,
        &["egress[0]", "out to"],
    );
    check(
        &outward(json!([{ "ports": [tcp(443), tcp(15008)] }])),
        egress,
        State::Pass,
        &[],
    );
    let dns = json!([{ "ports": [tcp(53), { "protocol": "UDP", "port": 53 }] }]);
    check(&outward(dns), egress, State::Pass, &[]);
    check(
        &outward(json!([])),
        egress,
        State::Warn,
        &["nothing may leave"],
    );
    let by_rule =
        json!({ "podSelector": {}, "ingress": [{}], "egress": [{ "ports": [tcp(443)] }] });
    check(
        &network_policy(by_rule),
        egress,
        State::Fail,
        &["egress[0]"],
    );
    let elsewhere = json!({
        "kind": "NetworkPolicy", "metadata": { "namespace": "other", "name": "np" },
        "spec": { "podSelector": {}, "policyTypes": ["Ingress", "Egress"] },
    });
    check(&[elsewhere], ingress, State::Pass, &[]);

    let foreign = |namespace: &str, port: &str| {
        vec![json!({
            "kind": "CiliumNetworkPolicy", "metadata": { "namespace": namespace, "name": "c" },
            "spec": { "ingress": [{ "toPorts": [{ "ports": [{ "port": port }] }] }] },
        })]
    };
    let name = "policies of the network's own";
    check(
        &foreign("shop", "80"),
        name,
        State::Warn,
        &["CiliumNetworkPolicy shop/c"],
    );
    check(&foreign("shop", "15008"), name, State::Pass, &[]);
    check(&foreign("other", "80"), name, State::Pass, &[]);
}

fn this_node() -> ThisNode {
    let status = api::Status {
        version: "0.1.0".to_owned(),
        ready: true,
        ..api::Status::default()
    };
    let certificate = api::Certificate {
        identity: "spiffe://cluster.local/ns/shop/sa/web".to_owned(),
        state: "valid".to_owned(),
        not_after: (now() + DAY).duration_since(UNIX_EPOCH).unwrap().as_secs(),
        ..api::Certificate::default()
    };
    ThisNode {
        kernel: "6.1.0".to_owned(),
        capture: Ok(()),
        sock_diag: Ok(()),
        capabilities: Ok(u64::MAX),
        kubelet: Some("its control group"),
        daemon: Ok((status, vec![certificate])),
    }
}

#[test]
fn a_node_that_cannot_capture_is_told() {
    let on = |change: &dyn Fn(&mut ThisNode)| {
        with(|facts| {
            let mut node = this_node();
            change(&mut node);
            facts.node = Some(node);
        })
    };
    let all = crate::check::rules::check(&on(&|_| {}));
    assert!(all.iter().all(|one| one.state == State::Pass), "{all:#?}");
    let capture = on(&|node| node.capture = Err("there is no nft program".to_owned()));
    changed(
        &capture,
        "a connection can be",
        State::Fail,
        &["Linux 6.1.0", "no nft"],
    );
    let diag = on(&|node| node.sock_diag = Err("ENOENT".to_owned()));
    changed(&diag, "sockets can be listed", State::Fail, &["ENOENT"]);
    let weak = on(&|node| node.capabilities = Ok(1 << 12));
    changed(
        &weak,
        "this process has",
        State::Fail,
        &["CAP_SYS_ADMIN", "CAP_SYS_PTRACE"],
    );
    let blind = on(&|node| node.kubelet = None);
    changed(&blind, "kubelet is seen", State::Warn, &["no process"]);
    let away = on(&|node| node.daemon = Err("cannot reach a node".to_owned()));
    changed(&away, "the daemon serves", State::Fail, &["cannot reach"]);
    let unready = on(&|node| {
        let (status, _) = node.daemon.as_mut().unwrap();
        status.ready = false;
        status.waiting_for = vec!["2 pods".to_owned()];
    });
    changed(
        &unready,
        "the daemon serves",
        State::Fail,
        &["not ready", "2 pods"],
    );
    let troubled = on(&|node| {
        let (status, _) = node.daemon.as_mut().unwrap();
        status.failures = vec!["pod shop/x: no namespace".to_owned()];
    });
    changed(&troubled, "the daemon serves", State::Warn, &["shop/x"]);
    let old = on(&|node| "0.0.9".clone_into(&mut node.daemon.as_mut().unwrap().0.version));
    changed(&old, "the daemon is of", State::Warn, &["0.0.9"]);
    let over = on(&|node| node.daemon.as_mut().unwrap().1[0].not_after = 1);
    changed(&over, "the certificates of this", State::Fail, &["sa/web"]);
    let failing = on(&|node| {
        let certificate = &mut node.daemon.as_mut().unwrap().1[0];
        certificate.failures = 3;
        certificate.error = Some("refused".to_owned());
    });
    changed(
        &failing,
        "the certificates of this",
        State::Warn,
        &["refused", "1440 min"],
    );
    let pre = with(|facts| {
        facts.pre = true;
        facts.cluster = None;
        facts.node = Some(this_node());
    });
    assert!(
        crate::check::rules::check(&pre)
            .iter()
            .all(|one| one.name != "the daemon serves every pod of the mesh here")
    );
}

#[test]
fn before_an_installation_nothing_is_asked_of_one() {
    let objects: Vec<_> = sound()
        .into_iter()
        .filter(|one| one["metadata"]["namespace"] != "adit-system" && one["kind"] != "Pod")
        .collect();
    let mut facts = facts(&objects);
    facts.pre = true;
    let cluster = facts.cluster.as_mut().unwrap();
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
