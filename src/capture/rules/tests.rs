//! The rules, as text. To take over an intended change: `BLESS=1 cargo test rules`.

use super::*;

fn connection(local: &str, remote: &str) -> Connection {
    let (local, remote) = (local.parse().unwrap(), remote.parse().unwrap());
    Connection { local, remote }
}

fn golden(name: &str, mode: Mode, v6: bool, connections: &[Connection], held: bool) {
    let rules = Rules {
        mode,
        v6,
        connections,
        held,
    };
    let path = format!(
        "{}/src/capture/rules/{name}.nft",
        env!("CARGO_MANIFEST_DIR")
    );
    let text = rules.transaction();
    if option_env!("BLESS").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    assert_eq!(text, std::fs::read_to_string(&path).unwrap(), "{name}");
}

#[test]
fn texts_are_as_intended() {
    let both = [
        connection("10.0.0.2:40000", "10.0.0.9:443"),
        connection("10.0.0.2:80", "10.0.0.7:5000"),
        connection("[fd00::2]:80", "[fd00::9]:5000"),
    ];
    golden("full", Mode::Full, true, &[], false);
    golden("full_held", Mode::Full, true, &[], true);
    golden("draining_held", Mode::Draining, true, &[], true);
    golden("full_v4", Mode::Full, false, &[], false);
    golden("full_kept", Mode::Full, true, &both, false);
    golden("draining", Mode::Draining, true, &both, false);
    golden("draining_v4", Mode::Draining, false, &[], false);
}

#[test]
fn every_tproxy_to_capture_is_followed_by_a_drop() {
    for v6 in [false, true] {
        let rules = Rules {
            mode: Mode::Full,
            v6,
            connections: &[],
            held: false,
        };
        let text = rules.transaction();
        let lines: Vec<_> = text.lines().map(str::trim).collect();
        let guarded = lines
            .windows(2)
            .filter(|pair| pair[0].contains("tproxy") && !pair[1].contains("tproxy"))
            .inspect(|pair| assert_eq!(pair[1], "drop"))
            .count();
        assert_eq!(guarded, 3);
    }
}

#[test]
fn different_rules_have_different_names() {
    let name = |mode, v6| {
        let rules = Rules {
            mode,
            v6,
            connections: &[],
            held: false,
        };
        let text = rules.transaction();
        let line = text.lines().find(|line| line.contains("config_")).unwrap();
        line.trim().to_owned()
    };
    let full = name(Mode::Full, true);
    assert_ne!(full, name(Mode::Full, false));
    assert!(is_draining(&name(Mode::Draining, true)));
    assert!(!is_draining(&full));
}

#[test]
fn connections_are_read_back_from_a_listing() {
    let check = |listing: &str, expected: &[Connection]| {
        assert_eq!(read_connections(listing), expected, "{listing}");
    };
    check("", &[]);
    check(
        "table inet adit {\n\tset known4 {\n\t\tflags dynamic\n\t}\n}\n",
        &[],
    );
    check(
        "table inet adit {\n\tset known4 {\n\t\tsize 65535\n\t\telements = { 10.0.0.2 . 80 . 10.0.0.9 . 5000,\n\t\t\t     10.0.0.2 . 81 . 10.0.0.9 . 5001 }\n\t}\n}\n",
        &[
            connection("10.0.0.2:80", "10.0.0.9:5000"),
            connection("10.0.0.2:81", "10.0.0.9:5001"),
        ],
    );
    check(
        "elements = { fd00::2 . 80 . fd00::9 . 5000 }",
        &[connection("[fd00::2]:80", "[fd00::9]:5000")],
    );
    check(
        "elements = { 10.0.0.2 . http . 10.0.0.9 . 5000, nonsense, 1 . 2",
        &[],
    );
}
