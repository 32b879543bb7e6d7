//! Questions and their answers, over a small made-up cluster.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use serde_json::{Value, json};

use crate::api::explain::Explanation;
use crate::authorize::{Change, Policies, Store};
use crate::explain::{Error, Facts, Settings, explain};
use crate::mesh::policy::{AuthorizationPolicy, PeerAuthentication};
use crate::mesh::{
    Bypass, Enrolment, Identity, InternalTrafficPolicy, Labels, OriginalDst, Owner, Phase, PodAddr,
    Route, Service, TUNNEL_PORT, TrafficDistribution, TrustDomain, TunnelAddr, Workload,
};

/// Pods by address and services by VIP with the address of the pod they lead to.
struct Cluster {
    pods: BTreeMap<IpAddr, Arc<Workload>>,
    services: BTreeMap<IpAddr, (Arc<Service>, Option<IpAddr>)>,
}

impl Facts for Cluster {
    fn workload(&self, namespace: &str, name: &str) -> Option<&Arc<Workload>> {
        let mut pods = self.pods.values();
        pods.find(|pod| (&*pod.namespace, &*pod.name) == (namespace, name))
    }

    fn workload_at(&self, ip: IpAddr) -> Option<&Arc<Workload>> {
        self.pods.get(&ip)
    }

    fn service(&self, namespace: &str, name: &str) -> Option<&Arc<Service>> {
        let mut services = self.services.values().map(|(service, _)| service);
        services.find(|service| (&*service.namespace, &*service.name) == (namespace, name))
    }

    fn service_at(&self, ip: IpAddr) -> Option<&Arc<Service>> {
        self.services.get(&ip).map(|(service, _)| service)
    }

    fn resolve(&self, _: &Workload, to: OriginalDst) -> Result<Route, &'static str> {
        let service = self.services.get(&to.ip());
        let (service, ip, port) = match service {
            Some((service, Some(ip))) => (Some(Arc::clone(service)), *ip, 8080),
            Some((_, None)) => return Err("no_endpoint"),
            None => (None, to.ip(), to.port()),
        };
        let Some(workload) = self.pods.get(&ip) else {
            return Ok(Route::Unknown { to });
        };
        let (workload, to) = (Arc::clone(workload), PodAddr::new((ip, port).into()));
        Ok(match workload.enrolled() {
            true => Route::Mesh {
                workload,
                service,
                to,
                via: TunnelAddr::new((ip, TUNNEL_PORT).into()),
            },
            false => Route::Plain {
                workload: Some(workload),
                service,
                to,
            },
        })
    }
}

fn pod(name: &str, node: &str, ip: &str, enrolment: Enrolment) -> Arc<Workload> {
    let domain = TrustDomain::parse("cluster.local").unwrap();
    Arc::new(Workload {
        uid: name.into(),
        name: name.into(),
        namespace: "shop".into(),
        identity: Identity::new(&domain, "shop", name).unwrap(),
        node: node.into(),
        zone: "".into(),
        region: "".into(),
        ips: [ip.parse().unwrap()].into_iter().collect(),
        labels: Labels::new([("app".into(), name.into())]),
        owner: Owner {
            kind: "pod".into(),
            name: name.into(),
        },
        enrolment,
        phase: Phase::Running,
        host_network: false,
        reach: crate::mesh::Reach::AsEnrolled,
        netns: None,
    })
}

fn service(name: &str, vip: &str) -> Arc<Service> {
    Arc::new(Service {
        name: name.into(),
        namespace: "shop".into(),
        vips: [vip.parse().unwrap()].into_iter().collect(),
        ports: [].into_iter().collect(),
        internal_traffic_policy: InternalTrafficPolicy::Cluster,
        traffic_distribution: TrafficDistribution::Any,
        publish_not_ready: false,
    })
}

/// `cart`, `near` and `web` are enrolled, `near` on the node of `cart`; `old` is not. Services
/// `web` and `front` lead to `web`, and `void` nowhere.
fn cluster() -> Cluster {
    let bypass = Enrolment::Bypass(Bypass::NotLabelled);
    let pods = [
        pod("cart", "n1", "10.0.0.1", Enrolment::Enrolled),
        pod("near", "n1", "10.0.0.2", Enrolment::Enrolled),
        pod("web", "n2", "10.0.0.3", Enrolment::Enrolled),
        pod("old", "n2", "10.0.0.4", bypass),
        pod("six", "n2", "fd00::5", Enrolment::Enrolled),
    ];
    let services = [
        (service("web", "10.96.0.1"), Some("10.0.0.3")),
        (service("front", "10.96.0.2"), Some("10.0.0.3")),
        (service("void", "10.96.0.3"), None),
    ];
    let led = services.map(|(service, to)| {
        let vip = service.vips[0];
        (vip, (service, to.map(|ip| ip.parse().unwrap())))
    });
    Cluster {
        pods: pods.map(|pod| (pod.ips[0], pod)).into(),
        services: led.into(),
    }
}

fn policies(authorization: &[(&str, Value)], peer: &[(&str, Value)]) -> Arc<Policies> {
    let mut store = Store::new("root", &TrustDomain::parse("cluster.local").unwrap());
    for (name, spec) in authorization {
        let annotations = name
            .ends_with("dry")
            .then_some(("istio.io/dry-run", "true"));
        let policy = AuthorizationPolicy::read(name, "shop", annotations, spec);
        store.apply(Change::Authorization(policy));
    }
    for (name, spec) in peer {
        let policy = PeerAuthentication::read(name, "shop", [("", ""); 0], spec);
        store.apply(Change::PeerAuthentication(policy));
    }
    store.policies()
}

fn ask(policies: &Policies, source: &str, destination: &str) -> Result<Explanation, Error> {
    let settings = Settings {
        cluster_domain: "cluster.local",
        same_node_direct: true,
    };
    explain(&cluster(), policies, settings, source, destination)
}

#[test]
fn ways() {
    let none = policies(&[], &[]);
    let check = |source: &str, destination: &str, expect: &str| {
        let told = match ask(&none, source, destination) {
            Ok(told) => {
                let (route, verdict) = (&told.route, &told.verdict);
                let to = route.to.as_deref().unwrap_or("-");
                let via = route.via.as_deref().unwrap_or("-");
                format!("{} {to} {via} {}", route.path, verdict.reason)
            }
            Err(error) => error.reason().to_owned(),
        };
        assert_eq!(told, expect, "{source} to {destination}");
    };
    let tunnel = "tunnel 10.0.0.3:8080 10.0.0.3:15008 no_allow_policy";
    check("shop/cart", "shop/web:8080", tunnel);
    check("10.0.0.1", "10.0.0.3:8080", tunnel);
    check("::ffff:10.0.0.1", "[::ffff:10.0.0.3]:8080", tunnel);
    check("shop/cart", "10.96.0.2:80", tunnel);
    check("shop/cart", "shop/front:80", tunnel);
    check("shop/cart", "web.shop:80", tunnel);
    check("shop/cart", "web.shop.svc.cluster.local:80", tunnel);
    check(
        "shop/cart",
        "shop/near:80",
        "same_node 10.0.0.2:80 - no_allow_policy",
    );
    check(
        "shop/old",
        "shop/web:80",
        "plain 10.0.0.3:80 - no_allow_policy",
    );
    check(
        "192.0.2.1",
        "shop/web:80",
        "plain 10.0.0.3:80 - no_allow_policy",
    );
    check(
        "shop/cart",
        "shop/old:80",
        "plain 10.0.0.4:80 - not_enforced",
    );
    check(
        "192.0.2.1",
        "shop/old:80",
        "plain 10.0.0.4:80 - not_enforced",
    );
    check(
        "shop/cart",
        "192.0.2.1:80",
        "plain 192.0.2.1:80 - not_enforced",
    );
    check(
        "shop/cart",
        "shop/cart:80",
        "local 10.0.0.1:80 - not_captured",
    );
    check("shop/cart", "void.shop:80", "none - - no_endpoint");
    check("192.0.2.1", "web.shop:80", "outside_to_service");
    check("shop/cart", "shop/six:80", "no_address");
    check("shop/none", "shop/web:80", "unknown");
    check("shop/cart", "shop/none:80", "unknown");
    check("shop/cart", "none.shop:80", "unknown");
    check("cart", "shop/web:80", "form");
    for form in [
        "shop/web",
        "shop/web:http",
        "web:80",
        "shop/web:70000",
        "fd00::1:80",
        "",
    ] {
        check("shop/cart", form, "form");
    }
}

#[test]
fn the_deciding_policy_and_rule_are_named() {
    let from_cart = json!([{"source": {"serviceAccounts": ["cart"]}}]);
    let allow = json!({"rules": [
        {"to": [{"operation": {"ports": ["443"]}}]},
        {"from": from_cart, "to": [{"operation": {"methods": ["GET"]}}]},
        {"from": from_cart},
    ]});
    let deny_near = json!({
        "action": "DENY",
        "selector": {"matchLabels": {"app": "near"}},
        "rules": [{}],
    });
    let dry = json!({"action": "DENY", "rules": [{"when": [
        {"key": "destination.port", "values": ["80"]},
    ]}]});
    let strict = json!({
        "selector": {"matchLabels": {"app": "web"}},
        "mtls": {"mode": "STRICT"},
        "portLevelMtls": {"81": {"mode": "DISABLE"}},
    });
    let policies = policies(
        &[("allow", allow), ("deny-near", deny_near), ("dry", dry)],
        &[("web", strict)],
    );
    let check = |source: &str, destination: &str, expect: &str| {
        let told = ask(&policies, source, destination).unwrap();
        let (verdict, mtls) = (&told.verdict, told.mtls.as_ref().unwrap());
        assert_eq!(verdict.permitted, verdict.reason == "allowed");
        let policy = verdict.policy.as_deref().unwrap_or("-");
        let rule = verdict
            .rule
            .map_or(String::new(), |rule| format!("[{rule}]"));
        let by = mtls.policy.as_deref().unwrap_or("-");
        let dry_run = told
            .dry_run
            .iter()
            .map(|dry| format!("; {} {}", dry.policy, dry.would));
        assert_eq!(
            format!(
                "{} {policy}{rule}, {} {by} {}",
                verdict.reason, mtls.mode, mtls.level
            ) + &dry_run.collect::<String>(),
            expect,
            "{source} to {destination}"
        );
        let copy: Explanation =
            serde_json::from_str(&serde_json::to_string(&told).unwrap()).unwrap();
        assert_eq!(copy, told, "it survives its way through the admin socket");
    };
    let web = "STRICT shop/web workload";
    check(
        "shop/cart",
        "shop/web:443",
        &format!("allowed shop/allow[0], {web}"),
    );
    check(
        "shop/cart",
        "shop/web:82",
        &format!("allowed shop/allow[2], {web}"),
    );
    check(
        "shop/cart",
        "shop/web:80",
        &format!("allowed shop/allow[2], {web}; shop/dry would_deny"),
    );
    check("shop/near", "shop/web:82", &format!("not_allowed -, {web}"));
    check(
        "shop/old",
        "shop/web:443",
        &format!("plaintext_refused shop/web, {web}"),
    );
    check(
        "shop/old",
        "shop/web:81",
        "not_allowed -, PERMISSIVE shop/web port",
    );
    check(
        "shop/cart",
        "shop/near:80",
        "denied shop/deny-near[0], PERMISSIVE - default",
    );
}

#[test]
fn it_reads_well() {
    let deny = json!({"action": "DENY", "rules": [
        {"from": [{"source": {"namespaces": ["other"]}}]},
        {"to": [{"operation": {"ports": ["80"], "methods": ["GET"]}}]},
    ]});
    let policies = policies(
        &[
            ("a", deny),
            (
                "b",
                json!({"action": "AUDIT", "selector": {"matchLabels": {"app": "x"}}}),
            ),
            ("c-dry", json!({})),
        ],
        &[("web", json!({"mtls": {"mode": "STRICT"}}))],
    );
    let told = ask(&policies, "shop/cart", "front.shop:80").unwrap();
    let expect = "\
permitted: no ALLOW policy binds the destination

source       shop/cart at 10.0.0.1, enrolled, spiffe://cluster.local/ns/shop/sa/cart
dialled      10.96.0.2:80 (service shop/front)
route        tunnel to 10.0.0.3:8080 via 10.0.0.3:15008
destination  shop/web at 10.0.0.3, enrolled, spiffe://cluster.local/ns/shop/sa/web
mTLS         STRICT, by PeerAuthentication shop/web (namespace)
policies     DENY shop/a (namespace)
               rules[0] fails: from[0].source.namespaces
               rules[1] fails: to[0].operation.ports
             ALLOW shop/c-dry (namespace, dry run)
               no rules, so nothing matches
dry run      shop/c-dry would_not_allow
notices      one of the service's endpoints was taken, and policy may differ by endpoint: ask for a pod to be sure
             shop/a: spec.rules[1] needs what layer 4 does not serve (to[0].operation.methods), so this DENY rule is enforced without it and refuses more
";
    assert_eq!(told.to_string(), expect);
}
