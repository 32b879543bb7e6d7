//! Whom the rules of an AuthorizationPolicy name, and whether there is anybody of that name.

use std::collections::BTreeSet;
use std::fmt;

use crate::mesh::policy::{AuthorizationPolicy, Body, Condition, Pattern, ServiceAccount, Values};
use crate::mesh::{Identity, TrustDomain};

/// Who is there.
pub(crate) struct Known<'k> {
    domain: &'k TrustDomain,
    namespaces: BTreeSet<&'k str>,
    /// `None` where they are not known.
    accounts: Option<BTreeSet<(&'k str, &'k str)>>,
    /// The same as principals are written.
    principals: Vec<String>,
}

/// Why a name may be wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Doubt {
    /// Another trust domain than the mesh's.
    Domain(String),
    /// Nobody has that name.
    Absent(String),
}

impl fmt::Display for Doubt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Domain(text) | Self::Absent(text) => f.write_str(text),
        }
    }
}

impl<'k> Known<'k> {
    pub(crate) fn new(
        domain: &'k TrustDomain,
        namespaces: impl Iterator<Item = &'k str>,
        accounts: Option<&'k [(String, String)]>,
    ) -> Self {
        let pairs = accounts.map(|all| all.iter().map(|(ns, name)| (ns.as_str(), name.as_str())));
        let accounts: Option<BTreeSet<_>> = pairs.map(Iterator::collect);
        let written = accounts.iter().flatten();
        let written = written.map(|(ns, name)| format!("{domain}/ns/{ns}/sa/{name}"));
        Self {
            domain,
            namespaces: namespaces.collect(),
            principals: written.collect(),
            accounts,
        }
    }

    /// Each doubtful name with its place in the policy.
    pub(crate) fn doubts(&self, policy: &AuthorizationPolicy) -> Vec<(String, Doubt)> {
        let Body::Rules { rules, .. } = &policy.body else {
            return Vec::new();
        };
        let mut found = Vec::new();
        for (number, rule) in rules.iter().enumerate() {
            for (at, source) in rule.from.iter().enumerate() {
                let place = format!("rules[{number}].from[{at}]");
                let mut note = |doubt| found.push((place.clone(), doubt));
                each(&source.principals)
                    .filter_map(|p| self.principal(p))
                    .for_each(&mut note);
                each(&source.namespaces)
                    .filter_map(|p| self.namespace(p))
                    .for_each(&mut note);
                let accounts = each(&source.service_accounts);
                accounts.filter_map(|a| self.account(a)).for_each(&mut note);
            }
            for (at, condition) in rule.when.iter().enumerate() {
                let place = format!("rules[{number}].when[{at}]");
                let mut note = |doubt| found.push((place.clone(), doubt));
                match condition {
                    Condition::SourcePrincipal(values) => {
                        each(values)
                            .filter_map(|p| self.principal(p))
                            .for_each(&mut note);
                    }
                    Condition::SourceNamespace(values) => {
                        each(values)
                            .filter_map(|p| self.namespace(p))
                            .for_each(&mut note);
                    }
                    Condition::SourceServiceAccount(values) => {
                        each(values)
                            .filter_map(|a| self.account(a))
                            .for_each(&mut note);
                    }
                    _ => {}
                }
            }
        }
        found
    }

    fn principal(&self, pattern: &Pattern) -> Option<Doubt> {
        match pattern {
            Pattern::Present => None,
            // What is no identity at all is a notice of the policy's already.
            Pattern::Exact(text) => {
                let identity = Identity::parse(&format!("spiffe://{text}")).ok()?;
                if identity.trust_domain() != self.domain {
                    return Some(self.foreign(text));
                }
                self.at(identity.namespace(), identity.service_account())
            }
            Pattern::Prefix(text) => {
                let domain = text.split_once('/').map(|(domain, _)| domain);
                if domain.is_some_and(|domain| domain != self.domain.as_str()) {
                    return Some(self.foreign(&format!("{text}*")));
                }
                self.nobody(pattern, &format!("{text}*"))
            }
            Pattern::Suffix(text) => self.nobody(pattern, &format!("*{text}")),
        }
    }

    fn foreign(&self, text: &str) -> Doubt {
        Doubt::Domain(format!("{text:?} is not of {}", self.domain))
    }

    fn nobody(&self, pattern: &Pattern, text: &str) -> Option<Doubt> {
        self.accounts.as_ref()?;
        let mut all = self.principals.iter();
        let some = all.any(|principal| pattern.matches(Some(principal)));
        (!some).then(|| Doubt::Absent(format!("{text:?} matches no service account")))
    }

    fn namespace(&self, pattern: &Pattern) -> Option<Doubt> {
        let some = self
            .namespaces
            .iter()
            .any(|name| pattern.matches(Some(name)));
        let text = match pattern {
            Pattern::Present => return None,
            Pattern::Exact(text) => text.to_string(),
            Pattern::Prefix(text) => format!("{text}*"),
            Pattern::Suffix(text) => format!("*{text}"),
        };
        (!some).then(|| Doubt::Absent(format!("there is no namespace {text:?}")))
    }

    fn account(&self, account: &ServiceAccount) -> Option<Doubt> {
        self.at(&account.namespace, &account.name)
    }

    fn at(&self, namespace: &str, name: &str) -> Option<Doubt> {
        if !self.namespaces.contains(namespace) {
            return Some(Doubt::Absent(format!(
                "there is no namespace {namespace:?}"
            )));
        }
        let accounts = self.accounts.as_ref()?;
        (!accounts.contains(&(namespace, name)))
            .then(|| Doubt::Absent(format!("there is no service account {namespace}/{name}")))
    }
}

fn each<T>(values: &Values<T>) -> impl Iterator<Item = &T> {
    values.any.iter().chain(&values.none)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn names_are_those_of_somebody() {
        let domain = TrustDomain::parse("cluster.local").unwrap();
        let accounts = [("shop", "web"), ("shop", "default"), ("jobs", "default")];
        let accounts = accounts.map(|(ns, name)| (ns.to_owned(), name.to_owned()));
        let known = Known::new(&domain, ["shop", "jobs"].into_iter(), Some(&accounts));
        let check = |field: &str, text: &str, expect: Option<(&str, &str)>| {
            let spec = json!({ "rules": [{ "from": [{ "source": { field: [text] } }] }] });
            let policy = AuthorizationPolicy::read("p", "shop", [("", "")], &spec);
            let mut found = known.doubts(&policy);
            match (found.pop(), expect) {
                (None, None) => {}
                (Some((at, doubt)), Some((kind, words))) => {
                    assert_eq!(at, "rules[0].from[0]");
                    let domain = matches!(doubt, Doubt::Domain(_));
                    assert_eq!(domain, kind == "domain", "{text}: {doubt}");
                    assert!(doubt.to_string().contains(words), "{text}: {doubt}");
                }
                (found, _) => panic!("{field} {text}: {found:?}"),
            }
        };
        let absent = |words| Some(("absent", words));
        check("principals", "cluster.local/ns/shop/sa/web", None);
        check("principals", "spiffe://cluster.local/ns/shop/sa/web", None);
        check("principals", "*", None);
        check("principals", "cluster.local/ns/shop/*", None);
        check("principals", "*/sa/default", None);
        check("principals", "no identity", None);
        check(
            "principals",
            "cluster.local/ns/shop/sa/wbe",
            absent("shop/wbe"),
        );
        check(
            "principals",
            "cluster.local/ns/shpo/sa/web",
            absent("namespace \"shpo\""),
        );
        check(
            "principals",
            "cluster.local/ns/shpo/*",
            absent("matches no"),
        );
        check("principals", "*/sa/wbe", absent("matches no"));
        check(
            "principals",
            "acme.org/ns/shop/sa/web",
            Some(("domain", "acme.org")),
        );
        check(
            "principals",
            "acme.org/ns/shop/*",
            Some(("domain", "cluster.local")),
        );
        check(
            "notPrincipals",
            "cluster.local/ns/shop/sa/wbe",
            absent("shop/wbe"),
        );
        check("namespaces", "shop", None);
        check("namespaces", "sh*", None);
        check("namespaces", "shpo", absent("\"shpo\""));
        check("namespaces", "x-*", absent("\"x-*\""));
        check("serviceAccounts", "web", None);
        check("serviceAccounts", "jobs/web", absent("jobs/web"));
    }
}
