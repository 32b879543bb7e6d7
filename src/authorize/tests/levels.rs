//! Each documented case of PeerAuthentication, one line each.

use serde_json::{Value, json};

use crate::authorize::Change;
use crate::authorize::mtls::Level;
use crate::authorize::tests::{flow, peer, store, told, workload};
use crate::mesh::policy::NoticeKind;

fn mode(mode: &str) -> Value {
    json!({"mtls": {"mode": mode}})
}

fn web(mode: &str) -> Value {
    json!({"selector": {"matchLabels": {"app": "web"}}, "mtls": {"mode": mode}})
}

fn web_port(workload: &str, port: &str) -> Value {
    let mut spec = web(workload);
    spec["portLevelMtls"] = json!({"80": {"mode": port}});
    spec
}

/// A plaintext flow to a port of a pod of namespace `shop` with `app: web`.
fn check_port(policies: &[(&str, Value)], port: u16, expect: &str) {
    let changes = policies.iter().map(|(name, spec)| peer(name, spec));
    let policies_now = store(changes.map(Change::PeerAuthentication)).policies();
    let evaluator = policies_now.evaluator(&workload("shop", &[("app", "web")]));
    let to = format!("10.0.0.9:{port}");
    let verdict = evaluator.decide(flow("-", "10.0.0.1:4000", &to));
    assert_eq!(told(&verdict), expect, "plaintext under {policies:?}");
    let verdict = evaluator.decide(flow("cluster.local/ns/a/sa/x", "10.0.0.1:4000", &to));
    assert_eq!(told(&verdict), "ok", "an identity under {policies:?}");
}

fn check(policies: &[(&str, Value)], expect: &str) {
    check_port(policies, 80, expect);
}

#[test]
fn the_narrowest_level_decides() {
    check(&[], "ok");
    let refused = |by: &str| format!("plaintext_refused {by}");
    for name in ["root/p", "shop/p"] {
        check(&[(name, mode("STRICT"))], &refused(name));
        check(&[(name, web("STRICT"))], &refused(name));
        check(&[(name, mode("PERMISSIVE"))], "ok");
        check(&[(name, mode("DISABLE"))], "ok");
        check(&[(name, mode("UNSET"))], "ok");
        check(&[(name, json!({}))], "ok");
        check(&[(name, json!(null))], "ok");
    }
    check(&[("other/p", mode("STRICT"))], "ok");
    // From the widest to the narrowest; each goes before the one before it.
    let levels = [
        ("root/m", mode("STRICT")),
        ("root/s", web("STRICT")),
        ("shop/n", mode("STRICT")),
        ("shop/w", web("STRICT")),
    ];
    for wide in 0..levels.len() {
        for narrow in wide + 1..levels.len() {
            let (wide, narrow) = (levels[wide].clone(), levels[narrow].clone());
            let with = |mode: &str| {
                let mut spec = narrow.1.clone();
                spec["mtls"]["mode"] = mode.into();
                [wide.clone(), (narrow.0, spec)]
            };
            check(&with("STRICT"), &refused(narrow.0));
            check(&with("PERMISSIVE"), "ok");
            check(&with("DISABLE"), "ok");
            check(&with("UNSET"), &refused(wide.0));
        }
    }
}

#[test]
fn a_port_goes_before_its_workload() {
    let refused = "plaintext_refused shop/p";
    check_port(&[("shop/p", web_port("STRICT", "PERMISSIVE"))], 80, "ok");
    check_port(&[("shop/p", web_port("STRICT", "PERMISSIVE"))], 81, refused);
    check_port(&[("shop/p", web_port("PERMISSIVE", "STRICT"))], 80, refused);
    check_port(&[("shop/p", web_port("PERMISSIVE", "STRICT"))], 81, "ok");
    check_port(&[("shop/p", web_port("STRICT", "UNSET"))], 80, refused);
    check_port(&[("shop/p", web_port("STRICT", "DISABLE"))], 80, "ok");
    let mesh = ("root/m", mode("STRICT"));
    check_port(
        &[mesh.clone(), ("shop/p", web_port("UNSET", "DISABLE"))],
        80,
        "ok",
    );
    let by_mesh = "plaintext_refused root/m";
    check_port(
        &[mesh.clone(), ("shop/p", web_port("UNSET", "DISABLE"))],
        81,
        by_mesh,
    );
    check_port(
        &[mesh, ("shop/p", web_port("UNSET", "STRICT"))],
        80,
        refused,
    );
    // A narrower level that says something covers the ports of a wider one.
    let wide = ("root/s", web_port("STRICT", "PERMISSIVE"));
    check_port(
        &[wide.clone(), ("shop/n", mode("STRICT"))],
        80,
        "plaintext_refused shop/n",
    );
    check_port(&[wide, ("shop/n", mode("UNSET"))], 80, "ok");
}

#[test]
fn the_oldest_of_one_level_stands_alone() {
    let check = |first: Option<&str>, second: Option<&str>, expect: &str| {
        let a = peer("shop/a", &mode("PERMISSIVE")).created(first);
        let b = peer("shop/b", &mode("STRICT")).created(second);
        let policies = store([b, a].map(Change::PeerAuthentication)).policies();
        let evaluator = policies.evaluator(&workload("shop", &[]));
        let verdict = evaluator.decide(flow("-", "10.0.0.1:4000", "10.0.0.9:80"));
        assert_eq!(told(&verdict), expect, "{first:?} {second:?}");
    };
    let (old, new) = (Some("2025-12-31T23:59:59Z"), Some("2026-01-01T00:00:00Z"));
    let refused = "plaintext_refused shop/b";
    check(old, new, "ok");
    check(new, old, refused);
    check(None, new, refused);
    check(new, None, "ok");
    check(None, None, "ok");
    check(new, new, "ok");
    check(Some("yesterday"), new, refused);
}

#[test]
fn what_is_not_understood_is_strict() {
    let selected = |rest: Value| {
        let mut spec = json!({"selector": {"matchLabels": {"app": "web"}}});
        spec.as_object_mut()
            .unwrap()
            .extend(rest.as_object().unwrap().clone());
        spec
    };
    for spec in [
        json!("STRICT"),
        json!({"mtls": "PERMISSIVE"}),
        json!({"mtls": {"mode": "permissive"}}),
        json!({"mtls": {"mode": 1}}),
        json!({"mtls": {"modes": "PERMISSIVE"}}),
        json!({"mTLS": {"mode": "PERMISSIVE"}}),
        json!({"selector": {"matchLabels": {"app": 1}}}),
        json!({"mtls": {"mode": "PERMISSIVE"}, "portLevelMtls": {"80": {"mode": "PERMISSIVE"}}}),
        selected(json!({"portLevelMtls": {"http": {"mode": "PERMISSIVE"}}})),
        selected(json!({"portLevelMtls": {"080": {"mode": "PERMISSIVE"}}})),
        selected(json!({"portLevelMtls": {"81": {"mode": "MUTUAL"}}})),
        selected(json!({"portLevelMtls": ["80"]})),
    ] {
        // Whatever narrower and older policies say.
        let others = [
            ("shop/a", web_port("PERMISSIVE", "PERMISSIVE")),
            ("root/a", mode("DISABLE")),
        ];
        for name in ["shop/p", "root/p"] {
            let all = [&[(name, spec.clone())][..], &others[..]].concat();
            check(&all, &format!("plaintext_refused {name}"));
        }
        let notices = peer("shop/p", &spec).notices;
        assert_eq!(notices[0].kind, NoticeKind::NotUnderstood, "{spec}");
    }
    let elsewhere = json!({"selector": {"matchLabels": {"app": "db"}}, "mtls": {"mode": "?"}});
    check(&[("shop/p", elsewhere)], "ok");
}

#[test]
fn a_mode_is_told_with_its_level() {
    let check = |name: &str, spec: Value, expect: Option<(bool, Level)>| {
        let policies = store([Change::PeerAuthentication(peer(name, &spec))]).policies();
        let evaluator = policies.evaluator(&workload("shop", &[("app", "web")]));
        let got = evaluator.mtls(80).map(|mtls| (mtls.strict, mtls.level));
        assert_eq!(got, expect, "{name} {spec}");
    };
    check("root/p", mode("UNSET"), None);
    check("root/p", mode("STRICT"), Some((true, Level::Mesh)));
    check("root/p", web("DISABLE"), Some((false, Level::MeshSelector)));
    check(
        "shop/p",
        mode("PERMISSIVE"),
        Some((false, Level::Namespace)),
    );
    check("shop/p", web("STRICT"), Some((true, Level::Workload)));
    check(
        "shop/p",
        web_port("STRICT", "DISABLE"),
        Some((false, Level::Port)),
    );
    check("shop/p", mode("?"), Some((true, Level::Unreadable)));
}

#[test]
fn other_effects_are_noticed() {
    let kinds = |spec: &Value| -> Vec<NoticeKind> {
        peer("shop/p", spec)
            .notices
            .iter()
            .map(|notice| notice.kind)
            .collect()
    };
    assert_eq!(kinds(&mode("STRICT")), []);
    assert_eq!(kinds(&mode("DISABLE")), [NoticeKind::OtherEffect]);
    assert_eq!(
        kinds(&web_port("STRICT", "DISABLE")),
        [NoticeKind::OtherEffect]
    );
    let annotations = [("istio.io/dry-run", "true")];
    let policy =
        crate::mesh::policy::PeerAuthentication::read("p", "shop", annotations, &mode("STRICT"));
    assert_eq!(policy.notices[0].kind, NoticeKind::OtherEffect);
}
