//! Which pods the mesh carries: one pure predicate, for every source of pods.
//!
//! In this order, the first that applies decides:
//!
//! 1. a pod on its node's network has no namespace of its own to capture: never;
//! 2. a pod with another mesh's sidecar would be proxied twice: never;
//! 3. an excluded namespace: never;
//! 4. a pod label `KEY=none`, for any enrolment label's key, opts out, whatever else says so;
//! 5. no enrolment label `KEY=VALUE` on the pod, and none on its namespace: no;
//! 6. a finished pod has nothing left to carry: no;
//! 7. otherwise the pod is enrolled.
//!
//! A pod that is terminating stays enrolled: it carries traffic to the end. Any other value of the
//! label on a pod neither opts in nor out. A namespace that is not known (yet) has no labels.

use crate::identify::Settings;
use crate::mesh::{Bypass, Enrolment, Labels, Phase};
use crate::source::Pod;

/// The label that enrols unless the settings say otherwise.
pub const DEFAULT_LABEL: (&str, &str) = ("adit.mesh/mode", "ambient");

/// The value with which a pod opts out.
const OPT_OUT: &str = "none";

/// What the predicate asks of a pod, in whatever form it is held.
#[derive(Clone, Copy, Debug)]
pub(super) struct Facts<'a> {
    pub(super) namespace: &'a str,
    pub(super) labels: &'a Labels,
    pub(super) phase: Phase,
    pub(super) host_network: bool,
    pub(super) sidecar: bool,
}

/// Whether the mesh carries `pod`, whose namespace has these labels.
#[must_use]
pub fn enrolment(pod: &Pod, namespace_labels: &Labels, settings: &Settings) -> Enrolment {
    let facts = Facts {
        namespace: &pod.namespace,
        labels: &pod.labels,
        phase: pod.phase,
        host_network: pod.host_network,
        sidecar: pod.sidecar,
    };
    decide(facts, namespace_labels, settings)
}

/// Whether a pod that says nothing for itself is enrolled by its namespace.
pub(super) fn enrols(namespace: &str, labels: &Labels, settings: &Settings) -> bool {
    let nothing = Facts {
        namespace,
        labels: &Labels::default(),
        phase: Phase::Running,
        host_network: false,
        sidecar: false,
    };
    decide(nothing, labels, settings) == Enrolment::Enrolled
}

pub(super) fn decide(pod: Facts<'_>, namespace_labels: &Labels, settings: &Settings) -> Enrolment {
    let says = |labels: &Labels, key: &str, value: &str| {
        labels.get(key).is_some_and(|label| **label == *value)
    };
    let mut excluded = settings.excluded_namespaces.iter();
    let mut enrol = settings.enrol_labels.iter();
    if pod.host_network {
        Enrolment::Bypass(Bypass::HostNetwork)
    } else if pod.sidecar {
        Enrolment::Bypass(Bypass::Sidecar)
    } else if excluded.any(|namespace| namespace == pod.namespace) {
        Enrolment::Bypass(Bypass::ExcludedNamespace)
    } else if enrol.clone().any(|(key, _)| says(pod.labels, key, OPT_OUT)) {
        Enrolment::Bypass(Bypass::OptedOut)
    } else if !enrol
        .any(|(key, value)| says(pod.labels, key, value) || says(namespace_labels, key, value))
    {
        Enrolment::Bypass(Bypass::NotLabelled)
    } else if pod.phase == Phase::Finished {
        Enrolment::Bypass(Bypass::Finished)
    } else {
        Enrolment::Enrolled
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mesh::TrustDomain;
    use std::sync::Arc;

    const FACTS: &str = "host_network sidecar finished";

    /// Labels are written `key=value`; the facts as words of [`FACTS`].
    fn check(namespace: &str, namespace_labels: &str, pod: &str, expect: Result<(), Bypass>) {
        let labels = |words: &str| {
            let pairs = words.split(' ').filter_map(|word| word.split_once('='));
            Labels::new(pairs.map(|(k, v)| (Arc::from(k), Arc::from(v))))
        };
        let says = |fact: &str| {
            assert!(FACTS.contains(fact));
            pod.split(' ').any(|word| word == fact)
        };
        let mut settings = Settings::new(TrustDomain::parse("cluster.local").unwrap());
        let field = ("istio.io/dataplane-mode".to_owned(), "ambient".to_owned());
        settings.enrol_labels.push(field);
        let facts = Facts {
            namespace,
            labels: &labels(pod),
            phase: if says("finished") {
                Phase::Finished
            } else {
                Phase::Running
            },
            host_network: says("host_network"),
            sidecar: says("sidecar"),
        };
        let expect = expect.map_or_else(Enrolment::Bypass, |()| Enrolment::Enrolled);
        let got = decide(facts, &labels(namespace_labels), &settings);
        assert_eq!(got, expect, "{namespace} [{namespace_labels}] [{pod}]");
    }

    #[test]
    fn the_first_rule_that_applies_decides() {
        const ON: &str = "adit.mesh/mode=ambient";
        const FIELD: &str = "istio.io/dataplane-mode=ambient";
        check("shop", "", "", Err(Bypass::NotLabelled));
        check("shop", ON, "", Ok(()));
        check("shop", FIELD, "", Ok(()));
        check("shop", "", ON, Ok(()));
        check("shop", "", FIELD, Ok(()));
        check(
            "shop",
            "adit.mesh/mode=sidecar",
            "",
            Err(Bypass::NotLabelled),
        );
        check("shop", ON, "adit.mesh/mode=none", Err(Bypass::OptedOut));
        check(
            "shop",
            ON,
            "istio.io/dataplane-mode=none",
            Err(Bypass::OptedOut),
        );
        let both = "adit.mesh/mode=ambient istio.io/dataplane-mode=none";
        check("shop", "", both, Err(Bypass::OptedOut));
        check("shop", ON, "adit.mesh/mode=ambiet", Ok(()));
        check("shop", "adit.mesh/mode=none", ON, Ok(()));
        check("shop", ON, "finished", Err(Bypass::Finished));
        check("shop", "", "finished", Err(Bypass::NotLabelled));
        check("shop", ON, "sidecar finished", Err(Bypass::Sidecar));
        check("shop", ON, "host_network sidecar", Err(Bypass::HostNetwork));
        check("kube-system", ON, ON, Err(Bypass::ExcludedNamespace));
        check("kube-system", "", "host_network", Err(Bypass::HostNetwork));
    }
}
