//! Whose an address is, and the way to it.

use super::*;

#[test]
fn an_address_leads_to_its_pod_or_through() {
    check(
        vec![a()],
        "10.0.0.1:81",
        &["mesh a 10.0.0.1:81 via 10.0.0.1:15008"],
    );
    check(
        vec![a()],
        "[::ffff:10.0.0.1]:81",
        &["mesh a 10.0.0.1:81 via 10.0.0.1:15008"],
    );
    check(vec![a()], "10.0.0.2:81", &["unknown 10.0.0.2:81"]);
    let dual = || vec![pod("a", "n1", &["10.0.0.1", "fd00::1"]).into()];
    check(
        dual(),
        "[fd00::1]:81",
        &["mesh a [fd00::1]:81 via [fd00::1]:15008"],
    );
    let plain = Pod {
        labels: Labels::default(),
        ..pod("a", "n1", &["10.0.0.1"])
    };
    check(vec![plain.into()], "10.0.0.1:81", &["plain a 10.0.0.1:81"]);
    check(
        vec![pod("a", "n1", &[]).into()],
        "10.0.0.1:81",
        &["unknown 10.0.0.1:81"],
    );
    let pending = Pod {
        phase: Phase::Pending,
        ..pod("a", "", &["10.0.0.1"])
    };
    check(
        vec![pending.into()],
        "10.0.0.1:81",
        &["mesh a 10.0.0.1:81 via 10.0.0.1:15008"],
    );
}

#[test]
fn a_finished_pod_and_one_on_its_nodes_network_own_no_address() {
    let finished = || Pod {
        phase: Phase::Finished,
        created: 99,
        ..pod("f", "n1", &["10.0.0.1"])
    };
    let host = || Pod {
        host_network: true,
        created: 99,
        ..pod("h", "n1", &["10.0.0.1"])
    };
    check(
        vec![finished().into()],
        "10.0.0.1:81",
        &["unknown 10.0.0.1:81"],
    );
    check(vec![host().into()], "10.0.0.1:81", &["unknown 10.0.0.1:81"]);
    check(
        vec![host().into(), finished().into(), a()],
        "10.0.0.1:81",
        &["mesh a 10.0.0.1:81 via 10.0.0.1:15008"],
    );
}

#[test]
fn of_several_pods_with_one_address_one_owns_it_in_any_order() {
    let base = || pod("a", "n1", &["10.0.0.1"]);
    let b = || Pod {
        name: "b".into(),
        uid: "uid-b".into(),
        ..base()
    };
    for (winner, loser) in [
        (
            base(),
            Pod {
                terminating: true,
                created: 99,
                ..b()
            },
        ),
        (
            base(),
            Pod {
                phase: Phase::Pending,
                created: 99,
                ..b()
            },
        ),
        (
            Pod {
                created: 11,
                ..base()
            },
            b(),
        ),
        (b(), base()),
        (
            Pod {
                uid: "z".into(),
                ..base()
            },
            b(),
        ),
        (
            Pod {
                labels: Labels::default(),
                created: 11,
                ..base()
            },
            b(),
        ),
    ] {
        for pair in [[&winner, &loser], [&loser, &winner]] {
            let mut index = index(pair.map(|pod| pod.clone().into()));
            let owner = |index: &Index| {
                let owner = index.snapshot().workload_at([10, 0, 0, 1].into()).cloned();
                owner.map(|workload| workload.name.clone())
            };
            assert_eq!(
                owner(&index),
                Some(winner.name.clone()),
                "{winner:?} {loser:?}"
            );
            assert_eq!(index.snapshot().counts().contested_addresses, 1);
            index.apply(&[Change::Remove(key(&winner.clone().into()))]);
            assert_eq!(owner(&index), Some(loser.name.clone()));
            assert_eq!(index.snapshot().counts().contested_addresses, 0);
            index.apply(&[Change::Remove(key(&loser.clone().into()))]);
            assert_eq!(owner(&index), None);
        }
    }
}

#[test]
fn a_service_goes_before_a_pod_and_the_first_service_before_others() {
    let mut index = index([
        a(),
        service("s", &["10.0.0.1"], &[]).into(),
        service("r", &["10.0.0.1"], &[]).into(),
    ]);
    let at = |index: &Index| {
        let snapshot = index.snapshot();
        let ip = [10, 0, 0, 1].into();
        let client = snapshot.workload("shop", "a").unwrap();
        let way = snapshot.resolve(client, OriginalDst::new((ip, 80).into()), 0);
        (
            snapshot.service_at(ip).map(|s| s.name.to_string()),
            words(way),
        )
    };
    assert_eq!(at(&index), (Some("r".into()), "no_port r".into()));
    index.apply(&[Change::Upsert(service("r", &["10.0.0.2"], &[]).into())]);
    assert_eq!(at(&index), (Some("s".into()), "no_port s".into()));
    index.apply(&[Change::Remove(key(&service("s", &[], &[]).into()))]);
    let own = "mesh a 10.0.0.1:80 via 10.0.0.1:15008";
    assert_eq!(at(&index), (None, own.into()));
}

#[test]
fn where_nodes_mark_what_they_captured_a_pod_of_another_one_must_be_marked() {
    let check = |marking: Option<&str>, node: &str, marked: bool, label: &str, tunnel: bool| {
        let settings = Settings {
            marking: marking.map(str::to_owned),
            ..settings()
        };
        let mut index = Index::new(settings);
        let mut pod = pod("a", node, &["10.0.0.1"]);
        pod.marked = marked;
        pod.labels = labels(label);
        index.apply([Change::Upsert(Object::Pod(Box::new(pod)))]);
        let snapshot = index.snapshot();
        let pod = snapshot.workload_at("10.0.0.1".parse().unwrap()).unwrap();
        let case = format!("{marking:?} {node} {marked} {label}");
        assert_eq!(pod.tunnelled(), tunnel, "{case}");
        assert_eq!(pod.enrolled(), !label.is_empty(), "{case}");
    };
    let ambient = "adit.mesh/mode=ambient";
    for marked in [false, true] {
        check(None, "n2", marked, ambient, true);
        check(None, "n2", marked, "", false);
        // Our own node's pods are ours to capture, whatever an old mark says.
        check(Some("n1"), "n1", marked, ambient, true);
        check(Some("n1"), "n1", marked, "", false);
        check(Some("n1"), "n2", marked, ambient, marked);
        check(Some("n1"), "n2", marked, "", marked);
    }
}
