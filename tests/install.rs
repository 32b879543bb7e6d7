//! What `kubectl apply -k daemonset/` installs, held against the program: what can break without a word,
//! because a manifest and the program name the same thing and nobody compares them.
//!
//! That a cluster takes it and runs it is `scripts/e2e`'s.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

const NAMESPACE: &str = "adit-system";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn text(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The documents of a file.
fn documents(path: impl AsRef<Path>) -> Vec<Value> {
    let text = text(&path);
    let parts = text.split("\n---\n").map(|part| {
        serde_saphyr::from_str(part).unwrap_or_else(|e| panic!("{}: {e}", path.as_ref().display()))
    });
    parts.collect()
}

fn strings(value: &Value) -> Vec<String> {
    let items = value.as_array().into_iter().flatten();
    items
        .map(|item| item.as_str().expect("it is a string").to_owned())
        .collect()
}

/// Everything that a directory with a kustomization installs, before its patches.
fn built(directory: &str) -> Vec<Value> {
    let [kustomization] = &documents(format!("{directory}/kustomization.yaml"))[..] else {
        panic!("{directory}: one kustomization");
    };
    let resources = strings(&kustomization["resources"]);
    let all = resources.iter().flat_map(|name| {
        let path = format!("{directory}/{name}");
        match root().join(&path).is_dir() {
            true => built(&path),
            false => documents(&path),
        }
    });
    all.collect()
}

fn installed() -> Vec<Value> {
    built("daemonset")
}

#[track_caller]
fn one<'a>(all: &'a [Value], kind: &str, name: &str) -> &'a Value {
    let mut fits = all
        .iter()
        .filter(|o| o["kind"] == kind && o["metadata"]["name"] == name);
    let found = fits.next().unwrap_or_else(|| panic!("no {kind} {name}"));
    assert!(fits.next().is_none(), "two of {kind} {name}");
    found
}

fn container(workload: &Value) -> &Value {
    let containers = &workload["spec"]["template"]["spec"]["containers"];
    assert_eq!(containers.as_array().map(Vec::len), Some(1));
    &containers[0]
}

fn adit(arguments: &[String]) -> (Option<i32>, String) {
    let said = Command::new(env!("CARGO_BIN_EXE_adit"))
        .env_clear()
        .args(arguments)
        .output()
        .expect("adit runs");
    let words = [said.stdout, said.stderr].concat();
    (
        said.status.code(),
        String::from_utf8_lossy(&words).into_owned(),
    )
}

/// What the help of a subcommand says is the default of a flag.
#[track_caller]
fn default(subcommand: &str, flag: &str) -> String {
    let (_, help) = adit(&[subcommand.to_owned(), "--help".to_owned()]);
    let (_, about) = help
        .split_once(&format!("{flag} <"))
        .unwrap_or_else(|| panic!("no {flag} in the help of {subcommand}"));
    let about = about.split("\n      --").next().unwrap_or_default();
    let (_, default) = about.rsplit_once("[default: ").expect("it has a default");
    let end = default.rfind(']').expect("brackets are closed");
    default[..end]
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
}

#[test]
fn every_file_is_installed_and_every_overlay_stands_on_the_base() {
    for directory in [
        "base",
        "crds",
        "components/podmonitor",
        "overlays/gke",
        "overlays/openshift",
    ] {
        let [kustomization] = &documents(format!("daemonset/{directory}/kustomization.yaml"))[..]
        else {
            panic!("one kustomization");
        };
        let listed: BTreeSet<_> = strings(&kustomization["resources"])
            .into_iter()
            .filter(|name| name.ends_with(".yaml"))
            .collect();
        let entries = fs::read_dir(root().join("daemonset").join(directory)).expect("it is there");
        let names = entries
            .flatten()
            .map(|e| e.file_name().into_string().expect("a name"));
        let there: BTreeSet<_> = names.filter(|name| name != "kustomization.yaml").collect();
        assert_eq!(listed, there, "{directory}");
    }
    let all = installed();
    let node = one(&all, "DaemonSet", "adit-node");
    let volumes = node["spec"]["template"]["spec"]["volumes"].as_array();
    let named = |name: &Value| volumes.is_some_and(|all| all.iter().any(|v| v["name"] == *name));
    for overlay in fs::read_dir(root().join("daemonset/overlays")).expect("overlays") {
        let directory = overlay.expect("an entry").path();
        let shown = directory.display().to_string();
        let [overlay] = &documents(directory.join("kustomization.yaml"))[..] else {
            panic!("{shown}: one kustomization");
        };
        assert!(
            strings(&overlay["resources"]).contains(&"../../base".to_owned()),
            "{shown}"
        );
        for patch in overlay["patches"].as_array().into_iter().flatten() {
            let patch = patch["patch"].as_str().expect("a patch is text");
            let patch: Value = serde_saphyr::from_str(patch).expect("it is YAML");
            assert_eq!(patch["kind"], "DaemonSet", "{shown}");
            assert_eq!(
                patch["metadata"],
                serde_json::json!({ "name": "adit-node", "namespace": NAMESPACE })
            );
            for volume in patch["spec"]["template"]["spec"]["volumes"]
                .as_array()
                .into_iter()
                .flatten()
            {
                assert!(named(&volume["name"]), "{shown}: {volume}");
            }
        }
    }
}

#[test]
fn the_program_takes_the_flags_it_is_given() {
    let all = installed();
    let given = |kind, name, more: &[&str]| {
        let mut arguments = strings(&container(one(&all, kind, name))["args"]);
        arguments.extend(more.iter().map(|&word| word.to_owned()));
        adit(&arguments)
    };
    // All is well, but for what is added; the name of the node comes from the environment.
    let wrong = ["--node=n", "--kubeconfig=/nowhere"];
    let (status, said) = given("DaemonSet", "adit-node", &wrong);
    assert_eq!(status, Some(2), "{said}");
    assert!(said.contains("cannot read kubeconfig"), "{said}");
    let (status, said) = given("Deployment", "adit-control", &["--max-validity=1s"]);
    assert_eq!(status, Some(2), "{said}");
    assert!(said.contains("--max-validity"), "{said}");
    for (kind, name, variable) in [
        ("DaemonSet", "adit-node", "NODE_NAME"),
        ("DaemonSet", "adit-node", "POD_NAMESPACE"),
        ("Deployment", "adit-control", "POD_NAMESPACE"),
    ] {
        let environment = container(one(&all, kind, name))["env"].as_array();
        let sets = |v: &Value| v["name"] == variable && v["valueFrom"]["fieldRef"].is_object();
        assert!(
            environment.is_some_and(|all| all.iter().any(sets)),
            "{name} {variable}"
        );
    }
}

/// A flag's value in the arguments of a container.
#[track_caller]
fn flag(container: &Value, name: &str) -> String {
    let arguments = strings(&container["args"]);
    let mut values = arguments
        .iter()
        .filter_map(|a| a.strip_prefix(&format!("{name}=")));
    values
        .next()
        .unwrap_or_else(|| panic!("no {name}"))
        .to_owned()
}

#[test]
fn ports_are_those_that_the_program_listens_on() {
    let all = installed();
    let port = |address: String| -> u64 {
        let (_, port) = address.rsplit_once(':').expect("it has a port");
        port.parse().expect("a number")
    };
    let check = |kind, name, subcommand, flags: &[(&str, &str)]| {
        let container = container(one(&all, kind, name));
        for (wanted, flag) in flags {
            let mut ports = container["ports"].as_array().into_iter().flatten();
            let declared = ports
                .find(|p| p["name"] == *wanted)
                .expect("it is declared");
            assert_eq!(
                declared["containerPort"],
                port(default(subcommand, flag)),
                "{name} {wanted}"
            );
            assert!(
                declared["hostPort"].is_null(),
                "a surge needs the port twice"
            );
        }
        for (probe, path) in [
            ("readinessProbe", "/healthz/ready"),
            ("livenessProbe", "/healthz/live"),
        ] {
            assert_eq!(container[probe]["httpGet"]["path"], path);
            assert_eq!(container[probe]["httpGet"]["port"], "ready");
        }
    };
    let common = [("metrics", "--metrics"), ("ready", "--ready")];
    check("DaemonSet", "adit-node", "node", &common);
    let control = [common[0], common[1], ("ca", "--listen")];
    check("Deployment", "adit-control", "control", &control);
    let service = one(&all, "Service", "adit-control");
    let own = &service["spec"]["ports"][0];
    assert_eq!(
        (&own["port"], &own["targetPort"]),
        (&15012.into(), &"ca".into())
    );
    let ca = flag(container(one(&all, "DaemonSet", "adit-node")), "--ca");
    assert_eq!(
        ca,
        format!("https://adit-control.{NAMESPACE}.svc:{}", own["port"])
    );
    assert_eq!(default("control", "--service"), "adit-control");
    let monitored = built("daemonset/components/podmonitor");
    let monitor = one(&monitored, "PodMonitor", "adit");
    assert_eq!(monitor["spec"]["podMetricsEndpoints"][0]["port"], "metrics");
}

#[test]
fn paths_and_names_are_those_that_the_program_expects() {
    let all = installed();
    let node = one(&all, "DaemonSet", "adit-node");
    let pod = &node["spec"]["template"]["spec"];
    let of = |list: &Value, name: &str| {
        let mut items = list.as_array().into_iter().flatten();
        let found = items.find(|item| item["name"] == name);
        found
            .unwrap_or_else(|| panic!("no {name} in {list}"))
            .clone()
    };
    let mounted = |name: &str| {
        let mount = of(&container(node)["volumeMounts"], name);
        mount["mountPath"].as_str().expect("a path").to_owned()
    };
    let volume = |name: &str| of(&pod["volumes"], name);
    let token = &volume("ca-token")["projected"]["sources"][0]["serviceAccountToken"];
    let path = format!(
        "{}/{}",
        mounted("ca-token"),
        token["path"].as_str().expect("a path")
    );
    assert_eq!(path, default("node", "--ca-token"));
    assert_eq!(token["audience"], *default("control", "--audience"));
    assert_eq!(
        volume("ca-root")["configMap"]["name"],
        *default("control", "--ca-config-map")
    );
    let bundle = text("src/control/store.rs");
    assert!(bundle.contains(r#"BUNDLE: &str = "root-cert.pem""#));
    assert_eq!(
        mounted("ca-root") + "/root-cert.pem",
        default("node", "--ca-root")
    );
    // The plugin on the node and the daemon in its container name the socket by one path.
    let run = volume("run");
    assert_eq!(run["hostPath"]["path"], *mounted("run"));
    assert_eq!(mounted("run"), default("node", "--run-dir"));
    assert_eq!(mounted("cni-bin"), flag(container(node), "--cni-bin-dir"));
    assert_eq!(mounted("cni-conf"), flag(container(node), "--cni-conf-dir"));
    // Whom the authority takes for a node: `adit-node` in its own namespace.
    assert!(text("src/config/control.rs").contains("{namespace}/adit-node"));
    assert_eq!(pod["serviceAccountName"], "adit-node");
    assert_eq!(default("node", "--root-namespace"), NAMESPACE);
    for object in &all {
        let scoped = ["Namespace", "ClusterRole", "ClusterRoleBinding"];
        let kind = object["kind"].as_str().expect("a kind");
        if scoped.contains(&kind) || kind.starts_with("Validating") {
            assert!(object["metadata"]["namespace"].is_null(), "{kind}");
        } else {
            assert_eq!(object["metadata"]["namespace"], NAMESPACE, "{kind}");
        }
    }
    let [base] = &documents("daemonset/base/kustomization.yaml")[..] else {
        panic!("one kustomization");
    };
    assert_eq!(base["images"][0]["newTag"], env!("CARGO_PKG_VERSION"));
}

#[test]
fn pods_are_found_by_those_who_select_them() {
    let all = installed();
    let labels =
        |kind, name| one(&all, kind, name)["spec"]["template"]["metadata"]["labels"].clone();
    for (component, labels) in [
        ("node", labels("DaemonSet", "adit-node")),
        ("control", labels("Deployment", "adit-control")),
    ] {
        assert_eq!(
            labels["adit.mesh/mode"], "none",
            "it is not of its own mesh"
        );
        let fits = |selector: &Value| {
            let wanted = selector.as_object().into_iter().flatten();
            assert!(wanted.clone().count() > 0);
            wanted.clone().all(|(key, value)| labels[key] == *value)
        };
        let name = &*format!("adit-{component}");
        for object in all.iter().filter(|o| o["metadata"]["name"] == name) {
            let spec = &object["spec"];
            let selector = match object["kind"].as_str() {
                Some("DaemonSet" | "Deployment" | "PodDisruptionBudget") => {
                    &spec["selector"]["matchLabels"]
                }
                Some("NetworkPolicy") => &spec["podSelector"]["matchLabels"],
                Some("Service") => &spec["selector"],
                _ => continue,
            };
            assert!(fits(selector), "{object}");
        }
    }
}

#[test]
fn the_daemon_has_no_right_without_a_reason() {
    let all = installed();
    for (kind, name, added) in [
        (
            "DaemonSet",
            "adit-node",
            &["NET_ADMIN", "SYS_ADMIN", "SYS_PTRACE"][..],
        ),
        ("Deployment", "adit-control", &[]),
    ] {
        let context = &container(one(&all, kind, name))["securityContext"];
        assert_eq!(strings(&context["capabilities"]["drop"]), ["ALL"], "{name}");
        assert_eq!(strings(&context["capabilities"]["add"]), added, "{name}");
        assert_eq!(context["readOnlyRootFilesystem"], true, "{name}");
        assert_eq!(context["allowPrivilegeEscalation"], false, "{name}");
    }
    let manifest = text("daemonset/base/node.yaml");
    let lines: Vec<_> = manifest.lines().map(str::trim).collect();
    for pair in lines.windows(2) {
        if pair[1].starts_with("- NET_") || pair[1].starts_with("- SYS_") {
            assert!(pair[0].starts_with("# "), "{} needs a reason", pair[1]);
        }
    }
    let control = one(&all, "Deployment", "adit-control");
    assert_eq!(
        control["spec"]["template"]["spec"]["securityContext"]["runAsNonRoot"],
        true
    );
    assert_eq!(control["spec"]["replicas"], 2);
}

#[test]
fn a_daemon_is_replaced_by_one_that_is_ready_and_gets_its_time_to_drain() {
    let all = installed();
    let node = one(&all, "DaemonSet", "adit-node");
    let rolling = &node["spec"]["updateStrategy"]["rollingUpdate"];
    assert_eq!(
        (&rolling["maxSurge"], &rolling["maxUnavailable"]),
        (&1.into(), &0.into())
    );
    let pod = &node["spec"]["template"]["spec"];
    // Two on one node need a network each.
    assert!(pod["hostNetwork"].is_null());
    assert_eq!(pod["hostPID"], true);
    assert_eq!(pod["priorityClassName"], "system-node-critical");
    assert_eq!(
        pod["tolerations"],
        serde_json::json!([{ "operator": "Exists" }])
    );
    let drain = flag(container(node), "--drain");
    let drain: u64 = drain
        .strip_suffix('s')
        .and_then(|s| s.parse().ok())
        .expect("seconds");
    let grace = pod["terminationGracePeriodSeconds"]
        .as_u64()
        .expect("a number");
    assert!(grace > drain + 10, "{grace} {drain}");
}

/// `group/resource[/subresource][:name] verb`, one by one.
fn granted(roles: &[&Value]) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    for rule in roles
        .iter()
        .flat_map(|role| role["rules"].as_array().expect("rules"))
    {
        let names = match strings(&rule["resourceNames"]) {
            names if names.is_empty() => vec![String::new()],
            names => names.iter().map(|name| format!(":{name}")).collect(),
        };
        for group in strings(&rule["apiGroups"]) {
            for resource in strings(&rule["resources"]) {
                for (name, verb) in names.iter().flat_map(|n| {
                    strings(&rule["verbs"])
                        .into_iter()
                        .map(move |verb| (n, verb))
                }) {
                    all.insert(format!("{group}/{resource}{name} {verb}"));
                }
            }
        }
    }
    all
}

/// Where the program asks the API server, and the right that it takes. A call that is not here fails the
/// test below.
const ASKS: [(&str, &str, &[&str]); 14] = [
    ("src/node/plugin/keep.rs", "Node", &["/nodes get"]),
    ("src/node/mark.rs", "Pod", &["/pods/status patch"]),
    ("src/node/mark.rs", "Event", &["/events create"]),
    (
        "src/control/pods.rs",
        "Slim",
        &["/pods list", "/pods watch"],
    ),
    (
        "src/control/service.rs",
        "TokenReview",
        &["authentication.k8s.io/tokenreviews create"],
    ),
    (
        "src/control/keeper.rs",
        "Secret",
        &[
            "/secrets:adit-ca get",
            "/secrets:adit-ca update",
            "/secrets create",
        ],
    ),
    (
        "src/control/keeper.rs",
        "ConfigMap",
        &[
            "/configmaps:adit-ca-root get",
            "/configmaps:adit-ca-root update",
            "/configmaps create",
        ],
    ),
    (
        "src/control/ca.rs",
        "Secret",
        &["/secrets:adit-ca get", "/secrets:adit-ca update"],
    ),
    (
        "src/control/ca.rs",
        "ConfigMap",
        &["/configmaps:adit-ca-root get"],
    ),
    // The watch asks by path.
    ("src/source/kube/kinds.rs", "/api/v1/", &[]),
    (
        "src/source/kube/kinds.rs",
        "/apis/discovery.k8s.io/v1/",
        &[],
    ),
    (
        "src/source/kube/kinds.rs",
        "/apis/security.istio.io/v1/",
        &[],
    ),
    (
        "src/source/kube/kinds.rs",
        "/apis/security.istio.io/v1beta1/",
        &[],
    ),
    (
        "src/source/kube/watch.rs",
        "/apis/apiextensions.k8s.io/v1/",
        &[],
    ),
];

#[test]
fn roles_grant_what_the_program_asks_for_and_no_more() {
    let sources = sources(&root().join("src"));
    let mut asked = BTreeSet::new();
    for (path, code) in &sources {
        for (_, rest) in code
            .match_indices("Api::<")
            .map(|(at, m)| code.split_at(at + m.len()))
        {
            let kind = rest.split('>').next().unwrap_or_default();
            asked.insert((path.clone(), kind.to_owned()));
        }
    }
    let listed = ASKS.iter().filter(|(_, kind, _)| !kind.starts_with('/'));
    let listed: BTreeSet<_> = listed
        .map(|(p, kind, _)| ((*p).to_owned(), (*kind).to_owned()))
        .collect();
    // What a person's commands ask for is the person's to have.
    let daemons = [
        "src/node/",
        "src/control/",
        "src/source/",
        "src/cluster/",
        "src/cni/",
    ];
    asked.retain(|(path, _)| daemons.iter().any(|part| path.starts_with(part)));
    assert_eq!(asked, listed, "name new calls in ASKS");
    let right = |part: &str| {
        let rights = ASKS.iter().filter(|(path, ..)| path.starts_with(part));
        rights
            .flat_map(|(_, _, rights)| *rights)
            .map(|&right| right.to_owned())
            .collect::<BTreeSet<_>>()
    };
    let all = installed();
    let control = [
        one(&all, "ClusterRole", "adit-control"),
        one(&all, "Role", "adit-control"),
    ];
    assert_eq!(granted(&control), right("src/control/"));
    let mut node = right("src/node/");
    for path in watched() {
        let mut parts = path
            .trim_start_matches("/apis/")
            .trim_start_matches("/api/v1/")
            .split('/');
        let all: Vec<_> = parts.by_ref().collect();
        let (group, resource) = match all[..] {
            [resource] => ("", resource),
            [group, _, resource] => (group, resource),
            _ => panic!("{path}"),
        };
        for verb in ["list", "watch"] {
            node.insert(format!("{group}/{resource} {verb}"));
        }
    }
    for definition in definitions() {
        node.insert(format!(
            "apiextensions.k8s.io/customresourcedefinitions:{definition} get"
        ));
    }
    assert_eq!(granted(&[one(&all, "ClusterRole", "adit-node")]), node);
    for (kind, name, account) in [
        ("ClusterRoleBinding", "adit-node", "adit-node"),
        ("ClusterRoleBinding", "adit-control", "adit-control"),
        ("RoleBinding", "adit-control", "adit-control"),
    ] {
        let binding = one(&all, kind, name);
        assert_eq!(binding["roleRef"]["name"], name);
        assert_eq!(
            format!(
                "{}Binding",
                binding["roleRef"]["kind"].as_str().expect("a kind")
            ),
            kind
        );
        let subject = serde_json::json!([{ "kind": "ServiceAccount", "name": account, "namespace": NAMESPACE }]);
        assert_eq!(binding["subjects"], subject);
        one(&all, "ServiceAccount", account);
    }
}

/// All files of the program, without their tests.
fn sources(directory: &Path) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut left = vec![directory.to_owned()];
    while let Some(path) = left.pop() {
        if path.is_dir() {
            let entries = fs::read_dir(&path).expect("it is there");
            left.extend(entries.map(|entry| entry.expect("an entry").path()));
        } else {
            let name = path
                .strip_prefix(root())
                .map(PathBuf::from)
                .expect("it is in the tree");
            found.push((name.display().to_string(), text(&name)));
        }
    }
    found
}

/// The texts in quotes of the file in which the watched kinds are listed.
fn quoted() -> Vec<String> {
    let code = text("src/source/kube/kinds.rs");
    code.split('"')
        .skip(1)
        .step_by(2)
        .map(str::to_owned)
        .collect()
}

fn watched() -> Vec<String> {
    let paths: Vec<_> = quoted()
        .into_iter()
        .filter(|text| text.starts_with("/api"))
        .collect();
    assert_eq!(paths.len(), 9, "{paths:?}");
    paths
}

fn definitions() -> Vec<String> {
    let all = quoted().into_iter();
    let all: Vec<_> = all
        .filter(|text| text.ends_with(".security.istio.io"))
        .collect();
    assert_eq!(all.len(), 2, "{all:?}");
    all
}

#[test]
fn definitions_are_those_that_are_watched_and_lose_no_field() {
    let crds = built("daemonset/crds");
    assert_eq!(crds.len(), 2);
    for name in definitions() {
        let spec = &one(&crds, "CustomResourceDefinition", &name)["spec"];
        let plural = spec["names"]["plural"].as_str().expect("a name");
        assert_eq!(
            format!("{plural}.{}", spec["group"].as_str().expect("a group")),
            name
        );
        let [version] = &spec["versions"].as_array().expect("versions")[..] else {
            panic!("one version");
        };
        let path = format!(
            "/apis/security.istio.io/{}/{plural}",
            version["name"].as_str().expect("a name")
        );
        assert!(watched().contains(&path), "{path}");
        let schema = &version["schema"]["openAPIV3Schema"]["properties"]["spec"];
        keeps_everything(schema, &name);
    }
    // What may stand in a rule is what is read there.
    let policy = one(
        &crds,
        "CustomResourceDefinition",
        "authorizationpolicies.security.istio.io",
    );
    let rule = &policy["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
        ["rules"]["items"]["properties"];
    let code = text("src/mesh/policy/authorization.rs");
    let (_, served) = code.split_once("const SERVED").expect("it is there");
    let served = served.split("];").next().unwrap_or_default();
    let served: BTreeSet<_> = served.split('"').skip(1).step_by(2).collect();
    let source = rule["from"]["items"]["properties"]["source"]["properties"].as_object();
    assert_eq!(
        source
            .expect("a schema")
            .keys()
            .map(|k| &**k)
            .collect::<BTreeSet<_>>(),
        served
    );
    let operation = rule["to"]["items"]["properties"]["operation"]["properties"].as_object();
    assert_eq!(
        operation.expect("a schema").keys().collect::<Vec<_>>(),
        ["notPorts", "ports"]
    );
}

/// A field that the API server dropped would make a policy weaker than it was written.
fn keeps_everything(schema: &Value, path: &str) {
    if let Some(fields) = schema["properties"].as_object() {
        assert_eq!(
            schema["x-kubernetes-preserve-unknown-fields"], true,
            "{path}"
        );
        for (name, field) in fields {
            keeps_everything(field, &format!("{path}.{name}"));
        }
    }
    for inner in ["items", "additionalProperties"] {
        if schema[inner].is_object() {
            keeps_everything(&schema[inner], &format!("{path}.{inner}"));
        }
    }
}

#[test]
fn admission_knows_the_daemon_and_its_mark() {
    let all = installed();
    let policies: Vec<_> = all
        .iter()
        .filter(|o| o["kind"] == "ValidatingAdmissionPolicy")
        .collect();
    assert_eq!(policies.len(), 2);
    for policy in policies {
        let name = policy["metadata"]["name"].as_str().expect("a name");
        let binding = one(&all, "ValidatingAdmissionPolicyBinding", name);
        assert_eq!(binding["spec"]["policyName"], name);
        assert_eq!(policy["spec"]["failurePolicy"], "Fail");
        let account = format!("system:serviceaccount:{NAMESPACE}:adit-node");
        let condition = policy["spec"]["matchConditions"][0]["expression"].as_str();
        assert_eq!(
            condition,
            Some(&*format!("request.userInfo.username == \"{account}\""))
        );
    }
    let policy = one(&all, "ValidatingAdmissionPolicy", "adit-node-pods").to_string();
    let code = text("src/node/mark.rs");
    let (_, mark) = code.split_once("MARK: &str = \"").expect("it is there");
    let mark = mark.split('"').next().unwrap_or_default();
    assert!(policy.contains(mark), "{mark}");
    let claim = "authentication.kubernetes.io/node-name";
    assert!(policy.contains(claim) && text("src/control/rules.rs").contains(claim));
}
