//! Policies, those of the mesh and those of the network.

use super::*;

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
