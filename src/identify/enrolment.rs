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
//! 7. a runtime whose packets do not pass the namespace's network stack: it cannot be, and people
//!    are told;
//! 8. otherwise the pod is enrolled.
//!
//! A pod that is terminating stays enrolled: it carries traffic to the end. Any other value of the
//! label on a pod neither opts in nor out; [`Settings::unknown_label`] finds it, for people to be
//! told. A namespace that is not known (yet) has no labels.
//!
//! A sandboxed runtime is known by its class alone. Kata moves frames between the interface and
//! its machine below netfilter; gVisor has a network stack of its own.

use crate::identify::Settings;
use crate::mesh::{Bypass, Enrolment, Labels, Phase};
use crate::source::Pod;

/// The label that enrols unless the settings say otherwise.
pub const DEFAULT_LABEL: (&str, &str) = ("adit.mesh/mode", "ambient");

/// The value with which a pod opts out.
const OPT_OUT: &str = "none";

/// What the names of the classes of sandboxed runtimes hold.
const SANDBOXED: [&str; 3] = ["kata", "gvisor", "runsc"];

impl Settings {
    /// Whether pods of this runtime class cannot be captured.
    #[must_use]
    pub fn is_sandboxed(&self, class: &str) -> bool {
        let said = |known: &str| class.to_ascii_lowercase().contains(known);
        !class.is_empty()
            && (SANDBOXED.iter().any(|known| said(known))
                || self.sandboxed_runtimes.iter().any(|known| known == class))
    }

    /// An enrolment label among `labels` that neither enrols nor opts out, and what it says: most
    /// often somebody has mistyped it.
    #[must_use]
    pub fn unknown_label<'a>(&'a self, labels: &'a Labels) -> Option<(&'a str, &'a str)> {
        self.enrol_labels.iter().find_map(|(key, _)| {
            let value = labels.get(key)?;
            let mut known = self.enrol_labels.iter().filter(|(other, _)| other == key);
            let is_known = **value == *OPT_OUT || known.any(|(_, known)| **known == **value);
            (!is_known).then_some((key.as_str(), &**value))
        })
    }
}

/// What the predicate asks of a pod, in whatever form it is held.
#[derive(Clone, Copy, Debug)]
pub(super) struct Facts<'a> {
    pub(super) namespace: &'a str,
    pub(super) labels: &'a Labels,
    pub(super) phase: Phase,
    pub(super) host_network: bool,
    pub(super) sidecar: bool,
    pub(super) sandboxed: bool,
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
        sandboxed: settings.is_sandboxed(&pod.runtime_class),
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
        sandboxed: false,
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
    } else if pod.sandboxed {
        Enrolment::Bypass(Bypass::SandboxedRuntime)
    } else {
        Enrolment::Enrolled
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mesh::TrustDomain;
    use std::sync::Arc;

    const FACTS: &str = "host_network sidecar finished sandboxed";

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
            sandboxed: says("sandboxed"),
        };
        let expect = expect.map_or_else(Enrolment::Bypass, |()| Enrolment::Enrolled);
        let got = decide(facts, &labels(namespace_labels), &settings());
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
        check("shop", ON, "sandboxed", Err(Bypass::SandboxedRuntime));
        check("shop", "", "sandboxed", Err(Bypass::NotLabelled));
        check("shop", ON, "sandboxed finished", Err(Bypass::Finished));
        check("shop", ON, "sidecar finished", Err(Bypass::Sidecar));
        check("shop", ON, "host_network sidecar", Err(Bypass::HostNetwork));
        check("kube-system", ON, ON, Err(Bypass::ExcludedNamespace));
        check("kube-system", "", "host_network", Err(Bypass::HostNetwork));
    }

    fn settings() -> Settings {
        let mut settings = Settings::new(TrustDomain::parse("cluster.local").unwrap());
        let field = ("istio.io/dataplane-mode".to_owned(), "ambient".to_owned());
        settings.enrol_labels.push(field);
        settings.sandboxed_runtimes.push("secret".to_owned());
        settings
    }

    #[test]
    fn sandboxed_runtimes_are_known_by_their_classes() {
        for (class, expect) in [
            ("", false),
            ("runc", false),
            ("nvidia", false),
            ("crun-wasm", false),
            ("kata", true),
            ("kata-qemu", true),
            ("Kata-mshv-vm-isolation", true),
            ("gvisor", true),
            ("runsc-kvm", true),
            ("secret", true),
            ("secrets", false),
        ] {
            assert_eq!(settings().is_sandboxed(class), expect, "{class}");
        }
    }

    #[test]
    fn a_label_that_says_nothing_known_is_found() {
        for (text, expect) in [
            ("", None),
            ("app=web", None),
            ("adit.mesh/mode=ambient", None),
            ("adit.mesh/mode=none", None),
            (
                "adit.mesh/mode=ambeint",
                Some(("adit.mesh/mode", "ambeint")),
            ),
            ("adit.mesh/mode=", Some(("adit.mesh/mode", ""))),
            (
                "adit.mesh/mode=ambient istio.io/dataplane-mode=Ambient",
                Some(("istio.io/dataplane-mode", "Ambient")),
            ),
        ] {
            let pairs = text.split(' ').filter_map(|word| word.split_once('='));
            let labels = Labels::new(pairs.map(|(k, v)| (Arc::from(k), Arc::from(v))));
            assert_eq!(settings().unknown_label(&labels), expect, "{text}");
        }
    }
}
