//! The rules: facts in, findings out. Pure.
//!
//! One file per group. Each rule is a [`Check`](crate::check::finding::Check), which holds its
//! name and its mend, and a function that looks at a [`View`].

mod certificates;
mod install;
mod kubernetes;
mod labels;
mod network;
mod node;
mod pods;
mod policies;
mod principals;
mod settings;
mod tunnels;
mod view;

use crate::check::facts::{Asked, Facts};
use crate::check::finding::{Check, Finding};
use crate::check::rules::view::View;

/// Everything that is to be said, group by group.
#[must_use]
pub fn check(facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Some(node) = &facts.node {
        findings.extend(node::check(facts, node));
    }
    let cluster = match &facts.cluster {
        Asked::Answered(cluster) => cluster,
        Asked::InVain => return findings,
        Asked::Nobody => {
            findings.extend(unasked(facts.pre));
            return findings;
        }
    };
    let view = View::new(facts, cluster);
    findings.extend(kubernetes::check(&view));
    findings.extend(network::check(&view));
    if !facts.pre {
        findings.extend(install::check(&view));
        findings.extend(certificates::check(&view));
    }
    findings.extend(labels::check(&view));
    findings.extend(pods::check(&view));
    findings.extend(policies::check(&view));
    findings.extend(tunnels::check(&view));
    findings
}

/// Each group about the cluster, where there is none to ask.
fn unasked(pre: bool) -> impl Iterator<Item = Finding> {
    let installed = [install::GROUP, certificates::GROUP];
    let groups = [
        kubernetes::GROUP,
        network::GROUP,
        install::GROUP,
        certificates::GROUP,
        labels::GROUP,
        pods::GROUP,
        policies::GROUP,
        tunnels::GROUP,
    ];
    let due = groups.into_iter();
    let due = due.filter(move |group| !(pre && installed.contains(group)));
    due.map(|group| {
        let all = Check {
            group,
            name: "every check of this group",
            hint: "",
            link: "",
        };
        all.skip(
            "it is about the cluster, and no kubeconfig tells where that is: give --kubeconfig",
        )
    })
}

#[cfg(test)]
mod tests;
