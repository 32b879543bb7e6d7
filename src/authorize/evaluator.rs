//! The policies that bind one workload, compiled: decides its flows.

use std::sync::Arc;

use crate::authorize::compile::{Asked, Policy};
use crate::authorize::index::RuleSet;
use crate::authorize::memo::Memo;
use crate::authorize::mtls::{Modes, Mtls};
use crate::authorize::{Denial, DryRun, Grant, Permit, Refusal, Verdict, Would};
use crate::mesh::policy::{Action, AuthorizationPolicy};
use crate::mesh::{Direction, Flow, Path};

/// Decides the flows that arrive at one workload. A clone costs one counter, and deciding takes
/// no lock.
#[derive(Clone, Debug)]
pub struct Evaluator(Arc<Bound>);

#[derive(Debug)]
struct Bound {
    modes: Modes,
    /// All AuthorizationPolicies, in the order in which they are named.
    policies: Vec<Arc<Policy>>,
    /// The first enforced one that could not be understood.
    unreadable: Option<Arc<Policy>>,
    deny: RuleSet,
    allow: RuleSet,
    dry_run: Vec<Arc<Policy>>,
    /// Where many rules would be tried for every flow.
    memo: Option<Memo<Answer>>,
}

/// What is decided of a flow, and the dry-run policies that would decide the opposite.
type Answer = (Result<Option<Grant>, Denial>, Vec<DryRun>);

/// How many rules may be tried for every flow before it pays to remember the answers.
const TRIED: usize = 8;

/// A policy as it was considered for a flow.
#[derive(Clone, Debug)]
pub struct Considered {
    /// The policy.
    pub policy: Arc<AuthorizationPolicy>,
    /// For each of its rules, what failed first; `None` where the rule matches.
    pub rules: Vec<Option<String>>,
}

impl Evaluator {
    pub(super) fn new(policies: Vec<Arc<Policy>>, modes: Modes) -> Self {
        let (dry_run, enforced): (Vec<_>, Vec<_>) =
            policies.iter().cloned().partition(|p| p.written.dry_run);
        let with = |action| {
            let of = enforced.iter().filter(|p| p.action() == Some(action));
            RuleSet::new(of.cloned().collect())
        };
        let (deny, allow) = (with(Action::Deny), with(Action::Allow));
        let rehearsed = dry_run.iter().map(|policy| policy.rules.len());
        let tried = deny.unfiled() + allow.unfiled() + rehearsed.sum::<usize>();
        let memo = || Memo::new(policies.iter().map(|policy| &**policy));
        Self(Arc::new(Bound {
            modes,
            unreadable: enforced.iter().find(|p| p.action().is_none()).cloned(),
            deny,
            allow,
            dry_run,
            memo: (tried > TRIED).then(memo),
            policies,
        }))
    }

    /// Decides a flow that arrives at the workload.
    #[must_use]
    pub fn decide(&self, flow: Flow) -> Verdict {
        let asked = Asked::of(&flow);
        let (judged, dry_run) = self.answer(&asked);
        let decision = match judged {
            Ok(granted_by) => Ok(Permit { flow, granted_by }),
            Err(denial) => Err(Refusal { flow, denial }),
        };
        Verdict { decision, dry_run }
    }

    /// Why a flow that was permitted would now be refused. Policy has no say over flows that
    /// leave, nor over probes.
    #[must_use]
    pub fn recheck(&self, permit: &Permit) -> Option<Denial> {
        match (permit.flow.direction, permit.flow.path) {
            (Direction::Outbound, _) | (_, Path::Probe) => None,
            (Direction::Inbound, _) => self.answer(&Asked::of(&permit.flow)).0.err(),
        }
    }

    /// What is demanded of peers on a port of the workload; `None`, and so PERMISSIVE, where no
    /// policy says anything.
    #[must_use]
    pub fn mtls(&self, port: u16) -> Option<&Mtls> {
        self.0.modes.on(port)
    }

    /// Whether the same policies are bound here and there, so that no decision differs. What was
    /// permitted by the one then needs no recheck by the other.
    #[must_use]
    pub fn same(&self, other: &Self) -> bool {
        let (here, there) = (&*self.0, &*other.0);
        std::ptr::eq(here, there)
            || here.modes == there.modes
                && here.policies.len() == there.policies.len()
                && here
                    .policies
                    .iter()
                    .zip(&there.policies)
                    .all(|(a, b)| Arc::ptr_eq(a, b))
    }

    /// Every AuthorizationPolicy that binds the workload, with what each of its rules says of
    /// `flow`: the matching that [`decide`](Self::decide) does, told at length.
    #[must_use]
    pub fn considered(&self, flow: &Flow) -> Vec<Considered> {
        let asked = Asked::of(flow);
        let policies = self.0.policies.iter();
        policies
            .map(|policy| Considered {
                policy: Arc::clone(&policy.written),
                rules: policy
                    .rules
                    .iter()
                    .map(|rule| rule.failure(&asked))
                    .collect(),
            })
            .collect()
    }

    fn answer(&self, asked: &Asked<'_>) -> Answer {
        let demand = self.mtls(asked.destination.port());
        if let Some(demand) = demand.filter(|mtls| mtls.strict && asked.identity.is_none()) {
            let policy = demand.policy.clone();
            // Whatever else is enforced, this stands.
            return (Err(Denial::PlaintextRefused { policy }), Vec::new());
        }
        let by_policies = || {
            let judged = self.judge(asked);
            let dry_run = self.rehearse(asked, &judged);
            (judged, dry_run)
        };
        match &self.0.memo {
            Some(memo) => memo.answer(asked, by_policies),
            None => by_policies(),
        }
    }

    /// What the AuthorizationPolicies say.
    fn judge(&self, asked: &Asked<'_>) -> Result<Option<Grant>, Denial> {
        let bound = &*self.0;
        if let Some(policy) = &bound.unreadable {
            let policy = policy.written.name.clone();
            return Err(Denial::NotUnderstood { policy });
        }
        if let Some((policy, rule)) = bound.deny.first(asked) {
            let policy = policy.written.name.clone();
            return Err(Denial::Denied { policy, rule });
        }
        if bound.allow.is_empty() {
            return Ok(None);
        }
        let (policy, rule) = bound.allow.first(asked).ok_or(Denial::NotAllowed)?;
        let policy = policy.written.name.clone();
        Ok(Some(Grant { policy, rule }))
    }

    /// The dry-run policies because of which the judgement would be the opposite, were all of
    /// them enforced.
    fn rehearse(&self, asked: &Asked<'_>, judged: &Result<Option<Grant>, Denial>) -> Vec<DryRun> {
        let dry_run = &self.0.dry_run;
        let permitted = match judged {
            Ok(_) => true,
            Err(Denial::NotAllowed) => false,
            // Whatever else is enforced, these stand.
            Err(_) => return Vec::new(),
        };
        if dry_run.is_empty() {
            return Vec::new();
        }
        let refusing: Vec<DryRun> = dry_run.iter().filter_map(|p| refuses(p, asked)).collect();
        if !refusing.is_empty() {
            return if permitted { refusing } else { Vec::new() };
        }
        let allow = || dry_run.iter().filter(|p| p.action() == Some(Action::Allow));
        let allowing: Vec<DryRun> = allow().filter_map(|p| allows(p, asked)).collect();
        if !permitted {
            return allowing;
        }
        let granted = matches!(judged, Ok(Some(_)));
        if granted || !allowing.is_empty() {
            return Vec::new();
        }
        let not_allow = allow().map(|policy| DryRun {
            policy: policy.written.name.clone(),
            would: Would::NotAllow,
        });
        not_allow.collect()
    }
}

fn refuses(policy: &Policy, asked: &Asked<'_>) -> Option<DryRun> {
    let would = match policy.action() {
        None => Would::Refuse,
        Some(Action::Allow) => return None,
        Some(Action::Deny) => Would::Deny {
            rule: policy.first(asked)?,
        },
    };
    Some(DryRun {
        policy: policy.written.name.clone(),
        would,
    })
}

fn allows(policy: &Policy, asked: &Asked<'_>) -> Option<DryRun> {
    Some(DryRun {
        policy: policy.written.name.clone(),
        would: Would::Allow {
            rule: policy.first(asked)?,
        },
    })
}
