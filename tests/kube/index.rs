//! The index follows the API, whichever server it is.

use serde_json::{Value, json};

use crate::bed::{Bed, MENDED, SOON, namespace, pod, policy};
use crate::support::{Kubernetes, within};

fn node(zone: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": { "name": "there", "labels": { "topology.kubernetes.io/zone": zone } },
    })
}

fn service() -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "name": "web", "namespace": "shop" },
        "spec": {
            "clusterIP": "10.96.0.77",
            "clusterIPs": ["10.96.0.77"],
            "ports": [{ "name": "http", "port": 80, "targetPort": 8080, "protocol": "TCP" }],
        },
    })
}

fn slice(ips: &[&str]) -> Value {
    let endpoints: Vec<Value> = ips
        .iter()
        .map(|ip| json!({ "addresses": [ip], "conditions": { "ready": true } }))
        .collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": "web-1", "namespace": "shop",
            "labels": { "kubernetes.io/service-name": "web" },
        },
        "addressType": "IPv4",
        "endpoints": endpoints,
        "ports": [{ "name": "http", "port": 8080, "protocol": "TCP" }],
    })
}

/// A daemon that has read a namespace with one pod.
fn one_pod() -> (Bed, Kubernetes) {
    let (mut bed, cluster) = Bed::beside();
    cluster.apply(&namespace("shop", true));
    cluster.apply(&pod("a", 1));
    bed.start(&cluster.kubeconfig());
    bed.sees(SOON, &["a"]);
    (bed, cluster)
}

/// Waits until a field of the pod `a` is so.
#[track_caller]
fn becomes(bed: &Bed, field: &str, value: &Value) {
    within(SOON, &format!("{field} is {value}"), || {
        let pod = bed.pod("a");
        if pod[field] == *value {
            Ok(())
        } else {
            Err(pod)
        }
    });
}

#[test]
fn the_server_is_the_one_that_was_asked_for() {
    let (_bed, cluster) = Bed::beside();
    let version = cluster.version();
    assert_eq!(version.ends_with("+fake"), cluster.is_fake(), "{version}");
}

#[test]
fn pods_come_change_and_go() {
    let (bed, cluster) = one_pod();
    assert_eq!(
        bed.pod("a")["identity"],
        "spiffe://cluster.local/ns/shop/sa/web"
    );
    cluster.apply(&pod("b", 2));
    bed.sees(SOON, &["a", "b"]);
    let mut changed = pod("a", 1);
    changed["metadata"]["labels"] = json!({ "app": "another" });
    cluster.apply(&changed);
    becomes(&bed, "labels", &json!({ "app": "another" }));
    cluster.delete(&pod("a", 1));
    bed.sees(SOON, &["b"]);
}

#[test]
fn what_nobody_reads_changes_nothing() {
    let (bed, cluster) = one_pod();
    let changes = || bed.daemon().metric("adit_source_changes_total", &[]);
    let before = changes();
    for turn in 0..5 {
        let mut changed = pod("a", 1);
        changed["metadata"]["annotations"] = json!({ "example.com/turn": turn.to_string() });
        cluster.apply(&changed);
    }
    // What comes last shows that all of it has come.
    cluster.apply(&pod("b", 2));
    bed.sees(SOON, &["a", "b"]);
    // A pod is created without its status, and then gets it.
    assert!(
        (1.0..=2.0).contains(&(changes() - before)),
        "{}",
        changes() - before
    );
}

#[test]
fn a_namespaces_label_enrols_its_pods() {
    let (bed, cluster) = one_pod();
    becomes(&bed, "bypass", &Value::Null);
    cluster.apply(&namespace("shop", false));
    becomes(&bed, "bypass", &json!("not_labelled"));
    cluster.apply(&namespace("shop", true));
    becomes(&bed, "bypass", &Value::Null);
}

#[test]
fn a_pod_of_another_node_takes_tunnels_once_its_node_says_so() {
    let (bed, cluster) = one_pod();
    becomes(&bed, "enrolled", &json!(false));
    for (says, takes) in [
        (json!("enabled"), true),
        (json!("pending"), false),
        (Value::Null, false),
    ] {
        let mut marked = pod("a", 1);
        marked["metadata"]["annotations"] = json!({ "ambient.istio.io/redirection": says });
        cluster.apply(&marked);
        becomes(&bed, "enrolled", &json!(takes));
    }
}

#[test]
fn a_nodes_label_places_its_pods() {
    let (bed, cluster) = one_pod();
    cluster.apply(&node("z1"));
    becomes(&bed, "zone", &json!("z1"));
    cluster.apply(&node("z2"));
    becomes(&bed, "zone", &json!("z2"));
    cluster.delete(&node("z2"));
    becomes(&bed, "zone", &json!(""));
}

#[test]
fn services_have_the_endpoints_of_their_slices() {
    let (bed, cluster) = one_pod();
    cluster.apply(&service());
    let endpoints = |wanted: &[&str]| {
        within(SOON, &format!("endpoints {wanted:?}"), || {
            let text = bed.daemon().admin("GET", "/services");
            let all: Value = serde_json::from_str(&text).expect("JSON");
            let web = all
                .as_array()
                .into_iter()
                .flatten()
                .find(|s| s["name"] == "web");
            let endpoints = web.and_then(|web| web["endpoints"].as_array());
            let ips: Option<Vec<_>> =
                endpoints.map(|all| all.iter().map(|e| e["ip"].clone()).collect());
            if ips.as_ref().is_some_and(|ips| ips == wanted) {
                Ok(())
            } else {
                Err(ips)
            }
        });
    };
    endpoints(&[]);
    cluster.apply(&slice(&["10.9.0.1"]));
    endpoints(&["10.9.0.1"]);
    cluster.apply(&slice(&["10.9.0.1", "10.9.0.2"]));
    endpoints(&["10.9.0.1", "10.9.0.2"]);
    cluster.delete(&slice(&[]));
    endpoints(&[]);
    cluster.delete(&service());
    within(SOON, "the service is gone", || {
        let names = bed.names("/services");
        if names.contains("web") {
            Err(names)
        } else {
            Ok(())
        }
    });
}

#[test]
fn policies_are_read_where_their_kinds_are_defined() {
    let (mut bed, cluster) = Bed::beside();
    cluster.apply(&namespace("shop", true));
    cluster.define_policies();
    cluster.apply(&policy("only-web", "web"));
    bed.start(&cluster.kubeconfig());
    bed.lists(SOON, "/policies", &["only-web"]);
    cluster.delete(&policy("only-web", "web"));
    bed.lists(SOON, "/policies", &[]);
}

#[test]
fn policies_are_read_when_their_kinds_appear_later() {
    let (bed, cluster) = one_pod();
    cluster.define_policies();
    cluster.apply(&policy("only-web", "web"));
    bed.lists(MENDED + SOON, "/policies", &["only-web"]);
}

#[test]
fn a_restart_of_the_server_is_not_seen() {
    let (bed, mut cluster) = one_pod();
    cluster.stop();
    std::thread::sleep(std::time::Duration::from_secs(1));
    bed.sees(SOON, &["a"]);
    cluster.resume();
    cluster.apply(&pod("b", 2));
    bed.sees(MENDED, &["a", "b"]);
    bed.becomes_ready(SOON);
}
