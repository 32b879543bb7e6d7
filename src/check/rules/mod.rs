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

use crate::check::facts::Facts;
use crate::check::finding::Finding;
use crate::check::rules::view::View;

/// Everything that is to be said, group by group.
#[must_use]
pub fn check(facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Some(node) = &facts.node {
        findings.extend(node::check(facts, node));
    }
    let Some(cluster) = &facts.cluster else {
        return findings;
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

#[cfg(test)]
mod tests;
