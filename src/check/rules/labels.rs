//! Labels that do not do what their author thinks.

use crate::check::facts::Namespace;
use crate::check::finding::{Check, Finding, State, count};
use crate::check::rules::view::View;
use crate::identify::DEFAULT_LABEL;

pub(super) const GROUP: &str = "labels";

const VALUES: Check = Check {
    group: GROUP,
    name: "labels of namespaces have values that mean something",
    hint: "write adit.mesh/mode=ambient to enrol a namespace; any other value leaves its pods out of the \
           mesh",
    link: "README.md#use-it",
};
const POD_VALUES: Check = Check {
    group: GROUP,
    name: "labels of pods have values that mean something",
    hint: "write ambient to enrol a pod, none to leave it out; any other value does neither",
    link: "README.md#use-it",
};
const UNKNOWN: Check = Check {
    group: GROUP,
    name: "labels are known",
    hint: "the one label is adit.mesh/mode",
    link: "README.md#use-it",
};
const EXCLUDED: Check = Check {
    group: GROUP,
    name: "excluded namespaces are not labelled",
    hint: "take the label away, or the namespace out of --exclude-namespace: its pods are never enrolled",
    link: "README.md#use-it",
};
const BOTH: Check = Check {
    group: GROUP,
    name: "namespaces are of one mesh",
    hint: "take one of the labels away: two meshes in one pod want the same ports, and the second one to \
           come fails",
    link: "README.md#ports-and-privileges",
};
const INJECTED: Check = Check {
    group: GROUP,
    name: "enrolled namespaces get no sidecars",
    hint: "take istio-injection, istio.io/rev or linkerd.io/inject away, and restart the pods that have a \
           sidecar: they are left out of the mesh",
    link: "README.md#use-it",
};
const NOT_SERVED: Check = Check {
    group: GROUP,
    name: "the field's label is served where it is used",
    hint: "let daemons be started with --enrol-label istio.io/dataplane-mode=ambient, or label the \
           namespace adit.mesh/mode=ambient",
    link: "README.md#use-it",
};

/// The label of Istio's mesh without sidecars.
const FIELD: &str = "istio.io/dataplane-mode";

pub(crate) fn check(view: &View<'_>) -> Vec<Finding> {
    let namespaces = match &view.cluster.namespaces {
        Ok(namespaces) => namespaces,
        Err(why) => return vec![VALUES.skip(why)],
    };
    let mut findings = vec![
        values(view, namespaces),
        pod_values(view),
        unknown(namespaces),
        excluded(view, namespaces),
        both(view, namespaces),
        injected(view, namespaces),
    ];
    findings.extend(not_served(view, namespaces));
    findings
}

/// The values that the label `key` may have.
fn meaningful(view: &View<'_>, key: &str, value: &str) -> bool {
    let mut labels = view.mesh.settings.enrol_labels.iter();
    value == "none" || labels.any(|(k, v)| k == key && v == value)
}

/// Labels by whose keys namespaces and pods are enrolled, with a value that does not.
fn odd<'v>(
    view: &'v View<'_>,
    labels: &'v crate::mesh::Labels,
) -> impl Iterator<Item = String> + 'v {
    let keys = view.mesh.settings.enrol_labels.iter().map(|(key, _)| key);
    // Istio's own mesh may give its label values of its own.
    let keys = keys.filter(|key| *key != FIELD);
    let pairs = keys.filter_map(move |key| Some((key, labels.get(key)?)));
    pairs
        .filter(|(key, value)| !meaningful(view, key, value))
        .map(|(key, value)| format!("{key}={value}"))
}

fn values(view: &View<'_>, namespaces: &[Namespace]) -> Finding {
    let items = namespaces.iter().flat_map(|namespace| {
        odd(view, &namespace.labels).map(move |label| format!("{}: {label}", namespace.name))
    });
    let enrolled = namespaces.iter().filter(|one| view.enrols(one)).count();
    VALUES.none(
        State::Fail,
        items.collect(),
        format!("{} enrolled", count(enrolled, "namespace")),
        |many| {
            format!(
                "{} with a value that enrols nothing",
                count(many, "namespace")
            )
        },
    )
}

fn pod_values(view: &View<'_>) -> Finding {
    let pods = match &view.pods {
        Ok(pods) => pods,
        Err(why) => return POD_VALUES.skip(why),
    };
    let items = pods.iter().flat_map(|(pod, _)| {
        odd(view, &pod.labels).map(move |label| format!("{}: {label}", pod.full()))
    });
    POD_VALUES.none(State::Warn, items.collect(), "they do", |many| {
        format!("{} with a value that means nothing", count(many, "pod"))
    })
}

fn unknown(namespaces: &[Namespace]) -> Finding {
    let (known, _) = DEFAULT_LABEL;
    let items = namespaces.iter().flat_map(|namespace| {
        let labels = namespace.labels.pairs().iter();
        let ours = labels.filter(|(key, _)| key.starts_with("adit.mesh/") && **key != *known);
        ours.map(|(key, value)| format!("{}: {key}={value}", namespace.name))
    });
    UNKNOWN.none(State::Warn, items.collect(), "they are", |many| {
        format!("{} on namespaces that nobody reads", count(many, "label"))
    })
}

fn excluded(view: &View<'_>, namespaces: &[Namespace]) -> Finding {
    let labelled = namespaces.iter().filter(|one| view.labelled(&one.labels));
    let items = labelled
        .filter(|one| !view.enrols(one))
        .map(|one| one.name.clone());
    EXCLUDED.none(State::Fail, items.collect(), "none is", |many| {
        format!(
            "{} labelled, and excluded all the same",
            count(many, "namespace")
        )
    })
}

fn both(view: &View<'_>, namespaces: &[Namespace]) -> Finding {
    let mut served = view.mesh.settings.enrol_labels.iter();
    if served.any(|(key, _)| key == FIELD) {
        return BOTH.pass(format!("{FIELD} is taken for ours"));
    }
    let theirs = |one: &&Namespace| {
        one.labels
            .get(FIELD)
            .is_some_and(|value| **value != *"none")
    };
    let items = namespaces
        .iter()
        .filter(|one| view.enrols(one))
        .filter(theirs);
    BOTH.none(
        State::Fail,
        items.map(|one| one.name.clone()).collect(),
        "they are",
        |many| format!("{} with Istio's label and ours", count(many, "namespace")),
    )
}

fn injected(view: &View<'_>, namespaces: &[Namespace]) -> Finding {
    let injects = |one: &Namespace| {
        let label = |key: &str| one.labels.get(key).map(|value| &**value);
        match label("istio-injection") {
            Some("enabled") => Some("istio-injection=enabled".to_owned()),
            Some("disabled") => None,
            _ => label("istio.io/rev").map(|rev| format!("istio.io/rev={rev}")),
        }
        .or_else(|| one.linkerd.then(|| "linkerd.io/inject".to_owned()))
    };
    let enrolled = namespaces.iter().filter(|one| view.enrols(one));
    let items = enrolled.filter_map(|one| Some(format!("{}: {}", one.name, injects(one)?)));
    INJECTED.none(State::Warn, items.collect(), "they get none", |many| {
        format!("{} where new pods get a sidecar", count(many, "namespace"))
    })
}

/// Only told where somebody has labelled a namespace so and no mesh of Istio's serves it.
fn not_served(view: &View<'_>, namespaces: &[Namespace]) -> Option<Finding> {
    let mut served = view.mesh.settings.enrol_labels.iter();
    if served.any(|(key, _)| key == FIELD) {
        return None;
    }
    let mut sets = view.cluster.daemon_sets.as_ref().ok()?.iter();
    if sets.any(|set| set.name == "ztunnel") {
        return None;
    }
    let wants = |one: &&Namespace| {
        one.labels
            .get(FIELD)
            .is_some_and(|value| **value == *"ambient")
    };
    let items = namespaces
        .iter()
        .filter(wants)
        .filter(|one| !view.enrols(one));
    let items: Vec<_> = items.map(|one| one.name.clone()).collect();
    let many = items.len();
    (many > 0).then(|| {
        let found = format!(
            "{} labelled {FIELD}=ambient, which nobody serves",
            count(many, "namespace")
        );
        NOT_SERVED.finding(State::Warn, found, items)
    })
}
