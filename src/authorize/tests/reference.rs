//! A plain evaluator, written down from the rules in the stage's header with no thought of speed,
//! over the policies as they were written.

use crate::authorize::{Denial, DryRun, Would};
use crate::mesh::policy::{
    Action, AuthorizationPolicy, Body, Condition, Mode, Pattern, PeerAuthentication, PolicyName,
    Requirement, Rule, ServiceAccount, Values,
};
use crate::mesh::{Flow, Path, Workload};

pub(super) struct Reference<'w> {
    pub(super) root: &'w str,
    pub(super) trust_domain: &'w str,
    pub(super) authorization: &'w [AuthorizationPolicy],
    pub(super) peer: &'w [PeerAuthentication],
}

type Judgement = Result<Option<(PolicyName, usize)>, Denial>;

impl Reference<'_> {
    pub(super) fn decide(&self, workload: &Workload, flow: &Flow) -> (Judgement, Vec<DryRun>) {
        if self.identity(flow).is_none()
            && let Some(policy) = self.strict(workload, flow.destination.addr.port())
        {
            return (Err(Denial::PlaintextRefused { policy }), Vec::new());
        }
        let mut all: Vec<&AuthorizationPolicy> = self.authorization.iter().collect();
        all.retain(|p| self.binds(p.name.namespace(), p.selector.as_ref(), workload));
        all.sort_by_key(|p| (p.name.namespace() != self.root, p.name.clone()));
        let enforced: Vec<_> = all.iter().copied().filter(|p| !p.dry_run).collect();

        let judgement = self.judge(&enforced, flow);
        let rehearsed = self.judge(&all, flow);
        if judgement.is_ok() == rehearsed.is_ok() {
            return (judgement, Vec::new());
        }
        let dry: Vec<_> = all.into_iter().filter(|p| p.dry_run).collect();
        let mut entries = Vec::new();
        for policy in &dry {
            let would = match (&policy.body, &rehearsed) {
                (Body::Refuse { .. }, _) => Some(Would::Refuse),
                (Body::Rules { action, .. }, rehearsed) => match (action, rehearsed) {
                    (Action::Deny, _) => self.rule(policy, flow).map(|rule| Would::Deny { rule }),
                    (Action::Allow, Ok(_)) => {
                        self.rule(policy, flow).map(|rule| Would::Allow { rule })
                    }
                    (Action::Allow, Err(Denial::NotAllowed)) => Some(Would::NotAllow),
                    (Action::Allow, Err(_)) => None,
                },
            };
            let policy = policy.name.clone();
            entries.extend(would.map(|would| DryRun { policy, would }));
        }
        (judgement, entries)
    }

    fn judge(&self, policies: &[&AuthorizationPolicy], flow: &Flow) -> Judgement {
        for policy in policies {
            if let Body::Refuse { .. } = policy.body {
                let policy = policy.name.clone();
                return Err(Denial::NotUnderstood { policy });
            }
        }
        let mut allow_policies = 0;
        let mut granted = None;
        for policy in policies {
            let Body::Rules { action, .. } = &policy.body else {
                continue;
            };
            let matched = self.rule(policy, flow);
            match (action, matched) {
                (Action::Deny, Some(rule)) => {
                    let policy = policy.name.clone();
                    return Err(Denial::Denied { policy, rule });
                }
                (Action::Deny, None) => {}
                (Action::Allow, matched) => {
                    allow_policies += 1;
                    let grant = matched.map(|rule| (policy.name.clone(), rule));
                    granted = granted.or(grant);
                }
            }
        }
        match (allow_policies, granted) {
            (0, _) => Ok(None),
            (_, Some(grant)) => Ok(Some(grant)),
            (_, None) => Err(Denial::NotAllowed),
        }
    }

    fn rule(&self, policy: &AuthorizationPolicy, flow: &Flow) -> Option<usize> {
        let Body::Rules { action, rules } = &policy.body else {
            return None;
        };
        (0..rules.len()).find(|at| self.matches(*action, &rules[*at], flow))
    }

    fn matches(&self, action: Action, rule: &Rule, flow: &Flow) -> bool {
        let http_in_from = rule.from.iter().any(|s| !s.needs_http.is_empty());
        let http_in_to = rule.to.iter().any(|o| !o.needs_http.is_empty());
        let is_http = |c: &Condition| matches!(c, Condition::NeedsHttp(_));
        let http = http_in_from || http_in_to || rule.when.iter().any(is_http);
        if action == Action::Allow && http {
            return false;
        }
        let from = rule.from.iter().any(|source| {
            let asks = !source.principals.any.is_empty()
                || !source.principals.none.is_empty()
                || !source.namespaces.any.is_empty()
                || !source.namespaces.none.is_empty()
                || !source.service_accounts.any.is_empty()
                || !source.service_accounts.none.is_empty()
                || !source.ip_blocks.any.is_empty()
                || !source.ip_blocks.none.is_empty();
            (asks || !source.needs_http.is_empty())
                && self.principal(&source.principals, flow)
                && self.namespace(&source.namespaces, flow)
                && self.account(&source.service_accounts, flow)
                && self.hold(&source.ip_blocks, |b| b.contains(&flow.source.addr.ip()))
        });
        let to = rule.to.iter().any(|operation| {
            let asks = !operation.ports.any.is_empty() || !operation.ports.none.is_empty();
            (asks || !operation.needs_http.is_empty()) && self.port(&operation.ports, flow)
        });
        let when = rule.when.iter().all(|condition| match condition {
            Condition::SourceIp(v) => self.hold(v, |b| b.contains(&flow.source.addr.ip())),
            Condition::SourceNamespace(v) => self.namespace(v, flow),
            Condition::SourcePrincipal(v) => self.principal(v, flow),
            Condition::SourceServiceAccount(v) => self.account(v, flow),
            Condition::DestinationIp(v) => {
                self.hold(v, |b| b.contains(&flow.destination.addr.ip()))
            }
            Condition::DestinationPort(v) => self.port(v, flow),
            Condition::NeedsHttp(_) => true,
        });
        (rule.from.is_empty() || from) && (rule.to.is_empty() || to) && when
    }

    fn hold<T>(&self, values: &Values<T>, is: impl Fn(&T) -> bool) -> bool {
        (values.any.is_empty() || values.any.iter().any(&is)) && !values.none.iter().any(&is)
    }

    fn principal(&self, values: &Values<Pattern>, flow: &Flow) -> bool {
        let principal = self
            .identity(flow)
            .map(|(domain, namespace, account)| format!("{domain}/ns/{namespace}/sa/{account}"));
        self.hold(values, |pattern| {
            let own = |text: &str| match text.split_once('/') {
                Some(("cluster.local", rest)) => format!("{}/{rest}", self.trust_domain),
                _ => text.to_owned(),
            };
            self.text(pattern, own, principal.as_deref())
        })
    }

    fn namespace(&self, values: &Values<Pattern>, flow: &Flow) -> bool {
        let namespace = self.identity(flow).map(|(_, namespace, _)| namespace);
        self.hold(values, |p| {
            self.text(p, str::to_owned, namespace.as_deref())
        })
    }

    fn account(&self, values: &Values<ServiceAccount>, flow: &Flow) -> bool {
        let account = self
            .identity(flow)
            .map(|(_, namespace, name)| (namespace, name));
        self.hold(values, |wanted| {
            account == Some((wanted.namespace.to_string(), wanted.name.to_string()))
        })
    }

    fn port(&self, values: &Values<u16>, flow: &Flow) -> bool {
        self.hold(values, |port| flow.destination.addr.port() == *port)
    }

    fn text(&self, p: &Pattern, meant: impl Fn(&str) -> String, text: Option<&str>) -> bool {
        let Some(text) = text else { return false };
        match p {
            Pattern::Present => true,
            Pattern::Exact(p) => text == meant(p),
            Pattern::Prefix(p) => text.starts_with(&meant(p)),
            Pattern::Suffix(p) => text.ends_with(&**p),
        }
    }

    fn identity(&self, flow: &Flow) -> Option<(String, String, String)> {
        let identity = flow.source.identity.as_ref()?;
        (flow.path != Path::Plain).then(|| {
            let domain = identity.trust_domain().to_string();
            let namespace = identity.namespace().to_owned();
            (domain, namespace, identity.service_account().to_owned())
        })
    }

    fn binds(
        &self,
        namespace: &str,
        selector: Option<&crate::mesh::Selector>,
        workload: &Workload,
    ) -> bool {
        let near = namespace == self.root || namespace == &*workload.namespace;
        near && selector.is_none_or(|selector| {
            let pairs = selector.labels().pairs().iter();
            pairs.fold(true, |all, (key, value)| {
                all && workload.labels.get(key) == Some(value)
            })
        })
    }

    /// Who demands mutual TLS on `port`, looking from the narrowest level to the widest.
    fn strict(&self, workload: &Workload, port: u16) -> Option<PolicyName> {
        let mut bound: Vec<&PeerAuthentication> = self.peer.iter().collect();
        bound.retain(|p| self.binds(p.name.namespace(), p.selector.as_ref(), workload));
        bound.sort_by_key(|p| p.name.clone());
        for policy in &bound {
            if let Requirement::Unreadable { .. } = policy.requirement {
                return Some(policy.name.clone());
            }
        }
        bound.sort_by_key(|p| (p.created.is_none(), p.created.clone(), p.name.clone()));
        for (in_root, selects) in [(false, true), (false, false), (true, true), (true, false)] {
            let on_level = |p: &&&PeerAuthentication| {
                (p.name.namespace() == self.root, p.selector.is_some()) == (in_root, selects)
            };
            let Some(oldest) = bound.iter().find(on_level) else {
                continue;
            };
            let Requirement::Modes { mode, ports } = &oldest.requirement else {
                continue;
            };
            let on_port = ports.get(&port).copied().unwrap_or(Mode::Unset);
            for mode in [on_port, *mode] {
                match mode {
                    Mode::Unset => {}
                    Mode::Strict => return Some(oldest.name.clone()),
                    Mode::Disable | Mode::Permissive => return None,
                }
            }
        }
        None
    }
}
