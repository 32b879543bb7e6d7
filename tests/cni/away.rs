//! The API server goes away: whoever is in the mesh goes on as he was.

use std::time::Duration;

use serde_json::{Value, json};

use crate::marks::{becomes, launch, server};
use crate::runtime::{Pod, Runtime, Sandbox, lab};
use crate::support::apiserver::Resource;
use crate::support::{Listener, eventually, holds_for, within};

const SOON: Duration = Duration::from_secs(20);

/// Only this account may call `b`.
fn only(account: &str) -> Value {
    json!({
        "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
        "metadata": { "name": "only", "namespace": "mesh" },
        "spec": {
            "selector": { "matchLabels": { "app": "b" } },
            "rules": [{ "from": [{ "source": {
                "principals": [format!("cluster.local/ns/mesh/sa/{account}")] } }] }],
        },
    })
}

/// What takes an hour in a cluster takes a watch's patience here: by then every watch has been given
/// up, and been tried again in vain.
#[test]
fn traffic_and_policy_go_on_without_the_api_server() {
    let mut lab = lab();
    let mut server = server(&lab);
    server.install(Resource::new(
        "security.istio.io",
        "v1",
        "authorizationpolicies",
        "AuthorizationPolicy",
    ));
    server.put(only("a"));
    let [a, mut b, c, late] = ["a", "b", "c", "late"].map(|name| Pod::new("mesh", name));
    b.labels.push(("app".to_owned(), "b".to_owned()));
    for pod in [&a, &b, &c, &late] {
        server.put(pod.object(&[]));
    }
    let daemon = launch(&lab, &server)
        .args(&["--watch-silence", "2s"])
        .start();
    lab.install(1, daemon);
    let runtime = Runtime::new(&lab);
    let run = |pod: &Pod| {
        let sandbox = Sandbox::new(pod);
        let added = within(SOON, "the pod starts", || runtime.add(&sandbox));
        (sandbox, added.ips()[0])
    };
    let [(a, a_ip), (b, b_ip), (c, _)] = [&a, &b, &c].map(|pod| {
        let (sandbox, ip) = run(pod);
        server.put(pod.object(&[ip]));
        becomes(&server, &pod.name, &json!("enabled"));
        (sandbox, ip)
    });
    let to = (b_ip, 8080).into();
    let _server = Listener::open(&b.netns, to)
        .expect("the port is free")
        .greet("b");
    let so = |served: &Sandbox, refused: &Sandbox| {
        served.call(to).served() && !refused.call(to).served()
    };
    eventually(SOON, "the policy is in force", || so(&a, &c));

    server.stop();
    eventually(SOON, "it is known to be away", || {
        lab.daemon(1)
            .metric("adit_source_connected", &[("kind", "pod")])
            == 0.0
    });
    holds_for(Duration::from_secs(5), "all goes on", || so(&a, &c));
    a.call(to).assert_served("b", a_ip);
    assert!([&a, &b, &c].iter().all(|sandbox| sandbox.is_captured()));
    // A pod that was known before starts, captured, and under the same policy.
    let (late, _) = run(&late);
    assert!(late.is_captured() && !late.call(to).served());

    server.put(only("c"));
    server.resume();
    eventually(SOON, "what changed meanwhile is in force", || so(&c, &a));
}
