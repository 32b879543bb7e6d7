//! The machine that this runs on: whether it can capture, and how its daemon is.

use std::time::{Duration, UNIX_EPOCH};

use crate::api;
use crate::check::facts::{Facts, ThisNode};
use crate::check::finding::{Check, Finding, State, count};

const GROUP: &str = "this node";

const CAPTURE: Check = Check {
    group: GROUP,
    name: "a connection can be captured (TPROXY, nftables, SO_NETNS_COOKIE)",
    hint: "mend what the finding names: a kernel module, a right of this process, or the nft program",
    link: "https://docs.kernel.org/networking/tproxy.html",
};
const SOCK_DIAG: Check = Check {
    group: GROUP,
    name: "sockets can be listed (sock_diag)",
    hint: "load the modules inet_diag and tcp_diag, or use a kernel with CONFIG_INET_DIAG: by it \
           older connections are spared and kubelet's probes are known",
    link: "README.md#ports-and-privileges",
};
const CAPABILITIES: Check = Check {
    group: GROUP,
    name: "this process has the capabilities of a daemon",
    hint: "run as root, or add them to the container's securityContext.capabilities",
    link: "README.md#ports-and-privileges",
};
const KUBELET: Check = Check {
    group: GROUP,
    name: "kubelet is seen, so that its probes pass under STRICT",
    hint: "let the pod see the node's processes (hostPID: true, CAP_SYS_PTRACE), and run this where \
           kubelet runs",
    link: "README.md#no-pod-starts-uncaptured",
};
const DAEMON: Check = Check {
    group: GROUP,
    name: "the daemon serves every pod of the mesh here",
    hint: "see `adit status` and `adit pods` on this node",
    link: "README.md#use-it",
};
const SKEW: Check = Check {
    group: GROUP,
    name: "the daemon is of the version of this program",
    hint: "use the adit of the daemon's image: kubectl exec into its pod",
    link: "README.md#use-it",
};
const CERTIFICATES: Check = Check {
    group: GROUP,
    name: "the certificates of this node are in force",
    hint: "see `adit certificates` on this node: the error names what the authority said",
    link: "README.md#use-it",
};

/// Bits of `include/uapi/linux/capability.h`.
const NEEDED: [(u32, &str); 3] = [
    (12, "CAP_NET_ADMIN"),
    (21, "CAP_SYS_ADMIN"),
    (19, "CAP_SYS_PTRACE"),
];

pub(crate) fn check(facts: &Facts, node: &ThisNode) -> Vec<Finding> {
    let mut findings = vec![
        match &node.capture {
            Ok(()) => CAPTURE.pass(format!("Linux {}", node.kernel)),
            Err(why) => CAPTURE.fail(format!("Linux {}: {why}", node.kernel)),
        },
        match &node.sock_diag {
            Ok(()) => SOCK_DIAG.pass("they can"),
            Err(why) => SOCK_DIAG.fail(why),
        },
        capabilities(&node.capabilities),
        match node.kubelet {
            Some(by) => KUBELET.pass(format!("its sockets are known by {by}")),
            None => KUBELET.warn("no process of kubelet is seen from here"),
        },
    ];
    if !facts.pre {
        findings.extend(daemon(facts, node));
    }
    findings
}

fn capabilities(held: &Result<u64, String>) -> Finding {
    let held = match held {
        Ok(held) => *held,
        Err(why) => return CAPABILITIES.skip(why),
    };
    let missing = NEEDED.iter().filter(|(bit, _)| held & (1 << bit) == 0);
    let missing: Vec<_> = missing.map(|(_, name)| (*name).to_owned()).collect();
    let all = NEEDED.map(|(_, name)| name).join(", ");
    CAPABILITIES.none(State::Fail, missing, all, |many| {
        format!("{many} of {} are missing", NEEDED.len())
    })
}

fn daemon(facts: &Facts, node: &ThisNode) -> Vec<Finding> {
    let (status, certificates) = match &node.daemon {
        Ok(daemon) => daemon,
        Err(why) => return vec![DAEMON.fail(why)],
    };
    let mut wrong = status.waiting_for.clone();
    wrong.extend(status.failures.iter().cloned());
    wrong.extend(status.problems.iter().map(|p| {
        let api::Problem {
            object, message, ..
        } = p;
        match object.is_empty() {
            true => message.clone(),
            false => format!("{object}: {message}"),
        }
    }));
    let enrolled = count(status.pods.enrolled, "pod");
    let state = if status.ready {
        State::Warn
    } else {
        State::Fail
    };
    let version = &status.version;
    vec![
        DAEMON.none(state, wrong, format!("{enrolled} captured"), |_| {
            let ready = if status.ready { "ready" } else { "not ready" };
            format!("the daemon is {ready}, {enrolled} captured, and says:")
        }),
        match version == facts.version {
            true => SKEW.pass(version.as_str()),
            false => SKEW.warn(format!(
                "the daemon is {version}, this is {}",
                facts.version
            )),
        },
        in_force(facts, certificates),
    ]
}

fn in_force(facts: &Facts, certificates: &[api::Certificate]) -> Finding {
    let (mut bad, mut failing) = (Vec::new(), Vec::new());
    for one in certificates {
        let why = one.error.as_deref().unwrap_or("no reason is told");
        let ends = UNIX_EPOCH + Duration::from_secs(one.not_after);
        if one.state != "valid" || ends <= facts.now {
            bad.push(format!("{}: {}: {why}", one.identity, one.state));
        } else if one.failures > 0 {
            let left = ends.duration_since(facts.now).unwrap_or_default();
            let minutes = left.as_secs() / 60;
            failing.push(format!(
                "{}: cannot be renewed, ends in {minutes} min: {why}",
                one.identity
            ));
        }
    }
    let state = if bad.is_empty() {
        State::Warn
    } else {
        State::Fail
    };
    bad.extend(failing);
    CERTIFICATES.none(
        state,
        bad,
        format!("{} in force", count(certificates.len(), "certificate")),
        |many| format!("{} not as it should be", count(many, "certificate")),
    )
}
