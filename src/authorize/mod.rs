//! Decides whether a flow may proceed.
//!
//! This stage sits between `identify`, which names both ends of a connection, and `tunnel` and
//! `deliver`, which move its bytes. Policy is enforced where a flow arrives. The first rule that
//! applies decides:
//!
//! 1. where mutual TLS is demanded, a peer without an identity is refused ([`mtls`]);
//! 2. a policy that could not be understood refuses all that it binds;
//! 3. a matching DENY rule refuses the flow;
//! 4. if any ALLOW policy binds the workload, one of their rules must match;
//! 5. otherwise the flow is permitted.
//!
//! Of several policies that could be named for a verdict, the first is: those of the root
//! namespace before the workload's own, then by name, then by rule.
//!
//! How a rule is read:
//!
//! - A rule matches when one of its `from`, one of its `to` and all of its `when` do; a list that
//!   is absent or empty asks for nothing, so `rules: [{}]` matches everything. A source or
//!   operation that sets no field matches nothing. Without rules nothing matches: an ALLOW policy
//!   then allows nothing, and a DENY policy denies nothing.
//! - A field's positive list asks for any of its values, its `not` list for none of them.
//! - A plaintext peer has no principal, namespace or service account: positive lists of these
//!   fail, `not` lists hold, `"*"` is "has one". Namespaces and service accounts are the proven
//!   identity's, never those of the pod that owns the address.
//! - `source.ip` is the TCP peer of this hop; destination address and port are the pod's own.
//! - Principals compare with the identity's text without `spiffe://`. One that begins with
//!   `cluster.local/` means our own trust domain, whatever its name, as in Istio; then it does not
//!   mean a foreign trust domain that is really called `cluster.local`.
//! - Fields that need HTTP: an ALLOW rule with any never matches; from a DENY rule they are
//!   dropped, and what is left decides, even if nothing is left. So neither gets weaker.
//!
//! An absent policy snapshot is not an empty one: without a [`Store`] there are no [`Policies`],
//! and so no permit. Deciding is a pure function of flow and snapshot: no clock, no I/O, no
//! logging. Ending live connections when policy changes is the node's work, by
//! [`Evaluator::recheck`].

mod compile;
mod evaluator;
mod index;
mod memo;
pub mod mtls;
mod ranges;
mod store;
#[cfg(test)]
mod tests;

use std::fmt;

use crate::mesh::policy::PolicyName;
use crate::mesh::{Direction, Flow, Path};
use crate::sys::sockdiag::{Owner, Process};

pub use evaluator::{Considered, Evaluator};
pub use store::{Change, Policies, Scope, Store};

/// Proof that a flow was permitted.
///
/// Only this stage can build one, and every function that moves bytes takes one, so an unchecked
/// flow cannot leave the node: the mistake does not compile.
#[derive(Debug)]
pub struct Permit {
    flow: Flow,
    granted_by: Option<Grant>,
}

impl Permit {
    /// The flow that was permitted.
    #[must_use]
    pub fn flow(&self) -> &Flow {
        &self.flow
    }

    /// The ALLOW policy that matched; `None` where no ALLOW policy binds the workload.
    #[must_use]
    pub fn granted_by(&self) -> Option<&PolicyName> {
        self.granted_by.as_ref().map(|grant| &grant.policy)
    }

    /// The index in `spec.rules` of the rule that matched.
    #[must_use]
    pub fn rule(&self) -> Option<usize> {
        self.granted_by.as_ref().map(|grant| grant.rule)
    }
}

/// A rule of an ALLOW policy, as the reason of a permit.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Grant {
    policy: PolicyName,
    rule: usize,
}

/// Permits a flow to leave its pod. Policy is enforced at the destination, so nothing is asked
/// here; the permit says that it is for leaving, whatever the flow said.
#[must_use]
pub fn outbound(flow: Flow) -> Permit {
    Permit {
        flow: Flow {
            direction: Direction::Outbound,
            ..flow
        },
        granted_by: None,
    }
}

/// Permits a flow that is a probe of this node's kubelet, whatever the pod's policies say: they are
/// about who uses the application, and kubelet, which started it, must see whether it lives. The
/// kernel says so by the socket at the other end, which must be that of this very connection and of
/// kubelet's process; `None` if it is not.
#[must_use]
pub fn probe(flow: &Flow, socket: &Owner, kubelet: Process) -> Option<Permit> {
    let (from, to) = (flow.source.addr, flow.destination.addr);
    let attested = flow.direction == Direction::Inbound
        && flow.path == Path::Plain
        && socket.connects(from, to)
        && socket.is(kubelet);
    attested.then(|| Permit {
        flow: Flow {
            path: Path::Probe,
            ..flow.clone()
        },
        granted_by: None,
    })
}

/// What was decided about a flow.
#[derive(Debug)]
pub struct Verdict {
    /// The decision that stands.
    pub decision: Result<Permit, Refusal>,
    /// Each dry-run policy because of which the decision would be the opposite, were all dry-run
    /// policies of the workload enforced. Empty where the decision would be the same.
    pub dry_run: Vec<DryRun>,
}

/// A flow that was refused, and why.
#[derive(Debug)]
pub struct Refusal {
    /// The flow.
    pub flow: Flow,
    /// Why.
    pub denial: Denial,
}

/// Why a flow was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Denial {
    /// Mutual TLS is demanded, and the peer proved no identity.
    PlaintextRefused {
        /// The PeerAuthentication that demands it.
        policy: PolicyName,
    },
    /// A policy that binds the workload could not be understood.
    NotUnderstood {
        /// That policy.
        policy: PolicyName,
    },
    /// A DENY policy matched; it wins over any ALLOW.
    Denied {
        /// That policy.
        policy: PolicyName,
        /// The index of the matching rule in `spec.rules`.
        rule: usize,
    },
    /// ALLOW policies bind the workload, and none matched.
    NotAllowed,
}

impl Denial {
    /// A stable word for logs and metrics.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::PlaintextRefused { .. } => "plaintext_refused",
            Self::NotUnderstood { .. } => "policy_not_understood",
            Self::Denied { .. } => "denied",
            Self::NotAllowed => "not_allowed",
        }
    }

    /// The policy that decided, where it is a single one.
    #[must_use]
    pub fn policy(&self) -> Option<&PolicyName> {
        match self {
            Self::PlaintextRefused { policy }
            | Self::NotUnderstood { policy }
            | Self::Denied { policy, .. } => Some(policy),
            Self::NotAllowed => None,
        }
    }

    /// The index in `spec.rules` of the rule that decided, where one did.
    #[must_use]
    pub fn rule(&self) -> Option<usize> {
        match self {
            Self::Denied { rule, .. } => Some(*rule),
            _ => None,
        }
    }
}

impl fmt::Display for Denial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PlaintextRefused { policy } => {
                write!(f, "PeerAuthentication {policy} demands mutual TLS")
            }
            Self::NotUnderstood { policy } => {
                write!(f, "policy {policy} could not be understood, and so refuses")
            }
            Self::Denied { policy, rule } => write!(f, "denied by {policy}, rules[{rule}]"),
            Self::NotAllowed => f.write_str("no ALLOW policy of the workload matches"),
        }
    }
}

/// A dry-run policy because of which the decision would be the opposite, were it enforced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DryRun {
    /// The policy.
    pub policy: PolicyName,
    /// What it would do.
    pub would: Would,
}

/// What a dry-run policy would do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Would {
    /// Refuse a permitted flow: this DENY rule matches.
    Deny {
        /// The index of the matching rule in `spec.rules`.
        rule: usize,
    },
    /// Refuse a permitted flow: the policy could not be understood.
    Refuse,
    /// Refuse a permitted flow: it is an ALLOW policy, and neither it nor another one matches.
    NotAllow,
    /// Permit a refused flow: this ALLOW rule matches.
    Allow {
        /// The index of the matching rule in `spec.rules`.
        rule: usize,
    },
}

impl Would {
    /// A stable word for logs and metrics.
    #[must_use]
    pub fn reason(self) -> &'static str {
        match self {
            Self::Deny { .. } => "would_deny",
            Self::Refuse => "would_refuse",
            Self::NotAllow => "would_not_allow",
            Self::Allow { .. } => "would_allow",
        }
    }
}
