//! The traffic counters: labels, byte direction, expiry, bounds.

use smallvec::SmallVec;

use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry as Prometheus;

use super::*;
use crate::mesh::{
    Enrolment, Labels as PodLabels, Local, Owner, Peer, Phase, TrustDomain, service_hostname,
};

fn workload(name: &str) -> Arc<Workload> {
    let domain = TrustDomain::parse("cluster.local").unwrap();
    Arc::new(Workload {
        uid: format!("shop/{name}-1").into(),
        name: format!("{name}-1").into(),
        namespace: "shop".into(),
        identity: Identity::new(&domain, "shop", name).unwrap(),
        node: "n1".into(),
        zone: "z1".into(),
        region: "".into(),
        ips: SmallVec::new(),
        labels: PodLabels::new([(Arc::from("version"), Arc::from("v2"))]),
        owner: Owner {
            kind: "deployment".into(),
            name: name.into(),
        },
        enrolment: Enrolment::Enrolled,
        phase: Phase::Running,
        host_network: false,
        reach: crate::mesh::Reach::AsEnrolled,
        netns: None,
    })
}

fn service(name: &str) -> Arc<Service> {
    Arc::new(Service {
        name: name.into(),
        namespace: "shop".into(),
        vips: SmallVec::new(),
        ports: SmallVec::new(),
        internal_traffic_policy: Default::default(),
        traffic_distribution: Default::default(),
        publish_not_ready: false,
    })
}

fn flow(source: Option<&str>, destination: Option<&str>, path: Path) -> Flow {
    let source = source.map(workload);
    Flow {
        direction: Direction::Outbound,
        source: Peer {
            addr: "10.0.0.1:40000".parse().unwrap(),
            identity: source.as_ref().map(|w| w.identity.clone()),
            workload: source,
        },
        destination: Local {
            addr: "10.0.0.2:80".parse().unwrap(),
            workload: destination.map(workload),
            service: Some(service("db")),
        },
        path,
    }
}

fn text(traffic: &Traffic) -> String {
    let mut registry = Prometheus::default();
    registry.register_collector(Box::new(traffic.clone()));
    let mut text = String::new();
    encode(&mut text, &registry).unwrap();
    text
}

/// The sum of a metric's lines that hold every one of `labels`.
fn value(traffic: &Traffic, name: &str, labels: &[&str]) -> u64 {
    text(traffic)
        .lines()
        .filter(|line| line.starts_with(&format!("{name}{{")))
        .filter(|line| labels.iter().all(|label| line.contains(label)))
        .map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap())
        .sum()
}

#[test]
fn a_tunnelled_connection_carries_the_labels_boards_ask_for() {
    let now = Instant::now();
    let traffic = Traffic::new(2, "cluster.local", now);
    let flow = flow(Some("web"), Some("db"), Path::Tunnel);
    assert_eq!(
        service_hostname(&service("db"), "cluster.local"),
        "db.shop.svc.cluster.local"
    );
    let opened = traffic.recorder(1).opened(&flow, now);
    opened.moved(100, 7000);
    opened.closed(Outcome::Complete, now);
    let labels = [
        r#"reporter="source""#,
        r#"source_workload="web""#,
        r#"source_workload_namespace="shop""#,
        r#"source_principal="spiffe://cluster.local/ns/shop/sa/web""#,
        r#"destination_principal="spiffe://cluster.local/ns/shop/sa/db""#,
        r#"destination_version="v2""#,
        r#"destination_canonical_service="db""#,
        r#"destination_service="db.shop.svc.cluster.local""#,
        r#"destination_service_name="db""#,
        r#"source_zone="z1""#,
        r#"source_region="unknown""#,
        r#"request_protocol="tcp""#,
        r#"response_flags="-""#,
        r#"connection_security_policy="mutual_tls""#,
    ];
    let check = |name: &str, expect: u64| assert_eq!(value(&traffic, name, &labels), expect);
    check("istio_tcp_connections_opened_total", 1);
    check("istio_tcp_connections_closed_total", 1);
    check("istio_tcp_connections_failed_total", 0);
    // Istio looks from the service: it received the request and sent the response.
    check("istio_tcp_received_bytes_total", 100);
    check("istio_tcp_sent_bytes_total", 7000);
}

#[test]
fn a_plain_connection_claims_no_principal() {
    let now = Instant::now();
    let traffic = Traffic::new(1, "cluster.local", now);
    let recorder = traffic.recorder(0);
    let opened = recorder.opened(&flow(Some("web"), None, Path::Plain), now);
    opened.closed(Outcome::DialFailed, now);
    let labels = [
        r#"source_principal="unknown""#,
        r#"destination_workload="unknown""#,
        r#"connection_security_policy="unknown""#,
        r#"response_flags="CONNECT""#,
    ];
    assert_eq!(
        value(&traffic, "istio_tcp_connections_failed_total", &labels),
        1
    );
}

#[test]
fn workers_share_a_series_and_a_repeated_pair_is_cached() {
    let now = Instant::now();
    let traffic = Traffic::new(2, "cluster.local", now);
    let flow = flow(Some("web"), Some("db"), Path::Tunnel);
    for worker in [0, 1, 0, 1] {
        let recorder = traffic.recorder(worker);
        drop(recorder.opened(&flow, now));
        drop(recorder.opened(&flow, now));
        assert_eq!(recorder.cache.borrow().len(), 1);
    }
    assert_eq!(traffic.len(), 1);
    assert_eq!(
        value(&traffic, "istio_tcp_connections_opened_total", &[]),
        8
    );
    assert_eq!(
        value(&traffic, "istio_tcp_connections_closed_total", &[]),
        8
    );
}

#[test]
fn series_of_what_is_gone_expire_when_idle() {
    let start = Instant::now();
    let traffic = Traffic::new(1, "cluster.local", start);
    let recorder = traffic.recorder(0);
    let gone = flow(Some("web"), Some("old"), Path::Tunnel);
    let stays = flow(Some("web"), Some("db"), Path::Tunnel);
    recorder
        .opened(&stays, start)
        .closed(Outcome::Complete, start);
    let live = recorder.opened(&gone, start);
    let alive = |member: Member<'_>| {
        member
            != Member::Workload {
                namespace: "shop",
                name: "old",
            }
    };
    let later = start + Duration::from_secs(1000);
    assert_eq!(traffic.expire(later, alive), 0, "it has a live connection");
    live.closed(Outcome::Complete, later);
    assert_eq!(traffic.expire(later, alive), 0, "it was used just now");
    let much_later = later + IDLE + Duration::from_secs(1);
    assert_eq!(traffic.expire(much_later, alive), 1);
    assert_eq!(traffic.len(), 1, "an idle series of what lives stays");

    // The worker still has the retired series in its cache, and must not count into it.
    recorder
        .opened(&gone, much_later)
        .closed(Outcome::Complete, much_later);
    let old = [r#"destination_workload="old""#];
    assert_eq!(
        value(&traffic, "istio_tcp_connections_opened_total", &old),
        1
    );
}

#[test]
fn what_is_too_much_is_counted_as_overflow() {
    let now = Instant::now();
    let traffic = Traffic::with_limit(1, "cluster.local", now, 2);
    let recorder = traffic.recorder(0);
    for name in ["a", "b", "c", "d"] {
        let flow = flow(Some(name), Some("db"), Path::Tunnel);
        recorder.opened(&flow, now).closed(Outcome::Complete, now);
    }
    assert_eq!(traffic.len(), 3, "two and the bucket");
    let overflow = [r#"source_workload="overflow""#];
    assert_eq!(
        value(&traffic, "istio_tcp_connections_opened_total", &overflow),
        2
    );
}

#[test]
fn a_label_cannot_break_out_of_its_quotes() {
    let now = Instant::now();
    let traffic = Traffic::new(1, "cluster.local", now);
    let mut flow = flow(Some("web"), Some("db"), Path::Tunnel);
    let mut evil = (*workload("web")).clone();
    evil.owner.name = "a\"} 1\nfake{x=\"".into();
    flow.source.workload = Some(Arc::new(evil));
    drop(traffic.recorder(0).opened(&flow, now));
    assert!(!text(&traffic).lines().any(|line| line.starts_with("fake")));
}
