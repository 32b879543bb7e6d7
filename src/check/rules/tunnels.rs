//! NetworkPolicies that let applications be reached and tunnels not.
//!
//! Between pods of the mesh the network sees connections to port 15008 and no others. So wherever
//! policies let one pod of the mesh reach another on some port, they must do so on that one. Where
//! they let nobody in at all there is nothing to be broken, and it is only told.
//!
//! Pods with the same labels in one namespace are looked at once. Blocks of addresses are not
//! taken for a way to let pods in, as the API's documentation has it, but they may let tunnels in.

use std::collections::HashMap;
use std::net::IpAddr;

use crate::check::facts::{Allowance, NetworkPolicy, PeerOf, PortRange};
use crate::check::finding::{Check, Finding, State, count};
use crate::check::rules::view::View;
use crate::mesh::{Labels, TUNNEL_PORT};

pub(super) const GROUP: &str = "network policies";

const INGRESS: Check = Check {
    group: GROUP,
    name: "tunnels reach pods of the mesh that are to be reached (TCP 15008, ingress)",
    hint: "add port 15008, TCP, to the ports of the rule that is named: what comes from pods of the mesh \
           arrives there, whatever port it is for",
    link: "https://kubernetes.io/docs/concepts/services-networking/network-policies/",
};
const EGRESS: Check = Check {
    group: GROUP,
    name: "tunnels leave pods of the mesh that may call others (TCP 15008, egress)",
    hint: "add port 15008, TCP, to the ports of the rule that is named: what goes to pods of the mesh \
           leaves for that port, whatever port it is for",
    link: "https://kubernetes.io/docs/concepts/services-networking/network-policies/",
};
const FOREIGN: Check = Check {
    group: GROUP,
    name: "policies of the network's own kinds let tunnels pass",
    hint: "they are not evaluated here; where they name ports for pods of the mesh, let 15008 be among \
           them; their rules for HTTP and DNS see nothing of what is encrypted",
    link: "README.md#ports-and-privileges",
};

/// Pods that are the same to every policy.
struct Class<'f> {
    namespace: &'f str,
    labels: &'f Labels,
    addresses: Vec<IpAddr>,
    example: String,
    pods: usize,
}

/// Which side of a connection is looked at.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    In,
    Out,
}

pub(crate) fn check(view: &View<'_>) -> Vec<Finding> {
    let mut findings: Vec<_> = match (classes(view), &view.cluster.network_policies) {
        (Err(why), _) => [INGRESS, EGRESS].map(|check| check.skip(&why)).into(),
        (_, Err(why)) => [INGRESS, EGRESS].map(|check| check.skip(why)).into(),
        (Ok(classes), Ok(policies)) => vec![
            side(view, &INGRESS, Side::In, policies, &classes),
            side(view, &EGRESS, Side::Out, policies, &classes),
        ],
    };
    findings.extend(foreign(view));
    findings
}

fn classes<'f>(view: &View<'f>) -> Result<Vec<Class<'f>>, String> {
    let mut places: HashMap<(&str, &Labels), usize> = HashMap::new();
    let mut classes: Vec<Class<'f>> = Vec::new();
    for pod in view.enrolled().map_err(Clone::clone)? {
        let at = *places
            .entry((&pod.namespace, &pod.labels))
            .or_insert_with(|| {
                classes.push(Class {
                    namespace: &pod.namespace,
                    labels: &pod.labels,
                    addresses: Vec::new(),
                    example: pod.full(),
                    pods: 0,
                });
                classes.len() - 1
            });
        classes[at].pods += 1;
        classes[at].addresses.extend(&pod.ips);
    }
    Ok(classes)
}

/// A rule with its policy, and which classes are among its peers.
struct Rule<'f> {
    policy: &'f NetworkPolicy,
    number: usize,
    tunnel: bool,
    /// Whether it lets pods of these classes in on some port of an application.
    pods: Vec<bool>,
    /// Whether it has these classes among its peers in any way.
    peers: Vec<bool>,
}

fn side(
    view: &View<'_>,
    check: &Check,
    side: Side,
    policies: &[NetworkPolicy],
    classes: &[Class<'_>],
) -> Finding {
    let (mut broken, mut closed) = (Vec::new(), Vec::new());
    let of_side: Vec<_> = policies
        .iter()
        .filter_map(|policy| rules(view, side, policy, classes))
        .collect();
    for class in classes {
        let binding = of_side.iter().filter(|(policy, _)| {
            policy.namespace == class.namespace && policy.pods.matches(class.labels)
        });
        let binding: Vec<_> = binding.collect();
        let rules = || binding.iter().flat_map(|(_, rules)| rules);
        let lost = (0..classes.len()).find_map(|peer| {
            let tunnel = rules().any(|rule| rule.tunnel && rule.peers[peer]);
            let by = rules().find(|rule| rule.pods[peer])?;
            (!tunnel).then_some((by, &classes[peer]))
        });
        let who = match class.pods {
            1 => class.example.clone(),
            many => format!("{} and {} more", class.example, many - 1),
        };
        if let Some((by, peer)) = lost {
            let (policy, number) = (by.policy, by.number);
            let (rule, verb) = match side {
                Side::In => ("ingress", "in from"),
                Side::Out => ("egress", "out to"),
            };
            broken.push(format!(
                "{}/{}: {rule}[{number}] lets {who} {verb} {}, and not on port {TUNNEL_PORT}",
                policy.namespace, policy.name, peer.example,
            ));
        } else if let Some((policy, _)) = binding.first().filter(|_| rules().next().is_none()) {
            let way = match side {
                Side::In => "nothing may reach",
                Side::Out => "nothing may leave",
            };
            closed.push(format!("{}/{}: {way} {who}", policy.namespace, policy.name));
        }
    }
    let found = count(broken.len(), "kind") + " of pods cut off from their peers in the mesh";
    match (broken.is_empty(), closed.is_empty()) {
        (false, _) => check.finding(State::Fail, found, broken),
        (true, false) => {
            let found = "some pods are closed altogether, by tunnel as without; nothing is to be done if that is meant";
            check.finding(State::Warn, found, closed)
        }
        (true, true) => check.pass(format!(
            "{} looked at",
            match policies.len() {
                1 => "1 policy".to_owned(),
                many => format!("{many} policies"),
            }
        )),
    }
}

/// The rules of a policy for one side; `None` where it says nothing about that.
fn rules<'f>(
    view: &View<'_>,
    side: Side,
    policy: &'f NetworkPolicy,
    classes: &[Class<'_>],
) -> Option<(&'f NetworkPolicy, Vec<Rule<'f>>)> {
    let allowances = match side {
        Side::In => policy.ingress.as_ref()?,
        Side::Out => policy.egress.as_ref()?,
    };
    let rule = |(number, allowance): (usize, &Allowance)| {
        let is = |class: &Class<'_>, only_pods| among(view, policy, allowance, class, only_pods);
        let serves = serves(allowance);
        Rule {
            policy,
            number,
            tunnel: tunnel(allowance),
            pods: classes
                .iter()
                .map(|class| serves && is(class, true))
                .collect(),
            peers: classes.iter().map(|class| is(class, false)).collect(),
        }
    };
    Some((policy, allowances.iter().enumerate().map(rule).collect()))
}

fn tunnel(allowance: &Allowance) -> bool {
    let within = |range: &PortRange| matches!(range, PortRange::Tcp(first, last) if (*first..=*last).contains(&TUNNEL_PORT));
    allowance.ports.is_empty() || allowance.ports.iter().any(within)
}

/// Whether a rule lets applications be reached. Names are resolved outside of the mesh, so that a
/// rule for DNS is for none.
fn serves(allowance: &Allowance) -> bool {
    let application = |range: &PortRange| match range {
        PortRange::Tcp(53, 53) | PortRange::Other => false,
        PortRange::Tcp(..) | PortRange::Named => true,
    };
    allowance.ports.is_empty() || allowance.ports.iter().any(application)
}

/// Whether pods of a class are among the peers of a rule.
fn among(
    view: &View<'_>,
    policy: &NetworkPolicy,
    allowance: &Allowance,
    class: &Class<'_>,
    only_pods: bool,
) -> bool {
    let one = |peer: &PeerOf| match peer {
        PeerOf::Pods { namespaces, pods } => {
            let home = match namespaces {
                None => policy.namespace == class.namespace,
                Some(selector) => view.namespaces.as_ref().is_ok_and(|all| {
                    let labels = all.get(class.namespace).map(|one| &one.labels);
                    labels.is_some_and(|labels| selector.matches(labels))
                }),
            };
            home && pods.matches(class.labels)
        }
        PeerOf::Block { within, except } => {
            !only_pods
                && class
                    .addresses
                    .iter()
                    .any(|ip| within.contains(ip) && !except.iter().any(|block| block.contains(ip)))
        }
    };
    allowance.peers.is_empty() || allowance.peers.iter().any(one)
}

/// Only told where the network has kinds of its own.
fn foreign(view: &View<'_>) -> Option<Finding> {
    let policies = match &view.cluster.foreign_policies {
        Ok(policies) if policies.is_empty() => return None,
        Ok(policies) => policies,
        Err(why) => return Some(FOREIGN.skip(why)),
    };
    let concerns = |namespace: &str| {
        let Ok(namespaces) = &view.namespaces else {
            return true;
        };
        namespaces.get(namespace).is_none_or(|one| view.enrols(one))
    };
    let items = policies
        .iter()
        .filter(|one| one.lacks_tunnel && concerns(&one.namespace));
    let item = |one: &crate::check::facts::ForeignPolicy| match one.namespace.is_empty() {
        true => format!("{} {}", one.kind, one.name),
        false => format!("{} {}/{}", one.kind, one.namespace, one.name),
    };
    let found = |many| format!("{many} name ports, and not 15008");
    Some(FOREIGN.none(State::Warn, items.map(item).collect(), "they do", found))
}
