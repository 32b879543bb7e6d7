//! Tells people what their labels and runtimes make of their pods, where that is hardly what they
//! meant: in the log, in metrics, and in Events of the pods.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use crate::mesh::{Bypass, Enrolment, Workload};
use crate::node::control::Control;
use crate::node::listing::SANDBOXED;
use crate::node::mark::Advice;
use crate::telemetry::metrics::Kind;

/// Of what people were told.
#[derive(Debug, Default)]
pub(super) struct Advised {
    pods: BTreeSet<(Arc<str>, String)>,
    namespaces: BTreeMap<Arc<str>, String>,
}

/// Whether a pod of the mesh cannot be captured by its runtime.
pub(super) fn is_unsupported(pod: &Workload) -> bool {
    pod.enrolment == Enrolment::Bypass(Bypass::SandboxedRuntime)
}

impl Control {
    /// Looks at the pods of this node.
    pub(super) fn advise(&mut self, ours: &[Arc<Workload>]) {
        let mut all = Vec::new();
        let mut mislabelled = 0_u32;
        for pod in ours {
            let mut say = |reason, message: String| {
                all.push(Advice {
                    uid: pod.uid.clone(),
                    name: format!("{}/{}", pod.namespace, pod.name).into(),
                    reason,
                    message,
                });
            };
            if is_unsupported(pod) {
                say("SandboxedRuntime", SANDBOXED.to_owned());
            }
            if let Some(label) = self.index.unknown_label(&pod.labels) {
                mislabelled += 1;
                let so = if pod.enrolled() { "is" } else { "is not" };
                say(
                    "UnknownLabelValue",
                    format!(
                        "{}; this pod {so} of the mesh, as if it did not have the label",
                        unknown(label)
                    ),
                );
            }
        }
        self.count_mislabelled("pod", mislabelled);
        let before = std::mem::take(&mut self.reports.advised.pods);
        for advice in &all {
            let said = (advice.uid.clone(), advice.message.clone());
            if !before.contains(&said) {
                tracing::warn!(pod = %advice.name, reason = %advice.message, "pod is hardly as it was meant");
            }
            self.reports.advised.pods.insert(said);
        }
        if self.scribe.is_some() {
            self.marks.advise(all, Instant::now());
        }
    }

    /// Looks at the labels of all namespaces.
    pub(super) fn advise_namespaces(&mut self) {
        let all: BTreeMap<_, _> = self
            .index
            .mislabelled()
            .map(|(name, key, value)| (name.clone(), unknown((key, value))))
            .collect();
        self.count_mislabelled("namespace", all.len().try_into().unwrap_or(u32::MAX));
        let before = std::mem::take(&mut self.reports.advised.namespaces);
        for (name, why) in &all {
            if before.get(name) != Some(why) {
                tracing::warn!(namespace = %name, reason = %why, "namespace is hardly as it was meant");
            }
        }
        self.reports.advised.namespaces = all;
    }

    fn count_mislabelled(&self, kind: &'static str, count: u32) {
        let gauges = &self.shared.metrics.daemon.mislabelled;
        gauges.get_or_create(&Kind { kind }).set(count.into());
    }
}

fn unknown((key, value): (&str, &str)) -> String {
    format!(
        "its label {key} says \"{value}\", which means nothing: ambient enrols, none opts a pod out"
    )
}
