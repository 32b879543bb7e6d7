//! Finds the first matching rule among many without trying them all.
//!
//! Most rules cannot match unless the flow has one of a few exact attributes: a service account,
//! an address in a block, a namespace, a port. Each rule is filed under hashes of those of its
//! scarcest clause, and a decision tries only the rules filed under the flow's own attributes and
//! the few that could not be filed. A hash that collides costs one more try and nothing else,
//! since every rule found is matched in full.

use std::collections::HashMap;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher, Hash};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::authorize::compile::{Asked, Policy};
use crate::mesh::Identity;
use crate::mesh::policy::{Condition, Operation, Pattern, Rule, ServiceAccount, Source, Values};

/// What a rule is filed under: at least one of these is true of every flow it matches.
pub(super) type Keys = Vec<Key>;

/// An attribute that a flow must have exactly.
#[derive(Clone, Debug)]
pub(super) enum Key {
    Account {
        namespace: Box<str>,
        name: Box<str>,
    },
    /// A service account of that name in any namespace.
    Name(Box<str>),
    Block(IpNet),
    Namespace(Arc<str>),
    Port(u16),
}

/// How scarce flows with such a key are; lower is scarcer.
fn rank(keys: &Keys) -> u8 {
    let ranks = keys.iter().map(|key| match key {
        Key::Account { .. } => 0,
        Key::Name(_) => 1,
        Key::Block(_) => 2,
        Key::Namespace(_) => 3,
        Key::Port(_) => 4,
    });
    ranks.max().unwrap_or(0)
}

/// The keys of a rule's scarcest clause; `None` where no clause has any.
pub(super) fn keys(rule: &Rule) -> Option<Keys> {
    let any = |list: Vec<Option<Keys>>| list.into_iter().collect::<Option<Vec<_>>>();
    let from = rule.from.iter().filter(|source| !source.is_empty());
    let from = (!rule.from.is_empty()).then(|| any(from.map(source_keys).collect()));
    let to = rule.to.iter().filter(|operation| !operation.is_empty());
    let to = (!rule.to.is_empty()).then(|| any(to.map(operation_keys).collect()));
    let clauses = [from, to]
        .into_iter()
        .flatten()
        .flatten()
        .map(|k| k.concat());
    let when = rule.when.iter().filter_map(condition_keys);
    clauses.chain(when).min_by_key(rank)
}

fn source_keys(source: &Source) -> Option<Keys> {
    let fields = [
        principal_keys(&source.principals),
        account_keys(&source.service_accounts),
        block_keys(&source.ip_blocks),
        namespace_keys(&source.namespaces),
    ];
    fields.into_iter().flatten().min_by_key(rank)
}

fn operation_keys(operation: &Operation) -> Option<Keys> {
    port_keys(&operation.ports)
}

fn condition_keys(condition: &Condition) -> Option<Keys> {
    match condition {
        Condition::SourceIp(values) => block_keys(values),
        Condition::SourceNamespace(values) => namespace_keys(values),
        Condition::SourcePrincipal(values) => principal_keys(values),
        Condition::SourceServiceAccount(values) => account_keys(values),
        Condition::DestinationPort(values) => port_keys(values),
        Condition::DestinationIp(_) | Condition::NeedsHttp(_) => None,
    }
}

/// `None` where the list asks for nothing, or for something that has no key.
fn all<T>(values: &Values<T>, key: impl Fn(&T) -> Option<Keys>) -> Option<Keys> {
    let keys: Option<Vec<Keys>> = values.any.iter().map(key).collect();
    keys.map(|keys| keys.concat())
        .filter(|_| !values.any.is_empty())
}

/// A principal is `domain/ns/namespace/sa/account`, so that a pattern with a whole segment in it
/// says that much exactly. The domain is no part of a key, so `cluster.local` needs no thought.
fn principal_keys(values: &Values<Pattern>) -> Option<Keys> {
    let account = |namespace: &str, name: &str| Key::Account {
        namespace: namespace.into(),
        name: name.into(),
    };
    all(values, |pattern| match pattern {
        Pattern::Exact(text) => {
            let identity = Identity::parse(&["spiffe://", text].concat());
            // A text that is no identity's equals none, and needs no key.
            let key = identity.map(|one| account(one.namespace(), one.service_account()));
            Some(key.into_iter().collect())
        }
        Pattern::Prefix(text) => match text.split('/').collect::<Vec<_>>()[..] {
            [_, "ns", namespace, _, ..] => Some(vec![Key::Namespace(namespace.into())]),
            _ => None,
        },
        Pattern::Suffix(text) => match text.split('/').collect::<Vec<_>>()[..] {
            [.., _, "ns", namespace, "sa", name] => Some(vec![account(namespace, name)]),
            [_, .., name] => Some(vec![Key::Name(name.into())]),
            _ => None,
        },
        Pattern::Present => None,
    })
}

fn account_keys(values: &Values<ServiceAccount>) -> Option<Keys> {
    all(values, |account| {
        Some(vec![Key::Account {
            namespace: (*account.namespace).into(),
            name: (*account.name).into(),
        }])
    })
}

fn block_keys(values: &Values<IpNet>) -> Option<Keys> {
    all(values, |net| Some(vec![Key::Block(*net)]))
}

fn namespace_keys(values: &Values<Pattern>) -> Option<Keys> {
    all(values, |pattern| match pattern {
        Pattern::Exact(text) => Some(vec![Key::Namespace(Arc::clone(text))]),
        _ => None,
    })
}

fn port_keys(values: &Values<u16>) -> Option<Keys> {
    all(values, |port| Some(vec![Key::Port(*port)]))
}

fn hash_account(namespace: &str, name: &str) -> u64 {
    hash(&(0u8, namespace, name))
}

fn hash_name(name: &str) -> u64 {
    hash(&(4u8, name))
}

fn hash_block(net: IpNet) -> u64 {
    hash(&(1u8, net.network(), net.prefix_len()))
}

fn hash_namespace(namespace: &str) -> u64 {
    hash(&(2u8, namespace))
}

fn hash_port(port: u16) -> u64 {
    hash(&(3u8, port))
}

fn hash(key: &impl Hash) -> u64 {
    BuildHasherDefault::<DefaultHasher>::default().hash_one(key)
}

impl Key {
    fn hash(&self) -> u64 {
        match self {
            Self::Account { namespace, name } => hash_account(namespace, name),
            Self::Name(name) => hash_name(name),
            Self::Block(net) => hash_block(*net),
            Self::Namespace(namespace) => hash_namespace(namespace),
            Self::Port(port) => hash_port(*port),
        }
    }
}

/// The rules of several policies, in order.
#[derive(Debug, Default)]
pub(super) struct RuleSet {
    policies: Vec<Arc<Policy>>,
    /// Index of the policy, and index of the rule in it.
    rules: Vec<(u32, u32)>,
    /// Indices into `rules`, ascending, by key.
    filed: HashMap<u64, Vec<u32>>,
    /// The block lengths among the keys, with whether they are of IPv4.
    lengths: Vec<(bool, u8)>,
    /// Whether any key is of a service account, a namespace, a port, an account's name.
    has: [bool; 4],
    /// Indices into `rules`, ascending, of those that have no key.
    unfiled: Vec<u32>,
}

impl RuleSet {
    /// The rules of `policies`, in their order.
    pub(super) fn new(policies: Vec<Arc<Policy>>) -> Self {
        let mut set = Self::default();
        for (at, policy) in (0u32..).zip(&policies) {
            for (rule_at, rule) in (0u32..).zip(&policy.rules) {
                let id = u32::try_from(set.rules.len()).unwrap_or(u32::MAX);
                set.rules.push((at, rule_at));
                match &rule.keys {
                    None => set.unfiled.push(id),
                    Some(keys) => keys.iter().for_each(|key| set.file(key, id)),
                }
            }
        }
        set.policies = policies;
        set
    }

    fn file(&mut self, key: &Key, id: u32) {
        let rules = self.filed.entry(key.hash()).or_default();
        if rules.last() != Some(&id) {
            rules.push(id);
        }
        match key {
            Key::Account { .. } => self.has[0] = true,
            Key::Namespace(_) => self.has[1] = true,
            Key::Port(_) => self.has[2] = true,
            Key::Name(_) => self.has[3] = true,
            Key::Block(net) => {
                let length = (net.addr().is_ipv4(), net.prefix_len());
                if !self.lengths.contains(&length) {
                    self.lengths.push(length);
                }
            }
        }
    }

    /// Whether no policy is in it.
    pub(super) fn is_empty(&self) -> bool {
        self.policies.is_empty()
    }

    /// How many rules are tried for every flow.
    pub(super) fn unfiled(&self) -> usize {
        self.unfiled.len()
    }

    /// The first rule that matches, with its policy.
    pub(super) fn first(&self, asked: &Asked<'_>) -> Option<(&Policy, usize)> {
        let mut best = None;
        self.look(&self.unfiled, asked, &mut best);
        if let Some(identity) = asked.identity {
            let namespace = identity.namespace();
            if self.has[0] {
                let key = hash_account(namespace, identity.service_account());
                self.look_under(key, asked, &mut best);
            }
            if self.has[1] {
                self.look_under(hash_namespace(namespace), asked, &mut best);
            }
            if self.has[3] {
                self.look_under(hash_name(identity.service_account()), asked, &mut best);
            }
        }
        if self.has[2] {
            self.look_under(hash_port(asked.destination.port()), asked, &mut best);
        }
        for (v4, length) in &self.lengths {
            if let Some(net) = network(asked.source, *v4, *length) {
                self.look_under(hash_block(net), asked, &mut best);
            }
        }
        best.map(|id| {
            let (policy, rule) = self.rules[id as usize];
            (&*self.policies[policy as usize], rule as usize)
        })
    }

    fn look_under(&self, key: u64, asked: &Asked<'_>, best: &mut Option<u32>) {
        if let Some(rules) = self.filed.get(&key) {
            self.look(rules, asked, best);
        }
    }

    fn look(&self, rules: &[u32], asked: &Asked<'_>, best: &mut Option<u32>) {
        for id in rules {
            if best.is_some_and(|best| best <= *id) {
                return;
            }
            let (policy, rule) = self.rules[*id as usize];
            if self.policies[policy as usize].rules[rule as usize].matches(asked) {
                *best = Some(*id);
                return;
            }
        }
    }
}

/// The block of that length around `ip`, where it is of that family.
fn network(ip: IpAddr, v4: bool, length: u8) -> Option<IpNet> {
    (ip.is_ipv4() == v4)
        .then(|| IpNet::new(ip, length).ok())
        .flatten()
        .map(|net| net.trunc())
}
