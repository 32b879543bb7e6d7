//! Policy: who may call whom, on every path; what `adit explain` says of it; and how a change of
//! mind reaches connections that are open.

use std::time::{Duration, Instant};

use crate::RELOAD;
use crate::reason;
use crate::support::{Conn, Lab, Outcome, Pod, Server, adit, eventually, holds_for, within};

/// A server `b`, and a caller on each path to it.
struct World {
    lab: Lab,
    /// Calls through the tunnel, from the other node.
    a: Pod,
    /// Calls on the same node, from within the mesh.
    c: Pod,
    /// Calls in plain TCP, from outside the mesh.
    plain: Pod,
    b: Pod,
    count: usize,
    _server: Server,
}

const YES: bool = true;
const NO: bool = false;

impl World {
    fn new() -> Self {
        Self::with(&[])
    }

    fn with(args: &[&str]) -> Self {
        let mut lab = Lab::new();
        let a = lab.pod(1, "a");
        let c = lab.pod(2, "c");
        let plain = lab.plain_pod(2, "plain");
        let b = lab.pod(2, "b");
        lab.start_with(|l| l.args(args));
        let _server = b.greet(8080);
        Self {
            lab,
            a,
            c,
            plain,
            b,
            count: 0,
            _server,
        }
    }

    fn callers(&self) -> [&Pod; 3] {
        [&self.a, &self.c, &self.plain]
    }

    /// Puts policies into force and waits until the destination's daemon has them.
    #[track_caller]
    fn enforce(&mut self, policies: &str) {
        self.lab.cluster.apply(policies);
        self.lab.publish();
        let names: Vec<String> = policies
            .lines()
            .filter_map(|l| l.trim().strip_prefix("name: ").map(str::to_owned))
            .collect();
        within(RELOAD, "the policies are in force", || {
            let dump = self.lab.daemon(2).dump()["policies"].to_string();
            let missing = names.iter().find(|name| !dump.contains(*name)).cloned();
            missing.map_or(Ok(()), Err)
        });
    }

    /// Under `policies` alone, the callers by tunnel, same node and plain TCP are served or reset
    /// as told, and `adit explain` says the same of each, offline and on the node.
    #[track_caller]
    fn check(&mut self, policies: &str, expect: [bool; 3]) {
        self.count += 1;
        // A name that was never used says that what is seen is this policy and not the last.
        let text = policies.replace("NAME", &format!("case-{}", self.count));
        self.enforce(&text);
        for (caller, served) in self.callers().into_iter().zip(expect) {
            let outcome = caller.call(self.b.at(8080));
            let wanted = if served {
                outcome.served()
            } else {
                outcome == Outcome::Reset
            };
            assert!(wanted, "{} under\n{text}: {outcome:?}", caller.name());
        }
        self.explained(&text, expect);
        for document in text.split("\n---\n") {
            let object: serde_json::Value =
                serde_saphyr::from_str(document).expect("it was read before");
            let part = |path: &str| {
                object
                    .pointer(path)
                    .and_then(|v| v.as_str())
                    .unwrap_or_default()
                    .to_owned()
            };
            self.lab.cluster.remove(
                &part("/kind"),
                &part("/metadata/namespace"),
                &part("/metadata/name"),
            );
        }
    }

    /// `adit explain` agrees with what the sockets saw.
    #[track_caller]
    fn explained(&self, text: &str, expect: [bool; 3]) {
        let source = self.lab.cluster.path().display().to_string();
        let run_dir = self.lab.launch(2).run_dir.display().to_string();
        let to = format!("{}:8080", self.b.id());
        for (caller, served) in self.callers().into_iter().zip(expect) {
            let offline = adit(
                None,
                &[
                    "explain",
                    &caller.id(),
                    &to,
                    "--source",
                    &source,
                    "-o",
                    "json",
                ],
            );
            let on_node = adit(
                None,
                &[
                    "explain",
                    &caller.id(),
                    &to,
                    "--run-dir",
                    &run_dir,
                    "-o",
                    "json",
                ],
            );
            for (place, answer) in [("offline", offline), ("on the node", on_node)] {
                assert_eq!(
                    verdict(&answer.answer),
                    Some(served),
                    "explain {place} of {} under\n{text}:\n{}",
                    caller.name(),
                    answer.output
                );
            }
        }
    }

    /// Opens a connection from each caller.
    fn connections(&self) -> [Conn; 3] {
        self.callers()
            .map(|caller| caller.dial_greeter(self.b.at(8080)))
    }
}

/// What an explanation in JSON comes to.
fn verdict(explanation: &str) -> Option<bool> {
    let told: serde_json::Value = serde_json::from_str(explanation).ok()?;
    told["verdict"]["permitted"].as_bool()
}

/// An AuthorizationPolicy of the namespace `mesh` with this `spec`, indented by two.
fn policy(spec: &str) -> String {
    scoped("mesh", spec)
}

fn scoped(namespace: &str, spec: &str) -> String {
    let spec: String = spec.lines().map(|l| format!("  {l}\n")).collect();
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata:\n  name: NAME\n  namespace: {namespace}\nspec:\n{spec}"
    )
}

fn allow(rule: &str) -> String {
    policy(&format!("action: ALLOW\nrules:\n- {rule}"))
}

fn deny(rule: &str) -> String {
    policy(&format!("action: DENY\nrules:\n- {rule}"))
}

fn peer_authentication(namespace: &str, spec: &str) -> String {
    let spec: String = spec.lines().map(|l| format!("  {l}\n")).collect();
    format!(
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata:\n  name: NAME\n  namespace: {namespace}\nspec:\n{spec}"
    )
}

#[test]
fn empty_policies_mean_what_the_field_means() {
    let mut world = World::new();
    world.check(&policy("action: ALLOW"), [NO, NO, NO]);
    world.check(&policy("{}"), [NO, NO, NO]);
    world.check(&policy("action: ALLOW\nrules: []"), [NO, NO, NO]);
    world.check(&allow("{}"), [YES, YES, YES]);
    world.check(&policy("action: DENY"), [YES, YES, YES]);
    world.check(&deny("{}"), [NO, NO, NO]);
}

#[test]
fn principals_decide() {
    let mut world = World::new();
    world.check(
        &allow("from: [{source: {principals: [cluster.local/ns/mesh/sa/a]}}]"),
        [YES, NO, NO],
    );
    world.check(
        &allow("from: [{source: {principals: ['*']}}]"),
        [YES, YES, NO],
    );
    world.check(
        &allow("from: [{source: {principals: ['cluster.local/ns/mesh/*']}}]"),
        [YES, YES, NO],
    );
    world.check(
        &allow("from: [{source: {principals: ['*/sa/c']}}]"),
        [NO, YES, NO],
    );
    world.check(
        &allow("from: [{source: {principals: [cluster.local/ns/mesh/sa/other]}}]"),
        [NO, NO, NO],
    );
    world.check(
        &allow("from: [{source: {notPrincipals: [cluster.local/ns/mesh/sa/a]}}]"),
        [NO, YES, YES],
    );
    world.check(
        &deny("from: [{source: {principals: [cluster.local/ns/mesh/sa/a]}}]"),
        [NO, YES, YES],
    );
    world.check(
        &deny("from: [{source: {notPrincipals: ['*']}}]"),
        [YES, YES, NO],
    );
}

#[test]
fn namespaces_and_service_accounts_decide() {
    let mut world = World::new();
    world.check(
        &allow("from: [{source: {namespaces: [mesh]}}]"),
        [YES, YES, NO],
    );
    world.check(
        &allow("from: [{source: {namespaces: [plain]}}]"),
        [NO, NO, NO],
    );
    world.check(
        &allow("from: [{source: {notNamespaces: [mesh]}}]"),
        [NO, NO, YES],
    );
    world.check(
        &deny("from: [{source: {namespaces: ['me*']}}]"),
        [NO, NO, YES],
    );
    world.check(
        &allow("from: [{source: {serviceAccounts: [a]}}]"),
        [YES, NO, NO],
    );
    world.check(
        &allow("from: [{source: {serviceAccounts: [mesh/c]}}]"),
        [NO, YES, NO],
    );
    world.check(
        &allow("from: [{source: {serviceAccounts: [plain/a]}}]"),
        [NO, NO, NO],
    );
    world.check(
        &deny("from: [{source: {notServiceAccounts: [a]}}]"),
        [YES, NO, NO],
    );
}

#[test]
fn addresses_and_ports_decide() {
    let mut world = World::new();
    let a = world.a.ip();
    world.check(
        &allow(&format!("from: [{{source: {{ipBlocks: [{a}/32]}}}}]")),
        [YES, NO, NO],
    );
    world.check(
        &allow(&format!("from: [{{source: {{ipBlocks: ['{a}']}}}}]")),
        [YES, NO, NO],
    );
    world.check(
        &allow("from: [{source: {ipBlocks: [10.1.2.0/24]}}]"),
        [NO, YES, YES],
    );
    world.check(
        &allow("from: [{source: {notIpBlocks: [10.1.2.0/24]}}]"),
        [YES, NO, NO],
    );
    world.check(
        &deny("from: [{source: {ipBlocks: [10.1.0.0/16]}}]"),
        [NO, NO, NO],
    );
    world.check(
        &allow("to: [{operation: {ports: ['8080']}}]"),
        [YES, YES, YES],
    );
    world.check(
        &allow("to: [{operation: {ports: ['80', '15008']}}]"),
        [NO, NO, NO],
    );
    world.check(
        &deny("to: [{operation: {notPorts: ['8080']}}]"),
        [YES, YES, YES],
    );
    world.check(&deny("to: [{operation: {ports: ['8080']}}]"), [NO, NO, NO]);
}

#[test]
fn conditions_on_layer_four_decide() {
    let mut world = World::new();
    let (a, b) = (world.a.ip(), world.b.ip());
    world.check(
        &allow("when: [{key: source.principal, values: ['*/sa/a']}]"),
        [YES, NO, NO],
    );
    world.check(
        &allow("when: [{key: source.namespace, notValues: [mesh]}]"),
        [NO, NO, YES],
    );
    world.check(
        &allow(&format!("when: [{{key: source.ip, values: [{a}/32]}}]")),
        [YES, NO, NO],
    );
    world.check(
        &allow(&format!(
            "when: [{{key: destination.ip, values: [{b}/32]}}]"
        )),
        [YES, YES, YES],
    );
    world.check(
        &deny("when: [{key: destination.port, values: ['8080']}]"),
        [NO, NO, NO],
    );
    world.check(
        &deny("when: [{key: destination.port, notValues: ['8080']}]"),
        [YES, YES, YES],
    );
}

#[test]
fn parts_of_a_rule_are_anded_and_rules_are_ored() {
    let mut world = World::new();
    world.check(
        &allow("from: [{source: {namespaces: [mesh]}}]\n  to: [{operation: {ports: ['81']}}]"),
        [NO, NO, NO],
    );
    world.check(
        &allow("from: [{source: {namespaces: [mesh], ipBlocks: [10.1.2.0/24]}}]"),
        [NO, YES, NO],
    );
    world.check(
        &allow("from: [{source: {serviceAccounts: [a]}}, {source: {ipBlocks: [10.1.2.0/24], notNamespaces: [mesh]}}]"),
        [YES, NO, YES],
    );
    world.check(
        &policy("rules:\n- from: [{source: {serviceAccounts: [a]}}]\n- from: [{source: {serviceAccounts: [c]}}]"),
        [YES, YES, NO],
    );
}

#[test]
fn denials_win_over_permissions() {
    let mut world = World::new();
    let both = [
        allow("from: [{source: {namespaces: [mesh]}}]"),
        deny("from: [{source: {serviceAccounts: [a]}}]").replace("NAME", "NAME-deny"),
    ];
    world.check(&both.join("\n---\n"), [NO, YES, NO]);
    let two = [
        allow("from: [{source: {serviceAccounts: [a]}}]"),
        allow("from: [{source: {serviceAccounts: [c]}}]").replace("NAME", "NAME-more"),
    ];
    world.check(&two.join("\n---\n"), [YES, YES, NO]);
}

#[test]
fn a_policy_binds_its_mesh_its_namespace_or_its_workloads() {
    let mut world = World::new();
    let nobody = "action: ALLOW";
    let select = |app: &str| format!("selector:\n  matchLabels:\n    app: {app}\n{nobody}");
    world.check(&scoped("adit-system", nobody), [NO, NO, NO]);
    world.check(&scoped("mesh", nobody), [NO, NO, NO]);
    world.check(&scoped("plain", nobody), [YES, YES, YES]);
    world.check(&scoped("mesh", &select("b")), [NO, NO, NO]);
    world.check(&scoped("mesh", &select("other")), [YES, YES, YES]);
    world.check(&scoped("plain", &select("b")), [YES, YES, YES]);
    world.check(&scoped("adit-system", &select("b")), [NO, NO, NO]);
    world.check(&scoped("istio-system", nobody), [YES, YES, YES]);
}

#[test]
fn the_root_namespace_is_a_setting() {
    let mut world = World::with(&["--root-namespace", "istio-system"]);
    world.enforce(&scoped("istio-system", "action: ALLOW").replace("NAME", "nobody"));
    for caller in world.callers() {
        assert_eq!(caller.call(world.b.at(8080)), Outcome::Reset);
    }
}

#[test]
fn peers_without_identity_are_refused_where_mutual_tls_is_strict() {
    let mut world = World::new();
    let strict = "mtls: {mode: STRICT}";
    let select = "selector:\n  matchLabels:\n    app: b\n";
    world.check(&peer_authentication("mesh", strict), [YES, YES, NO]);
    world.check(&peer_authentication("adit-system", strict), [YES, YES, NO]);
    world.check(&peer_authentication("plain", strict), [YES, YES, YES]);
    world.check(
        &peer_authentication("mesh", &format!("{select}{strict}")),
        [YES, YES, NO],
    );
    world.check(
        &peer_authentication("mesh", &select.replace("app: b", "app: x").clone()),
        [YES, YES, YES],
    );
    world.check(
        &peer_authentication("mesh", "mtls: {mode: PERMISSIVE}"),
        [YES, YES, YES],
    );
    let narrower = [
        peer_authentication("mesh", strict),
        peer_authentication("mesh", &format!("{select}mtls: {{mode: PERMISSIVE}}"))
            .replace("NAME", "NAME-b"),
    ];
    world.check(&narrower.join("\n---\n"), [YES, YES, YES]);
}

#[test]
fn mutual_tls_may_differ_by_port() {
    let mut world = World::new();
    let select = "selector:\n  matchLabels:\n    app: b\n";
    let ports = |rest: &str, port: u16, mode: &str| {
        peer_authentication(
            "mesh",
            &format!("{select}{rest}portLevelMtls:\n  {port}:\n    mode: {mode}"),
        )
    };
    world.check(&ports("", 8080, "STRICT"), [YES, YES, NO]);
    world.check(&ports("", 8081, "STRICT"), [YES, YES, YES]);
    world.check(
        &ports("mtls: {mode: STRICT}\n", 8080, "PERMISSIVE"),
        [YES, YES, YES],
    );
    world.check(
        &ports("mtls: {mode: STRICT}\n", 8081, "PERMISSIVE"),
        [YES, YES, NO],
    );
}

#[test]
fn rules_about_http_are_read_as_layer_four_reads_them() {
    let mut world = World::new();
    // An ALLOW rule with such a field never matches; a DENY rule loses the field.
    world.check(&allow("to: [{operation: {methods: [GET]}}]"), [NO, NO, NO]);
    world.check(
        &policy("rules:\n- to: [{operation: {paths: [/x]}}]\n- from: [{source: {serviceAccounts: [a]}}]"),
        [YES, NO, NO],
    );
    world.check(
        &deny("from: [{source: {serviceAccounts: [a]}}]\n  to: [{operation: {methods: [DELETE]}}]"),
        [NO, YES, YES],
    );
    world.check(
        &deny("to: [{operation: {hosts: [example.com]}}]"),
        [NO, NO, NO],
    );
    world.check(
        &allow("from: [{source: {requestPrincipals: ['*']}}]"),
        [NO, NO, NO],
    );
    world.check(
        &allow("when: [{key: 'request.headers[x]', values: [y]}]"),
        [NO, NO, NO],
    );
}

#[test]
fn a_policy_that_cannot_be_understood_refuses_and_is_reported() {
    let mut world = World::new();
    let broken = [
        policy("action: CUSTOM\nprovider: {name: other}\nrules:\n- {}"),
        policy("action: PERHAPS"),
        allow("from: [{source: {ipBlocks: [10.1.0.0/99]}}]"),
        deny("from: [{source: {ipBlocks: [nonsense]}}]"),
        deny("to: [{operation: {ports: [http]}}]"),
    ];
    for policy in broken {
        world.check(&policy, [NO, NO, NO]);
        let name = format!("case-{}", world.count);
        world.lab.daemon(2).says(&[&name]);
    }
    // It binds only what it was written for.
    let elsewhere = policy("selector:\n  matchLabels:\n    app: x\naction: PERHAPS");
    world.check(&elsewhere, [YES, YES, YES]);
}

#[test]
fn a_dry_run_is_counted_and_told_and_never_enforced() {
    let mut world = World::new();
    let trial = allow("from: [{source: {serviceAccounts: [a]}}]")
        .replace(
            "  namespace: mesh",
            "  namespace: mesh\n  annotations: {istio.io/dry-run: 'true'}",
        )
        .replace("NAME", "trial");
    world.enforce(&trial);
    for caller in world.callers() {
        assert!(caller.call(world.b.at(8080)).served());
    }
    within(Duration::from_secs(3), "the verdicts are counted", || {
        // It speaks of those alone whom it would have decided otherwise: not of a.
        let policy = [("policy", "mesh/trial")];
        let count = world
            .lab
            .daemon(2)
            .metric("adit_policy_dry_run_total", &policy);
        if count == 2.0 { Ok(()) } else { Err(count) }
    });
    world.lab.daemon(2).says(&["mesh/trial", "dry"]);
}

#[test]
fn a_denial_is_recorded_with_the_policy_that_made_it() {
    let mut world = World::new();
    world.enforce(&deny("from: [{source: {serviceAccounts: [a]}}]").replace("NAME", "not-a"));
    world.a.call(world.b.at(8080)).assert_refused();
    let taken = world
        .lab
        .daemon(2)
        .record("the denial at the destination", |r| {
            r.is("direction", "inbound")
        });
    assert_eq!(reason(&taken), "denied", "{taken:?}");
    assert!(taken.is("policy", "mesh/not-a"), "{taken:?}");
    let sent = world.lab.daemon(1).record("the denial at the source", |r| {
        r.is("direction", "outbound")
    });
    assert_eq!(reason(&sent), "denied", "{sent:?}");
    for node in [1, 2] {
        let flag = [
            ("response_flags", "DENY"),
            ("source_workload", "a"),
            ("destination_workload", "b"),
        ];
        let failed = world
            .lab
            .daemon(node)
            .metric("istio_tcp_connections_failed_total", &flag);
        assert!(failed == 1.0, "node {node}: {failed}");
    }
}

#[test]
fn an_explanation_names_the_policy_and_the_rule() {
    let mut world = World::new();
    world.enforce(
        &policy("action: DENY\nrules:\n- from: [{source: {serviceAccounts: [x]}}]\n- from: [{source: {serviceAccounts: [a]}}]")
            .replace("NAME", "no-a"),
    );
    let source = world.lab.cluster.path().display().to_string();
    let answer = adit(
        None,
        &["explain", "mesh/a", "mesh/b:8080", "--source", &source],
    );
    assert!(answer.output.contains("mesh/no-a"), "{}", answer.output);
    assert!(
        answer.output.contains('2') || answer.output.contains("rules[1]"),
        "the rule: {}",
        answer.output
    );
    let unknown = adit(
        None,
        &["explain", "mesh/nobody", "mesh/b:8080", "--source", &source],
    );
    assert!(!unknown.status.success());
    assert!(unknown.output.contains("mesh/nobody"), "{}", unknown.output);
}

#[test]
fn a_change_closes_the_connections_it_denies_within_a_second_and_no_other() {
    let mut world = World::new();
    let [tunnel, same_node, plain] = world.connections();
    let begin = Instant::now();
    world
        .lab
        .cluster
        .apply(&deny("from: [{source: {serviceAccounts: [a]}}]").replace("NAME", "no-a"));
    world.lab.publish();
    assert_eq!(tunnel.ending(), Outcome::Reset);
    assert!(begin.elapsed() < RELOAD, "after {:?}", begin.elapsed());
    for conn in [&same_node, &plain] {
        conn.echoes(b"unharmed").expect("it is still allowed");
    }
    let begin = Instant::now();
    world
        .lab
        .cluster
        .apply(&deny("{}").replace("NAME", "nobody"));
    world.lab.publish();
    for conn in [&same_node, &plain] {
        assert_eq!(conn.ending(), Outcome::Reset);
    }
    assert!(begin.elapsed() < RELOAD, "after {:?}", begin.elapsed());
    let cut = |world: &mut World| {
        let records = world.lab.daemon(2).records();
        records
            .iter()
            .filter(|r| r.is("direction", "inbound") && reason(r) == "policy_changed")
            .count()
    };
    eventually(Duration::from_secs(3), "each cut is recorded", || {
        cut(&mut world) == 3
    });
}

#[test]
fn strict_mutual_tls_cuts_plain_connections_that_are_open() {
    let mut world = World::new();
    let [tunnel, same_node, plain] = world.connections();
    let begin = Instant::now();
    world
        .lab
        .cluster
        .apply(&peer_authentication("mesh", "mtls: {mode: STRICT}").replace("NAME", "strict"));
    world.lab.publish();
    assert_eq!(plain.ending(), Outcome::Reset);
    assert!(begin.elapsed() < RELOAD, "after {:?}", begin.elapsed());
    holds_for(Duration::from_millis(500), "the others live", || {
        tunnel.echoes(b"x").is_ok() && same_node.echoes(b"x").is_ok()
    });
}

#[test]
fn a_policy_taken_back_lets_callers_in_within_a_second() {
    let mut world = World::new();
    world.enforce(&deny("{}").replace("NAME", "nobody"));
    assert_eq!(world.a.call(world.b.at(8080)), Outcome::Reset);
    world
        .lab
        .cluster
        .remove("AuthorizationPolicy", "mesh", "nobody");
    world.lab.publish();
    within(RELOAD, "it is served again", || {
        let outcome = world.a.call(world.b.at(8080));
        if outcome.served() {
            Ok(())
        } else {
            Err(outcome)
        }
    });
}

#[test]
fn a_calls_identity_is_the_one_proven_and_not_that_of_its_address() {
    use crate::support::{Authority, HboneClient, Mint};
    let mut world = World::new();
    world.enforce(&allow("from: [{source: {serviceAccounts: [a]}}]").replace("NAME", "only-a"));
    let authority = Authority::of_directory(&world.lab.ca());
    let to = world.b.at(8080).to_string();
    // From a stranger's address with a's proof, and from a's neighbour with its own.
    for (proof, expect) in [(world.a.identity(), 200), (world.c.identity(), 401)] {
        let credential = authority.issue(&Mint::of(&proof));
        let from = world.lab.node(1).netns();
        let mut tunnel =
            HboneClient::open(from, world.b.at(15008), Some(&credential)).expect("it is taken");
        let (status, _stream) = tunnel.connect(&to).expect("it answers");
        assert_eq!(status, expect, "with the proof of {proof}");
    }
}
