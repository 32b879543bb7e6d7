//! Each documented case of AuthorizationPolicy, one line each.

use serde_json::{Value, json};

use crate::authorize::tests::{authorization, domain, flow, rehearsal, store, told, workload};
use crate::authorize::{Change, Store, outbound};
use crate::mesh::Direction;
use crate::mesh::policy::{NoticeKind, PolicyName};

const CART: &str = "cluster.local/ns/shop/sa/cart";
const PLAIN: &str = "-";

/// A flow of `identity` from 10.0.0.1 to port 80 of a pod of namespace `shop` with `app: web`,
/// under policies `shop/p0`, `shop/p1`, ….
fn check(specs: &[&Value], identity: &str, expect: &str) {
    let policies = specs.iter().enumerate();
    let policies = policies.map(|(at, spec)| authorization(&format!("shop/p{at}"), spec));
    let policies = store(policies.map(Change::Authorization)).policies();
    let evaluator = policies.evaluator(&workload("shop", &[("app", "web")]));
    let verdict = evaluator.decide(flow(identity, "10.0.0.1:4000", "10.0.0.9:80"));
    assert_eq!(told(&verdict), expect, "{identity} under {specs:?}");
}

/// One policy with one rule that has this source.
fn source(action: &str, source: Value) -> Value {
    json!({"action": action, "rules": [{"from": [{"source": source}]}]})
}

fn when(action: &str, condition: Value) -> Value {
    json!({"action": action, "rules": [{"when": [condition]}]})
}

#[test]
fn deny_goes_before_allow_and_no_allow_is_allowed() {
    let cart = json!({"principals": [CART]});
    let allow = source("ALLOW", cart.clone());
    let deny = source("DENY", cart);
    check(&[], CART, "ok");
    check(&[], PLAIN, "ok");
    check(&[&deny], CART, "denied shop/p0[0]");
    check(&[&deny], PLAIN, "ok");
    check(&[&allow], CART, "ok shop/p0[0]");
    check(&[&allow], PLAIN, "not_allowed");
    check(&[&allow, &deny], CART, "denied shop/p1[0]");
    let other = source("ALLOW", json!({"principals": ["*/sa/other"]}));
    check(&[&other, &allow], CART, "ok shop/p1[0]");
    check(&[&other], CART, "not_allowed");
}

#[test]
fn empty_cases() {
    let of = |action: &str, rest: Value| {
        let mut spec = json!({"action": action});
        spec.as_object_mut()
            .unwrap()
            .extend(rest.as_object().unwrap().clone());
        spec
    };
    let both = |rest: Value, allow: &str, deny: &str| {
        check(&[&of("ALLOW", rest.clone())], CART, allow);
        check(&[&of("DENY", rest)], CART, deny);
    };
    check(&[&json!({})], CART, "not_allowed");
    check(&[&json!(null)], CART, "not_allowed");
    both(json!({}), "not_allowed", "ok");
    both(json!({"rules": null}), "not_allowed", "ok");
    both(json!({"rules": []}), "not_allowed", "ok");
    let (matches, never) = (
        ["ok shop/p0[0]", "denied shop/p0[0]"],
        ["not_allowed", "ok"],
    );
    for (rule, [allow, deny]) in [
        (json!({}), matches),
        (json!({"from": [], "to": [], "when": []}), matches),
        (json!({"from": null}), matches),
        (json!({"from": [{"source": {}}]}), never),
        (json!({"from": [{}]}), never),
        (json!({"to": [{"operation": {}}]}), never),
        (
            json!({"from": [{"source": {"principals": [], "namespaces": []}}]}),
            never,
        ),
        (
            json!({"from": [{"source": {}}, {"source": {"namespaces": ["shop"]}}]}),
            matches,
        ),
        (
            json!({"from": [{"source": {"principals": [], "namespaces": ["shop"]}}]}),
            matches,
        ),
        (
            json!({"from": [{"source": {"namespaces": ["shop"]}}], "to": [{"operation": {}}]}),
            never,
        ),
    ] {
        both(json!({"rules": [rule]}), allow, deny);
    }
}

#[test]
fn fields_and_their_not() {
    // What holds for the cart, and for a plaintext peer.
    for (field, cart, plain) in [
        (json!({"principals": [CART]}), true, false),
        (
            json!({"principals": [format!("spiffe://{CART}")]}),
            true,
            false,
        ),
        (json!({"principals": ["*"]}), true, false),
        (
            json!({"principals": ["cluster.local/ns/shop/*"]}),
            true,
            false,
        ),
        (json!({"principals": ["*/sa/cart"]}), true, false),
        (
            json!({"principals": ["cluster.local/ns/shop/sa/car"]}),
            false,
            false,
        ),
        (json!({"principals": ["cart"]}), false, false),
        (json!({"notPrincipals": [CART]}), false, true),
        (json!({"notPrincipals": ["*"]}), false, true),
        (json!({"notPrincipals": ["*/sa/other"]}), true, true),
        (json!({"namespaces": ["shop"]}), true, false),
        (json!({"namespaces": ["sh*"]}), true, false),
        (json!({"namespaces": ["*p"]}), true, false),
        (json!({"namespaces": ["*"]}), true, false),
        (json!({"namespaces": ["shops"]}), false, false),
        (json!({"notNamespaces": ["shop"]}), false, true),
        (json!({"notNamespaces": ["*"]}), false, true),
        (json!({"serviceAccounts": ["cart"]}), true, false),
        (json!({"serviceAccounts": ["shop/cart"]}), true, false),
        (json!({"serviceAccounts": ["other/cart"]}), false, false),
        (json!({"notServiceAccounts": ["cart"]}), false, true),
        (json!({"notServiceAccounts": ["other/cart"]}), true, true),
        (json!({"ipBlocks": ["10.0.0.0/24"]}), true, true),
        (json!({"ipBlocks": ["10.0.0.2", "10.0.0.1"]}), true, true),
        (json!({"ipBlocks": ["10.0.0.2", "::/0"]}), false, false),
        (json!({"notIpBlocks": ["10.0.0.1"]}), false, false),
        (
            json!({"namespaces": ["shop"], "ipBlocks": ["10.0.0.2"]}),
            false,
            false,
        ),
        (
            json!({"namespaces": ["shop"], "notPrincipals": [CART]}),
            false,
            false,
        ),
    ] {
        for (identity, holds) in [(CART, cart), (PLAIN, plain)] {
            let [allow, deny] = if holds {
                ["ok shop/p0[0]", "denied shop/p0[0]"]
            } else {
                ["not_allowed", "ok"]
            };
            check(&[&source("ALLOW", field.clone())], identity, allow);
            check(&[&source("DENY", field.clone())], identity, deny);
        }
    }
}

#[test]
fn ports_and_conditions() {
    let holds = |spec: Value| check(&[&spec], CART, "denied shop/p0[0]");
    let fails = |spec: Value| check(&[&spec], CART, "ok");
    let to =
        |operation: Value| json!({"action": "DENY", "rules": [{"to": [{"operation": operation}]}]});
    holds(to(json!({"ports": ["81", "80"]})));
    holds(to(json!({"ports": [80]})));
    fails(to(json!({"ports": ["81"]})));
    holds(to(json!({"notPorts": ["81"]})));
    fails(to(json!({"notPorts": ["80"]})));
    for (key, yes, no) in [
        ("source.ip", "10.0.0.0/8", "10.0.0.2"),
        ("source.namespace", "shop", "other"),
        ("source.principal", CART, "cluster.local/ns/shop/sa/other"),
        ("source.serviceAccount", "cart", "other/cart"),
        ("destination.ip", "10.0.0.9", "10.0.0.1"),
        ("destination.port", "80", "15008"),
    ] {
        holds(when("DENY", json!({"key": key, "values": [no, yes]})));
        fails(when("DENY", json!({"key": key, "values": [no]})));
        holds(when("DENY", json!({"key": key, "notValues": [no]})));
        fails(when(
            "DENY",
            json!({"key": key, "values": [yes], "notValues": [yes]}),
        ));
    }
}

#[test]
fn all_of_from_to_and_when_must_hold() {
    let rule = |namespace: &str, port: &str, ip: &str| {
        let from =
            json!([{"source": {"namespaces": ["none"]}}, {"source": {"namespaces": [namespace]}}]);
        let to = json!([{"operation": {"ports": ["1"]}}, {"operation": {"ports": [port]}}]);
        let when = json!([
            {"key": "source.ip", "values": [ip]},
            {"key": "destination.port", "values": ["80"]},
        ]);
        json!({"rules": [{"from": from, "to": to, "when": when}]})
    };
    check(&[&rule("shop", "80", "10.0.0.1")], CART, "ok shop/p0[0]");
    check(&[&rule("other", "80", "10.0.0.1")], CART, "not_allowed");
    check(&[&rule("shop", "81", "10.0.0.1")], CART, "not_allowed");
    check(&[&rule("shop", "80", "10.0.0.2")], CART, "not_allowed");
}

#[test]
fn http_fields_never_make_a_policy_weaker() {
    // ALLOW: the rule never matches. DENY: what is left decides, even if nothing is left.
    for rule in [
        json!({"to": [{"operation": {"methods": ["GET"]}}]}),
        json!({"to": [{"operation": {"ports": ["80"], "notPaths": ["/x"]}}]}),
        json!({"from": [{"source": {"requestPrincipals": ["*"]}}]}),
        json!({"from": [{"source": {"namespaces": ["shop"], "remoteIpBlocks": ["1.1.1.1"]}}]}),
        json!({"from": [{"source": {"trustDomains": ["x"]}}, {"source": {"namespaces": ["shop"]}}]}),
        json!({"when": [{"key": "request.headers[user-agent]", "values": ["x"]}]}),
        json!({"when": [{"key": "remote.ip", "notValues": ["1.1.1.1"]}]}),
        json!({"when": [{"key": "connection.sni", "values": ["x"]}]}),
    ] {
        let of = |action: &str| json!({"action": action, "rules": [rule]});
        check(&[&of("ALLOW")], CART, "not_allowed");
        check(&[&of("DENY")], CART, "denied shop/p0[0]");
        for action in ["ALLOW", "DENY"] {
            let notices = authorization("shop/p", &of(action)).notices;
            let kinds: Vec<_> = notices.iter().map(|notice| notice.kind).collect();
            assert_eq!(kinds, [NoticeKind::NeedsHttp], "{notices:?}");
        }
    }
    let port_left = json!({"action": "DENY", "rules": [
        {"to": [{"operation": {"ports": ["81"], "methods": ["GET"]}}]},
    ]});
    check(&[&port_left], CART, "ok");
    let other_rule = json!({"rules": [
        {"to": [{"operation": {"methods": ["GET"]}}]},
        {"from": [{"source": {"namespaces": ["shop"]}}]},
    ]});
    check(&[&other_rule], CART, "ok shop/p0[1]");
    // An empty list asks for nothing, and so for no HTTP either.
    let empty = json!({"rules": [{"to": [{"operation": {"methods": [], "ports": ["80"]}}]}]});
    check(&[&empty], CART, "ok shop/p0[0]");
}

#[test]
fn what_is_not_understood_refuses() {
    let source = |source: Value| json!({"rules": [{"from": [{"source": source}]}]});
    let allow_all = json!({"rules": [{}]});
    for spec in [
        json!("text"),
        json!([]),
        json!({"action": "CUSTOM", "provider": {"name": "x"}, "rules": [{}]}),
        json!({"action": "AUDIT", "rules": [{}]}),
        json!({"action": "deny"}),
        json!({"action": 1}),
        json!({"rule": []}),
        json!({"rules": {}}),
        json!({"rules": [null]}),
        json!({"rules": ["all"]}),
        json!({"rules": [{"form": []}]}),
        json!({"rules": [{"from": [{"sources": {}}]}]}),
        json!({"rules": [{"from": {}}]}),
        json!({"rules": [{"to": [{"operation": {"port": ["80"]}}]}]}),
        json!({"rules": [{"to": [{"operation": {"ports": "80"}}]}]}),
        json!({"rules": [{"to": [{"operation": {"ports": ["http"]}}]}]}),
        json!({"rules": [{"to": [{"operation": {"notPorts": [-1]}}]}]}),
        json!({"rules": [{"to": [{"operation": {"methods": "GET"}}]}]}),
        json!({"rules": [{"when": [{"key": "source.adress", "values": ["10.0.0.1"]}]}]}),
        json!({"rules": [{"when": [{"values": ["10.0.0.1"]}]}]}),
        json!({"rules": [{"when": [{"key": "source.ip"}]}]}),
        json!({"rules": [{"when": [{"key": "source.ip", "values": ["shop"]}]}]}),
        source(json!({"principal": [CART]})),
        source(json!({"principals": CART})),
        source(json!({"principals": [1]})),
        source(json!({"principals": [""]})),
        source(json!({"notPrincipals": ["cluster.local/ns/*/sa/cart"]})),
        source(json!({"serviceAccounts": ["*"]})),
        source(json!({"ipBlocks": ["10.0.0.0/33"]})),
        source(json!({"notIpBlocks": ["10.0.0"]})),
        json!({"selector": {"matchLabels": {"app": 1}}, "rules": [{}]}),
        json!({"selector": {"matchLabels": {"app": "db*"}}, "rules": [{}]}),
        json!({"selector": {"matchExpressions": []}, "rules": [{}]}),
        json!({"selector": {"matchLabels": ["db"]}, "rules": [{}]}),
        json!({"targetRefs": [{"kind": "Service", "name": "web"}], "rules": [{}]}),
        json!({"targetRef": {"kind": "Gateway", "name": "waypoint"}, "rules": [{}]}),
    ] {
        check(&[&allow_all, &spec], CART, "policy_not_understood shop/p1");
        check(&[&allow_all, &spec], PLAIN, "policy_not_understood shop/p1");
        let notices = authorization("shop/p", &spec).notices;
        let kinds: Vec<_> = notices.iter().map(|notice| notice.kind).collect();
        assert_eq!(kinds, [NoticeKind::NotUnderstood], "{notices:?}");
        assert!(
            notices[0].text.starts_with("spec"),
            "names the field: {notices:?}"
        );
    }
    // With a selector that can be read, only what it selects refuses.
    let elsewhere = json!({"action": "AUDIT", "selector": {"matchLabels": {"app": "db"}}});
    check(&[&elsewhere], CART, "ok");
}

#[test]
fn scopes() {
    let deny = json!({"action": "DENY", "rules": [{}]});
    let selecting = |app: &str| json!({"action": "DENY", "rules": [{}], "selector": {"matchLabels": {"app": app}}});
    let unreadable = json!({"action": "DENY", "selector": 7});
    let check = |name: &str, spec: &Value, expect: [&str; 3]| {
        let policies = store([Change::Authorization(authorization(name, spec))]).policies();
        let at = |namespace, app| {
            let evaluator = policies.evaluator(&workload(namespace, &[("app", app)]));
            told(&evaluator.decide(flow(CART, "10.0.0.1:4000", "10.0.0.9:80")))
        };
        let got = [at("shop", "web"), at("shop", "db"), at("other", "web")];
        let got = got.each_ref().map(|told| told.split(' ').next().unwrap());
        assert_eq!(got, expect, "{name} {spec}");
    };
    check("root/p", &deny, ["denied", "denied", "denied"]);
    check("shop/p", &deny, ["denied", "denied", "ok"]);
    check("other/p", &deny, ["ok", "ok", "denied"]);
    check("shop/p", &selecting("web"), ["denied", "ok", "ok"]);
    check("root/p", &selecting("web"), ["denied", "ok", "denied"]);
    check(
        "shop/p",
        &json!({"action": "DENY", "rules": [{}], "selector": {}}),
        ["denied", "denied", "ok"],
    );
    let refused = "policy_not_understood";
    check("shop/p", &unreadable, [refused, refused, "ok"]);
    check("root/p", &unreadable, [refused, refused, refused]);
}

#[test]
fn the_first_policy_is_named_mesh_before_namespace_then_by_name() {
    let deny = json!({"action": "DENY", "rules": [{"to": [{"operation": {"ports": ["1"]}}]}, {}]});
    let names = ["shop/b", "shop/a", "root/z", "root/y"];
    let mut store = store(names.map(|name| Change::Authorization(authorization(name, &deny))));
    for expect in ["root/y", "root/z", "shop/a", "shop/b"] {
        let evaluator = store.policies().evaluator(&workload("shop", &[]));
        let verdict = evaluator.decide(flow(CART, "10.0.0.1:4000", "10.0.0.9:80"));
        assert_eq!(told(&verdict), format!("denied {expect}[1]"));
        let (namespace, name) = expect.split_once('/').unwrap();
        store.apply(Change::AuthorizationGone(PolicyName::new(namespace, name)));
    }
    assert_eq!(store.policies().authorization().count(), 0);
}

#[test]
fn cluster_local_means_our_own_trust_domain() {
    let check = |principal: &str, identity: &str, expect: bool| {
        let spec = source("DENY", json!({"principals": [principal]}));
        let mut store = Store::new("root", &domain("mesh.example"));
        store.apply(Change::Authorization(authorization("shop/p", &spec)));
        let evaluator = store.policies().evaluator(&workload("shop", &[]));
        let verdict = evaluator.decide(flow(identity, "10.0.0.1:4000", "10.0.0.9:80"));
        assert_eq!(
            verdict.decision.is_err(),
            expect,
            "{principal} and {identity}"
        );
    };
    let ours = "mesh.example/ns/shop/sa/cart";
    check(CART, ours, true);
    check("cluster.local/ns/shop/*", ours, true);
    check("cluster.local/*", ours, true);
    check(ours, ours, true);
    check("*/ns/shop/sa/cart", ours, true);
    check("cluster.local/ns/shop/sa/other", ours, false);
    check("other.example/ns/shop/sa/cart", ours, false);
    // A foreign domain that is really called so is not meant.
    check(CART, CART, false);
    check("*/ns/shop/sa/cart", CART, true);
}

#[test]
fn an_identity_counts_only_on_a_path_that_proves_it() {
    let policies = store([Change::Authorization(authorization(
        "shop/p",
        &source("ALLOW", json!({"principals": ["*"]})),
    ))]);
    let evaluator = policies.policies().evaluator(&workload("shop", &[]));
    let mut flow = flow(CART, "10.0.0.1:4000", "10.0.0.9:80");
    flow.path = crate::mesh::Path::Plain;
    assert_eq!(told(&evaluator.decide(flow)), "not_allowed");
}

#[test]
fn a_dry_run_is_told_where_it_would_change_the_decision() {
    let check = |enforced: &[&Value], dry: &[&Value], expect: &str| {
        let enforced = enforced.iter().enumerate();
        let enforced = enforced.map(|(at, spec)| authorization(&format!("shop/p{at}"), spec));
        let dry = dry.iter().enumerate();
        let dry = dry.map(|(at, spec)| rehearsal(&format!("shop/d{at}"), spec));
        let policies = store(enforced.chain(dry).map(Change::Authorization)).policies();
        let evaluator = policies.evaluator(&workload("shop", &[]));
        let verdict = evaluator.decide(flow(CART, "10.0.0.1:4000", "10.0.0.9:80"));
        assert_eq!(told(&verdict), expect);
    };
    let allow = json!({"rules": [{}]});
    let deny = json!({"action": "DENY", "rules": [{}]});
    let nothing = json!({});
    let wrong = json!({"action": "AUDIT"});
    check(&[], &[&deny], "ok; shop/d0 would_deny");
    check(&[], &[&allow], "ok");
    check(&[], &[&nothing], "ok; shop/d0 would_not_allow");
    check(&[], &[&wrong], "ok; shop/d0 would_refuse");
    check(&[], &[&nothing, &allow], "ok");
    check(&[&allow], &[&nothing], "ok shop/p0[0]");
    check(&[&nothing], &[&allow], "not_allowed; shop/d0 would_allow");
    check(&[&nothing], &[&allow, &deny], "not_allowed");
    check(&[&deny], &[&deny, &wrong], "denied shop/p0[0]");
    check(
        &[&allow],
        &[&nothing, &deny],
        "ok shop/p0[0]; shop/d1 would_deny",
    );
}

#[test]
fn an_annotation_that_is_no_boolean_leaves_the_policy_enforced() {
    for (value, dry_run, notices) in [
        ("true", true, 0),
        ("T", true, 0),
        ("1", true, 0),
        ("false", false, 0),
        ("", false, 0),
        ("yes", false, 1),
    ] {
        let annotations = [("other", "true"), ("istio.io/dry-run", value)];
        let spec = json!({"rules": [{}]});
        let policy =
            crate::mesh::policy::AuthorizationPolicy::read("p", "shop", annotations, &spec);
        assert_eq!(
            (policy.dry_run, policy.notices.len()),
            (dry_run, notices),
            "{value}"
        );
    }
}

#[test]
fn parts_that_never_match_are_noticed() {
    let kinds = |spec: &Value| -> Vec<NoticeKind> {
        let notices = authorization("shop/p", spec).notices;
        notices.iter().map(|notice| notice.kind).collect()
    };
    assert_eq!(
        kinds(&source("DENY", json!({"principals": [CART, "*", "x*"]}))),
        []
    );
    let never = [NoticeKind::NeverMatches];
    assert_eq!(
        kinds(&source("DENY", json!({"principals": ["cart"]}))),
        never
    );
    assert_eq!(kinds(&source("DENY", json!({}))), never);
    let condition = json!({"key": "source.principal", "notValues": ["cluster.local/ns/shop"]});
    assert_eq!(kinds(&when("ALLOW", condition)), never);
}

#[test]
fn a_permit_is_rechecked_under_other_policies() {
    let mut store = store([]);
    let web = workload("shop", &[]);
    let before = store.policies().evaluator(&web);
    let permit = before
        .decide(flow(CART, "10.0.0.1:4000", "10.0.0.9:80"))
        .decision
        .unwrap();
    assert_eq!(before.recheck(&permit), None);
    let deny = json!({"action": "DENY", "rules": [{}]});
    store.apply(Change::Authorization(authorization("other/p", &deny)));
    let elsewhere = store.policies().evaluator(&web);
    assert!(before.same(&elsewhere), "nothing that binds it changed");
    store.apply(Change::Authorization(authorization("shop/p", &deny)));
    let after = store.policies().evaluator(&web);
    assert!(!before.same(&after));
    assert_eq!(
        after.recheck(&permit).map(|denial| denial.reason()),
        Some("denied")
    );
    assert_eq!(before.recheck(&permit), None, "a snapshot does not change");
    let leaving = outbound(flow(CART, "10.0.0.1:4000", "10.0.0.9:80"));
    assert_eq!(leaving.flow().direction, Direction::Outbound);
    assert_eq!(after.recheck(&leaving), None);
}
