//! Policies in the form that is quick to match: rule = all of its clauses, clause = any of its
//! matches, match = all of its tests, test = an attribute among values, or not.
//!
//! Here HTTP fields meet their layer 4 reading and `cluster.local` its meaning. The same matching
//! code serves decisions and explanations.

use std::cell::OnceCell;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::authorize::index::{Keys, keys};
use crate::authorize::ranges::Ranges;
use crate::mesh::policy::{
    Action, AuthorizationPolicy, Body, Condition, Operation, Pattern, ServiceAccount, Source,
    Values,
};
use crate::mesh::{Flow, Identity, TrustDomain, canonical, canonical_ip, policy};

/// What policies may ask about a flow.
pub(super) struct Asked<'f> {
    /// Who the source has proven to be, on a path that proves it.
    pub(super) identity: Option<&'f Identity>,
    /// The TCP peer of this hop.
    pub(super) source: IpAddr,
    /// The pod's address and port.
    pub(super) destination: SocketAddr,
    principal: OnceCell<String>,
}

impl<'f> Asked<'f> {
    /// The attributes of `flow`. An identity on a plaintext path was not proven on this
    /// connection, and does not count.
    pub(super) fn of(flow: &'f Flow) -> Self {
        let identity = flow.source.identity.as_ref();
        Self {
            identity: identity.filter(|_| flow.path.authenticated()),
            source: canonical_ip(flow.source.addr.ip()),
            destination: canonical(flow.destination.addr),
            principal: OnceCell::new(),
        }
    }

    fn namespace(&self) -> Option<&str> {
        self.identity.map(Identity::namespace)
    }

    /// The identity's text without `spiffe://`, made when a pattern first asks for it.
    fn principal(&self) -> Option<&str> {
        let identity = self.identity?;
        Some(self.principal.get_or_init(|| {
            let domain = identity.trust_domain();
            let (namespace, account) = (identity.namespace(), identity.service_account());
            [domain.as_str(), "/ns/", namespace, "/sa/", account].concat()
        }))
    }
}

/// A compiled policy.
#[derive(Debug)]
pub(super) struct Policy {
    /// The policy as it was written.
    pub(super) written: Arc<AuthorizationPolicy>,
    /// Its rules, by their index in `spec.rules`; none where it refuses.
    pub(super) rules: Box<[Rule]>,
}

impl Policy {
    pub(super) fn new(written: AuthorizationPolicy, own: &TrustDomain) -> Self {
        let rules = match &written.body {
            Body::Refuse { .. } => Box::default(),
            Body::Rules { action, rules } => {
                let rules = rules.iter();
                rules.map(|rule| Rule::new(rule, *action, own)).collect()
            }
        };
        Self {
            written: Arc::new(written),
            rules,
        }
    }

    /// What the policy does with flows that match; `None` where it refuses all.
    pub(super) fn action(&self) -> Option<Action> {
        match self.written.body {
            Body::Rules { action, .. } => Some(action),
            Body::Refuse { .. } => None,
        }
    }

    /// Every list of values that a rule compares with.
    pub(super) fn sets(&self) -> impl Iterator<Item = &Set> {
        let clauses = self.rules.iter().flat_map(|rule| &rule.clauses);
        let matches = clauses.flat_map(|clause| &clause.matches);
        let tests = matches.flat_map(|one| &one.tests);
        tests.map(|test| &test.values)
    }

    /// The index of the first rule that matches.
    pub(super) fn first(&self, asked: &Asked<'_>) -> Option<usize> {
        self.rules.iter().position(|rule| rule.matches(asked))
    }
}

/// A compiled rule: all clauses must hold.
#[derive(Debug)]
pub(super) struct Rule {
    /// Whether it is an ALLOW rule with HTTP fields, and so never matches.
    never: bool,
    clauses: Box<[Clause]>,
    /// Under what it can be found in an index; `None` where it may match anything, and an empty
    /// list where it matches nothing.
    pub(super) keys: Option<Keys>,
}

impl Rule {
    fn new(rule: &policy::Rule, action: Action, own: &TrustDomain) -> Self {
        let never = action == Action::Allow && rule.needs_http().next().is_some();
        let from = (!rule.from.is_empty()).then(|| Clause::from(&rule.from, own));
        let to = (!rule.to.is_empty()).then(|| Clause::to(&rule.to));
        let when = rule.when.iter().enumerate();
        let when = when.filter_map(|(at, condition)| Clause::when(at, condition, own));
        Self {
            never,
            clauses: from.into_iter().chain(to).chain(when).collect(),
            keys: if never { Some(Keys::new()) } else { keys(rule) },
        }
    }

    /// Whether the rule matches.
    pub(super) fn matches(&self, asked: &Asked<'_>) -> bool {
        !self.never && self.clauses.iter().all(|clause| clause.matches(asked))
    }

    /// Why the rule does not match, by the first part that fails; `None` when it matches.
    pub(super) fn failure(&self, asked: &Asked<'_>) -> Option<String> {
        if self.never {
            return Some("needs what layer 4 does not serve".to_owned());
        }
        let mut clauses = self.clauses.iter();
        let failed = clauses.find(|clause| !clause.matches(asked))?;
        Some(failed.failure(asked))
    }
}

/// A part of a rule: one of its matches must hold.
#[derive(Debug)]
struct Clause {
    place: Place,
    matches: Box<[Match]>,
}

#[derive(Clone, Copy, Debug)]
enum Place {
    From,
    To,
    When(usize),
}

/// One source, operation or condition: all its tests must hold.
#[derive(Debug)]
struct Match {
    at: usize,
    tests: Box<[Test]>,
}

/// One list of one field.
#[derive(Debug)]
struct Test {
    field: &'static str,
    /// Whether the attribute is to be among the values, or not to be.
    among: bool,
    values: Set,
}

/// The values of one list.
#[derive(Debug)]
pub(super) enum Set {
    Principals {
        exact: Box<[Identity]>,
        patterns: Box<[Pattern]>,
    },
    Namespaces {
        exact: Box<[Arc<str>]>,
        patterns: Box<[Pattern]>,
    },
    Accounts(Box<[ServiceAccount]>),
    Sources(Ranges),
    Destinations(Ranges),
    Ports(Box<[u16]>),
}

impl Clause {
    fn matches(&self, asked: &Asked<'_>) -> bool {
        self.matches.iter().any(|one| one.matches(asked))
    }

    fn failure(&self, asked: &Asked<'_>) -> String {
        let (place, part) = match self.place {
            Place::From => ("from".to_owned(), "source."),
            Place::To => ("to".to_owned(), "operation."),
            Place::When(at) => (format!("when[{at}]"), ""),
        };
        match &*self.matches {
            [] => format!("{place} sets no field"),
            [one] => {
                let failed = one.tests.iter().find(|test| !test.holds(asked));
                let field = failed.map_or("", |test| test.field);
                match self.place {
                    Place::When(_) => format!("{place} {field}"),
                    _ => format!("{place}[{}].{part}{field}", one.at),
                }
            }
            several => format!("none of the {} in {place}", several.len()),
        }
    }

    /// Sources without any field match nothing and are left out; ones that lost all their fields
    /// to the layer 4 reading stay, and match everything.
    fn from(sources: &[Source], own: &TrustDomain) -> Self {
        let sources = sources.iter().enumerate().filter(|(_, s)| !s.is_empty());
        let matches = sources.map(|(at, source)| {
            let mut tests = Vec::new();
            let principals = ["principals", "notPrincipals"];
            add(&mut tests, principals, &source.principals, |list| {
                principal_set(list, own)
            });
            let namespaces = ["namespaces", "notNamespaces"];
            add(&mut tests, namespaces, &source.namespaces, namespace_set);
            let accounts = ["serviceAccounts", "notServiceAccounts"];
            add(&mut tests, accounts, &source.service_accounts, account_set);
            let blocks = ["ipBlocks", "notIpBlocks"];
            add(&mut tests, blocks, &source.ip_blocks, |list| {
                Set::Sources(Ranges::new(list))
            });
            let tests = tests.into();
            Match { at, tests }
        });
        Self {
            place: Place::From,
            matches: matches.collect(),
        }
    }

    fn to(operations: &[Operation]) -> Self {
        let operations = operations.iter().enumerate().filter(|(_, o)| !o.is_empty());
        let matches = operations.map(|(at, operation)| {
            let mut tests = Vec::new();
            add(
                &mut tests,
                ["ports", "notPorts"],
                &operation.ports,
                port_set,
            );
            let tests = tests.into();
            Match { at, tests }
        });
        Self {
            place: Place::To,
            matches: matches.collect(),
        }
    }

    /// `None` for a condition that the layer 4 reading drops.
    fn when(at: usize, condition: &Condition, own: &TrustDomain) -> Option<Self> {
        let mut tests = Vec::new();
        let to = &mut tests;
        match condition {
            Condition::SourceIp(list) => {
                add(to, ["source.ip"; 2], list, |l| Set::Sources(Ranges::new(l)));
            }
            Condition::SourceNamespace(list) => {
                add(to, ["source.namespace"; 2], list, namespace_set);
            }
            Condition::SourcePrincipal(list) => {
                add(to, ["source.principal"; 2], list, |l| principal_set(l, own));
            }
            Condition::SourceServiceAccount(list) => {
                add(to, ["source.serviceAccount"; 2], list, account_set);
            }
            Condition::DestinationIp(list) => {
                add(to, ["destination.ip"; 2], list, |l| {
                    Set::Destinations(Ranges::new(l))
                });
            }
            Condition::DestinationPort(list) => {
                add(to, ["destination.port"; 2], list, port_set);
            }
            Condition::NeedsHttp(_) => return None,
        }
        Some(Self {
            place: Place::When(at),
            matches: Box::new([Match {
                at,
                tests: tests.into(),
            }]),
        })
    }
}

fn add<T>(
    tests: &mut Vec<Test>,
    fields: [&'static str; 2],
    values: &Values<T>,
    set: impl Fn(&[T]) -> Set,
) {
    for (field, among, list) in [
        (fields[0], true, &values.any),
        (fields[1], false, &values.none),
    ] {
        if !list.is_empty() {
            let values = set(list);
            tests.push(Test {
                field,
                among,
                values,
            });
        }
    }
}

impl Match {
    fn matches(&self, asked: &Asked<'_>) -> bool {
        self.tests.iter().all(|test| test.holds(asked))
    }
}

impl Test {
    fn holds(&self, asked: &Asked<'_>) -> bool {
        self.values.has(asked) == self.among
    }
}

impl Set {
    fn has(&self, asked: &Asked<'_>) -> bool {
        match self {
            Self::Principals { exact, patterns } => asked.identity.is_some_and(|identity| {
                exact.binary_search(identity).is_ok()
                    || patterns.iter().any(|p| p.matches(asked.principal()))
            }),
            Self::Namespaces { exact, patterns } => asked.namespace().is_some_and(|namespace| {
                let found = exact.binary_search_by(|one| (**one).cmp(namespace));
                found.is_ok() || patterns.iter().any(|p| p.matches(Some(namespace)))
            }),
            Self::Accounts(accounts) => asked.identity.is_some_and(|identity| {
                let wanted = (identity.namespace(), identity.service_account());
                let found = accounts.binary_search_by(|a| (&*a.namespace, &*a.name).cmp(&wanted));
                found.is_ok()
            }),
            Self::Sources(ranges) => ranges.contains(asked.source),
            Self::Destinations(ranges) => ranges.contains(asked.destination.ip()),
            Self::Ports(ports) => ports.binary_search(&asked.destination.port()).is_ok(),
        }
    }
}

/// An exact text that is no identity's is left out: it equals none.
fn principal_set(list: &[Pattern], own: &TrustDomain) -> Set {
    let meant = list.iter().map(|pattern| in_own_domain(pattern, own));
    let (exact, patterns): (Vec<_>, Vec<_>) = meant.partition(|p| matches!(p, Pattern::Exact(_)));
    let mut exact: Vec<Identity> = exact
        .iter()
        .filter_map(|pattern| match pattern {
            Pattern::Exact(text) => Identity::parse(&["spiffe://", text].concat()).ok(),
            _ => None,
        })
        .collect();
    exact.sort_unstable();
    Set::Principals {
        exact: exact.into(),
        patterns: patterns.into(),
    }
}

/// The pattern with `cluster.local/` at its beginning replaced by our own trust domain.
fn in_own_domain(pattern: &Pattern, own: &TrustDomain) -> Pattern {
    let rest = match pattern {
        Pattern::Exact(text) | Pattern::Prefix(text) => text.strip_prefix("cluster.local/"),
        Pattern::Present | Pattern::Suffix(_) => None,
    };
    let meant = rest.map(|rest| Arc::from([own.as_str(), "/", rest].concat()));
    match (pattern, meant) {
        (Pattern::Exact(_), Some(meant)) => Pattern::Exact(meant),
        (Pattern::Prefix(_), Some(meant)) => Pattern::Prefix(meant),
        (other, _) => other.clone(),
    }
}

fn namespace_set(list: &[Pattern]) -> Set {
    let (mut exact, mut patterns) = (Vec::new(), Vec::new());
    for pattern in list {
        match pattern {
            Pattern::Exact(text) => exact.push(Arc::clone(text)),
            other => patterns.push(other.clone()),
        }
    }
    exact.sort_unstable();
    Set::Namespaces {
        exact: exact.into(),
        patterns: patterns.into(),
    }
}

fn account_set(list: &[ServiceAccount]) -> Set {
    let mut sorted = list.to_vec();
    sorted.sort_unstable();
    Set::Accounts(sorted.into())
}

fn port_set(list: &[u16]) -> Set {
    let mut sorted = list.to_vec();
    sorted.sort_unstable();
    Set::Ports(sorted.into())
}
