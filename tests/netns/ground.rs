//! The ground the other tests stand on: without a daemon, the lab is an ordinary network.

use std::time::Duration;

use crate::support::{
    Authority, Families, HboneClient, HboneServer, Lab, Mint, Outcome, Reply, Slice, exchange,
    to_yaml,
};

#[test]
fn pods_reach_one_another_across_nodes_and_within() {
    let mut lab = Lab::new();
    let a = lab.pod(1, "a");
    let near = lab.pod(1, "near");
    let far = lab.pod(2, "far");
    let none = lab.pod_with(2, "none", |p| _ = p.families(Families::NoV6));
    let six = lab.pod_with(2, "six", |p| _ = p.families(Families::V6));
    for pod in [&near, &far, &none, &six] {
        let _server = pod.greet(8080);
        for ip in pod.ips() {
            a.call((ip, 8080).into())
                .assert_served(pod.name(), a.ip_like(ip));
        }
    }
    assert_eq!(a.call(far.at(81)), Outcome::Refused, "nobody listens there");
    let vip = "10.96.0.1:80".parse().expect("an address");
    assert_eq!(
        a.call_for(vip, Duration::from_secs(2)),
        Outcome::Unreachable
    );
}

#[test]
fn the_wire_shows_what_passes_in_clear() {
    let mut lab = Lab::new();
    let (a, b) = (lab.pod(1, "a"), lab.pod(2, "b"));
    let wire = lab.tap_link();
    let _server = b.greet(8080);
    let conn = a.dial_greeter((b.v6(), 8080).into());
    conn.echoes(b"open sesame").expect("the server echoes");
    let packets = wire.packets();
    assert!(
        packets
            .iter()
            .any(|p| p.opens() && p.to == (b.v6(), 8080).into())
    );
    let seen = packets
        .iter()
        .filter(|p| p.contains(b"open sesame"))
        .count();
    assert!(seen >= 2, "there and back, but {seen}");
}

#[test]
fn an_exchange_notices_every_kind_of_end() {
    let mut lab = Lab::one_node();
    let (a, b) = (lab.pod(1, "a"), lab.pod(1, "b"));
    let listener = b.listen(9000);
    let client = a.dial(b.at(9000));
    let server = listener.accept();
    let far = std::thread::spawn(move || exchange(&server, 2, 1, 3_000_000));
    exchange(&client, 1, 2, 3_000_000).expect("nothing is lost");
    far.join()
        .expect("it does not panic")
        .expect("nothing is lost");

    let client = a.dial(b.at(9000));
    listener.accept().reset();
    assert_eq!(client.ending(), Outcome::Reset);
    let client = a.dial(b.at(9000));
    let server = listener.accept();
    server.finish();
    assert_eq!(client.ending(), Outcome::Closed);
    client.send(b"still here");
    server.expect(b"still here");
}

#[test]
fn the_objects_are_plain_yaml() {
    let mut lab = Lab::one_node();
    let a = lab.pod(1, "a");
    lab.service("web").port("http", 80, 8080).to(&[&a]).add();
    let text = lab.cluster.yaml();
    for document in text.split("---\n") {
        let value: serde_json::Value = serde_saphyr::from_str(document).expect("it is YAML");
        assert_eq!(to_yaml(&value), document);
    }
    assert!(text.contains("kind: EndpointSlice\n"), "{text}");
    assert!(Slice::default().objects("mesh", "none").is_empty());
}

#[test]
fn peers_of_the_tests_speak_hbone_with_one_another() {
    let mut lab = Lab::one_node();
    let (a, b) = (lab.pod(1, "a"), lab.pod(1, "b"));
    let authority = Authority::foreign();
    let [client, server] = [&a, &b].map(|pod| authority.issue(&Mint::of(&pod.identity())));
    let open = |reply| HboneServer::open(b.netns(), b.at(15008), &server, reply);

    let far = open(Reply::Echo);
    let mut tunnel = HboneClient::open(a.netns(), b.at(15008), Some(&client)).expect("it is taken");
    assert_eq!(tunnel.server(), [b.identity()]);
    let (status, mut stream) = tunnel.connect("10.0.0.9:80").expect("it answers");
    assert_eq!(status, 200);
    stream.send(b"there and back", true).expect("it is open");
    assert_eq!(stream.receive_all(), Ok(b"there and back".to_vec()));
    let seen = far.seen().remove(0);
    assert_eq!(
        (seen.method.as_str(), &*seen.authority),
        ("CONNECT", "10.0.0.9:80")
    );
    assert_eq!(seen.client, [a.identity()]);
    drop((tunnel, far));

    let _far = open(Reply::Status(401));
    let mut tunnel = HboneClient::open(a.netns(), b.at(15008), Some(&client)).expect("it is taken");
    assert_eq!(
        tunnel.connect("10.0.0.9:80").map(|(status, _)| status),
        Ok(401)
    );
    let refused = HboneClient::open(a.netns(), b.at(15008), None);
    assert!(
        refused.is_err_and(|e| e.starts_with("tls")),
        "a peer without a certificate"
    );
}
