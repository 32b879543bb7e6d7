//! A node on one screen: what is well in numbers, what is not in words.

use std::fmt::Write;

use crate::api::{Problem, Status, Watch};
use crate::inspect::table::span;

/// Problems that are shown one by one; the rest are counted.
const SHOWN: usize = 10;

/// Lays the status out.
pub(crate) fn screen(status: &Status) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        let _ = writeln!(text, "{name:<14}{value}");
    };
    let (pods, certificates) = (&status.pods, &status.certificates);
    line(
        "node",
        format!(
            "{} (adit {}, up {}, {} workers)",
            status.node,
            status.version,
            span(status.uptime_seconds),
            status.workers
        ),
    );
    line("ready", if status.ready { "yes" } else { "no" }.to_owned());
    line(
        "pods",
        counts(&[
            (pods.enrolled, "enrolled"),
            (pods.pending, "pending"),
            (pods.failed, "failed"),
            (pods.draining, "draining"),
            (pods.unsupported, "unsupported"),
        ]),
    );
    line(
        "certificates",
        counts(&[
            (certificates.valid, "valid"),
            (certificates.missing, "missing"),
            (certificates.expired, "expired"),
            (certificates.failing, "failing to renew"),
        ]),
    );
    line(
        "tunnels",
        format!(
            "{} out, {} in",
            status.tunnels_outbound, status.tunnels_inbound
        ),
    );
    line(
        "connections",
        format!(
            "{} in the mesh, {} kept from before enrolment",
            status.connections, status.connections_kept
        ),
    );
    line(
        "index",
        format!(
            "{} workloads, {} services, {} policies",
            status.objects.workloads, status.objects.services, status.objects.policies
        ),
    );
    if !status.watches.is_empty() {
        line("watches", watches(&status.watches));
    }
    line(
        "problems",
        (status.problems.len() + status.failures.len()).to_string(),
    );
    section(&mut text, "waiting for", status.waiting_for.iter().cloned());
    section(&mut text, "failing", status.failures.iter().cloned());
    section(
        &mut text,
        "in the sources",
        status.problems.iter().map(place),
    );
    text
}

/// `6 of 7 open, not Pod; listed anew 2 times, failed 3 times`.
fn watches(all: &[Watch]) -> String {
    let closed: Vec<_> = all.iter().filter(|watch| !watch.connected).collect();
    let mut text = format!("{} of {} open", all.len() - closed.len(), all.len());
    for (at, watch) in closed.iter().enumerate() {
        let before = if at == 0 { ", not " } else { ", " };
        let _ = write!(text, "{before}{}", watch.kind);
    }
    let times = |of: fn(&Watch) -> u64| all.iter().map(of).sum::<u64>();
    let (relists, errors) = (times(|watch| watch.relists), times(|watch| watch.errors));
    if relists + errors > 0 {
        let _ = write!(text, "; listed anew {relists} times, failed {errors} times");
    }
    text
}

/// The first number whatever it is, and the others that are not zero.
fn counts(all: &[(usize, &str)]) -> String {
    let told = all.iter().enumerate();
    let told = told.filter(|(at, (count, _))| *at == 0 || *count > 0);
    let told: Vec<_> = told.map(|(_, (n, what))| format!("{n} {what}")).collect();
    told.join(", ")
}

fn section(text: &mut String, title: &str, lines: impl ExactSizeIterator<Item = String>) {
    let total = lines.len();
    if total == 0 {
        return;
    }
    let _ = writeln!(text, "\n{title}:");
    for line in lines.take(SHOWN) {
        let _ = writeln!(text, "  {line}");
    }
    if total > SHOWN {
        let _ = writeln!(text, "  and {} more", total - SHOWN);
    }
}

/// `file:line: object: message`, without what is not known.
pub(crate) fn place(problem: &Problem) -> String {
    let mut text = problem.file.clone();
    if problem.line > 0 {
        let _ = write!(text, ":{}", problem.line);
    }
    for part in [&problem.object, &problem.message] {
        if !part.is_empty() {
            let between = if text.is_empty() { "" } else { ": " };
            let _ = write!(text, "{between}{part}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::PodCounts;

    #[test]
    fn a_screen_tells_numbers_and_then_what_is_wrong() {
        let status = Status {
            version: "0.1.0".to_owned(),
            node: "n1".to_owned(),
            uptime_seconds: 61.0,
            workers: 2,
            pods: PodCounts {
                enrolled: 3,
                failed: 1,
                ..PodCounts::default()
            },
            waiting_for: vec!["shop/web".to_owned()],
            problems: vec![Problem {
                file: "a.yaml".to_owned(),
                line: 7,
                object: "Pod shop/x".to_owned(),
                message: "no name".to_owned(),
            }],
            watches: ["Pod", "Node"]
                .map(|kind| Watch {
                    kind: kind.to_owned(),
                    connected: kind == "Node",
                    errors: 2,
                    ..Watch::default()
                })
                .into(),
            failures: (0..12).map(|n| format!("pod {n}")).collect(),
            ..Status::default()
        };
        let text = screen(&status);
        for part in [
            "node          n1 (adit 0.1.0, up 1m1s, 2 workers)\n",
            "ready         no\n",
            "pods          3 enrolled, 1 failed\n",
            "certificates  0 valid\n",
            "watches       1 of 2 open, not Pod; listed anew 0 times, failed 4 times\n",
            "problems      13\n",
            "waiting for:\n  shop/web\n",
            "  pod 9\n  and 2 more\n",
            "in the sources:\n  a.yaml:7: Pod shop/x: no name\n",
        ] {
            assert!(text.contains(part), "no {part:?} in\n{text}");
        }
    }
}
