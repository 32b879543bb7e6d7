//! What a DaemonSet lets its daemons be told, by arguments and variables.

use crate::check::facts::{Controller, Mesh};
use crate::identify::{DEFAULT_LABEL, Settings};
use crate::mesh::TrustDomain;

/// The settings of the daemons of this DaemonSet, with the daemon's defaults where it says nothing.
pub(crate) fn of(daemon: &Controller) -> Mesh {
    let one = |flag| values(daemon, flag).pop();
    let domain = one("trust-domain").and_then(|text| TrustDomain::parse(&text).ok());
    let default = || TrustDomain::parse("cluster.local").expect("it is one");
    let mut settings = Settings::new(domain.unwrap_or_else(default));
    settings.cluster_domain = one("cluster-domain").unwrap_or(settings.cluster_domain);
    for label in values(daemon, "enrol-label") {
        if let Some((key, value)) = label.split_once('=') {
            let label = (key.to_owned(), value.to_owned());
            if !settings.enrol_labels.contains(&label) {
                settings.enrol_labels.push(label);
            }
        }
    }
    settings.sandboxed_runtimes = values(daemon, "sandboxed-runtime");
    let excluded = values(daemon, "exclude-namespace");
    if !excluded.is_empty() {
        settings.excluded_namespaces = excluded;
    }
    Mesh {
        settings,
        root_namespace: one("root-namespace").unwrap_or_else(|| "adit-system".to_owned()),
    }
}

/// The values that a flag or its twin in the environment gets; the flag stands before its twin.
pub(crate) fn values(of: &Controller, flag: &str) -> Vec<String> {
    let name = format!("--{flag}");
    let given = of.arguments.iter().enumerate();
    let given: Vec<&str> = given
        .filter_map(|(at, word)| match word.strip_prefix(&name)? {
            "" => of.arguments.get(at + 1).map(String::as_str),
            rest => rest.strip_prefix('='),
        })
        .collect();
    let twin = format!("ADIT_{}", flag.replace('-', "_").to_uppercase());
    let twin = of.variables.get(&twin).map(String::as_str);
    let all = match given.is_empty() {
        true => twin.into_iter().collect(),
        false => given,
    };
    let words = all.into_iter().flat_map(|text| text.split(','));
    // A reference to another variable is not followed.
    let known = words.filter(|word| !word.is_empty() && !word.contains("$("));
    known.map(str::to_owned).collect()
}

/// Each setting in which the two differ, as flag with what the daemons have.
pub(crate) fn differences(daemons: &Mesh, told: &Mesh) -> Vec<String> {
    let labels = |mesh: &Mesh| {
        let (key, value) = DEFAULT_LABEL;
        let all = mesh.settings.enrol_labels.iter();
        let mut all: Vec<_> = all.map(|(k, v)| format!("{k}={v}")).collect();
        all.retain(|one| *one != format!("{key}={value}"));
        all.sort();
        all.join(",")
    };
    let excluded = |mesh: &Mesh| {
        let mut all = mesh.settings.excluded_namespaces.clone();
        all.sort();
        all.join(",")
    };
    let domain = |mesh: &Mesh| mesh.settings.trust_domain.to_string();
    let pairs = [
        ("--trust-domain", domain(daemons), domain(told)),
        (
            "--cluster-domain",
            daemons.settings.cluster_domain.clone(),
            told.settings.cluster_domain.clone(),
        ),
        (
            "--root-namespace",
            daemons.root_namespace.clone(),
            told.root_namespace.clone(),
        ),
        ("--enrol-label", labels(daemons), labels(told)),
        ("--exclude-namespace", excluded(daemons), excluded(told)),
    ];
    let differ = pairs
        .into_iter()
        .filter(|(_, daemons, told)| daemons != told);
    differ
        .map(|(flag, daemons, told)| format!("{flag}: daemons {daemons:?}, this check {told:?}"))
        .collect()
}
