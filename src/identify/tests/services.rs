//! Which endpoint of a service a connection gets.

use super::*;

#[test]
fn a_virtual_address_leads_to_a_ready_endpoint() {
    let svc = || service("s", &["10.96.0.1"], &["http:80>web", "raw:81>9000"]);
    let one = || slice("s-1", "s", &["http:8080", "raw:"], &["10.0.0.1"]);
    let all = || vec![a(), svc().into(), one().into()];
    check(
        all(),
        "10.96.0.1:80",
        &["mesh s/a 10.0.0.1:8080 via 10.0.0.1:15008"],
    );
    check(
        all(),
        "10.96.0.1:81",
        &["mesh s/a 10.0.0.1:9000 via 10.0.0.1:15008"],
    );
    check(all(), "10.96.0.1:8080", &["no_port s"]);
    check(vec![svc().into()], "10.96.0.1:80", &["no_endpoint s"]);
    let outside = slice("s-1", "s", &["http:8080"], &["192.0.2.1"]);
    check(
        vec![svc().into(), outside.into()],
        "10.96.0.1:80",
        &["plain s/- 192.0.2.1:8080"],
    );
    let foreign = slice("s-1", "t", &["http:8080"], &["10.0.0.1"]);
    check(
        vec![svc().into(), foreign.into()],
        "10.96.0.1:80",
        &["no_endpoint s"],
    );
}

#[test]
fn readiness_is_weighed_as_the_api_says() {
    let eps = |endpoints: &[&str]| {
        let service = service("s", &["10.96.0.1"], &[":80>80"]);
        vec![
            service.into(),
            slice("s-1", "s", &[":80"], endpoints).into(),
        ]
    };
    let to = "10.96.0.1:80";
    check(
        eps(&["10.0.0.1", "10.0.0.2 not-ready", "10.0.0.3 draining"]),
        to,
        &["plain s/- 10.0.0.1:80"],
    );
    check(
        eps(&["10.0.0.2 not-ready", "10.0.0.3 draining"]),
        to,
        &["plain s/- 10.0.0.3:80"],
    );
    check(eps(&["10.0.0.2 not-ready"]), to, &["no_endpoint s"]);
    let unready = Service {
        publish_not_ready: true,
        ..service("s", &["10.96.0.1"], &[":80>80"])
    };
    let one = slice("s-1", "s", &[":80"], &["10.0.0.2 not-ready"]);
    check(
        vec![unready.into(), one.into()],
        to,
        &["plain s/- 10.0.0.2:80"],
    );
}

#[test]
fn an_endpoint_is_of_the_virtual_addresss_family() {
    let all = || -> Vec<Object> {
        vec![
            service("s", &["10.96.0.1", "fd96::1"], &[":80>80"]).into(),
            slice("s-4", "s", &[":80"], &["10.0.0.1"]).into(),
            slice("s-6", "s", &[":80"], &["fd00::1"]).into(),
        ]
    };
    check(all(), "10.96.0.1:80", &["plain s/- 10.0.0.1:80"]);
    check(all(), "[fd96::1]:80", &["plain s/- [fd00::1]:80"]);
    check(all()[..2].to_vec(), "[fd96::1]:80", &["no_endpoint s"]);
}

#[test]
fn the_choice_is_spread_evenly_over_every_endpoint_once() {
    let eps = |name: &str, from: u8, to: u8| {
        let ips: Vec<String> = (from..to).map(|i| format!("10.0.0.{i}")).collect();
        let ips: Vec<&str> = ips.iter().map(String::as_str).collect();
        slice(name, "s", &[":80"], &ips)
    };
    // Two endpoints stand in both slices.
    let index = index([
        service("s", &["10.96.0.1"], &[":80>80"]).into(),
        eps("s-1", 1, 6).into(),
        eps("s-2", 4, 9).into(),
        pod(CLIENT, "n1", &["10.9.9.9"]).into(),
    ]);
    let snapshot = index.snapshot();
    let client = snapshot.workload("shop", CLIENT).unwrap();
    let to = OriginalDst::new("10.96.0.1:80".parse().unwrap());
    let mut counts = std::collections::BTreeMap::new();
    for i in 0..8_000_u64 {
        let way = words(snapshot.resolve(client, to, (2 * i + 1) * (u64::MAX / 16_000)));
        *counts.entry(way).or_insert(0) += 1;
    }
    assert_eq!(counts.into_values().collect::<Vec<_>>(), [1_000; 8]);
}

#[test]
fn a_local_service_stays_on_the_clients_node() {
    let eps = |endpoints: &[&str]| -> Vec<Object> {
        let service = Service {
            internal_traffic_policy: InternalTrafficPolicy::Local,
            ..service("s", &["10.96.0.1"], &[":80>80"])
        };
        vec![
            service.into(),
            slice("s-1", "s", &[":80"], endpoints).into(),
        ]
    };
    let to = "10.96.0.1:80";
    check(
        eps(&["10.0.0.1 node=n1", "10.0.0.2 node=n2"]),
        to,
        &["plain s/- 10.0.0.1:80"],
    );
    check(
        eps(&["10.0.0.2 node=n2", "10.0.0.3"]),
        to,
        &["no_endpoint s"],
    );
    check(
        eps(&["10.0.0.1 node=n1 draining", "10.0.0.2 node=n2"]),
        to,
        &["plain s/- 10.0.0.1:80"],
    );
}

#[test]
fn near_endpoints_come_first() {
    let eps = |distribution, endpoints: &[&str]| -> Vec<Object> {
        let service = Service {
            traffic_distribution: distribution,
            ..service("s", &["10.96.0.1"], &[":80>80"])
        };
        vec![
            service.into(),
            slice("s-1", "s", &[":80"], endpoints).into(),
        ]
    };
    use TrafficDistribution::{Any, SameNode, SameZone};
    let to = "10.96.0.1:80";
    let [one, two, three] = ["1", "2", "3"].map(|i| format!("plain s/- 10.0.0.{i}:80"));
    let [one, two, three] = [&*one, &*two, &*three];
    let spread = [
        "10.0.0.1 node=n1 zone=z1",
        "10.0.0.2 node=n2 zone=z1",
        "10.0.0.3 node=n3 zone=z2",
    ];
    check(eps(Any, &spread), to, &[one, two, three]);
    check(eps(SameZone, &spread), to, &[one, two]);
    check(eps(SameNode, &spread), to, &[one]);
    check(eps(SameNode, &spread[1..]), to, &[two]);
    check(eps(SameNode, &spread[2..]), to, &[three]);
    check(eps(SameZone, &spread[2..]), to, &[three]);
    // Without zones in the slice, those of the nodes.
    check(
        eps(SameZone, &["10.0.0.1 node=n1", "10.0.0.3 node=n3"]),
        to,
        &[one],
    );
    // Hints go before places, if every endpoint has some.
    let hinted = "10.0.0.3 node=n3 zone=z2 for-zone=z1 for-node=n1";
    check(
        eps(SameZone, &["10.0.0.2 zone=z1 for-zone=z2", hinted]),
        to,
        &[three],
    );
    check(eps(SameZone, &["10.0.0.2 zone=z1", hinted]), to, &[two]);
    check(
        eps(SameNode, &["10.0.0.1 node=n1 for-node=n2", hinted]),
        to,
        &[three],
    );
    check(
        eps(Any, &["10.0.0.2 zone=z1 for-zone=z2", hinted]),
        to,
        &[two, three],
    );
    // An endpoint that is near and not ready is no endpoint.
    check(
        eps(SameNode, &["10.0.0.1 node=n1 draining", spread[2]]),
        to,
        &[three],
    );
}
