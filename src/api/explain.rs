//! The answer to "may this pod reach that one, and which policy says so?"
//!
//! `explain` fills it in, on a node or offline; `Display` tells it to people.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What would become of a connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// Who would connect.
    pub source: End,
    /// The address and port that would be dialled.
    pub dialled: String,
    /// The service that address belongs to, as `namespace/name`.
    pub service: Option<String>,
    /// The way the connection would take.
    pub route: Route,
    /// Who would serve it, where that is known.
    pub destination: Option<End>,
    /// What is demanded of peers; absent where no policy is enforced.
    pub mtls: Option<Mtls>,
    /// Every AuthorizationPolicy that binds the destination, in the order of precedence of names.
    pub policies: Vec<Policy>,
    /// The decision.
    pub verdict: Verdict,
    /// The dry-run policies that would turn the decision into its opposite.
    pub dry_run: Vec<DryRun>,
    /// What the authors of these policies, or the one who asks, should know.
    pub notices: Vec<String>,
}

/// One end of the connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// `namespace/name` of the pod; absent for an address that is no pod's.
    pub pod: Option<String>,
    /// Its address.
    pub address: String,
    /// Its identity; absent for an address that is no pod's.
    pub identity: Option<String>,
    /// `enrolled`, or why the mesh does not carry it.
    pub enrolment: String,
}

/// The way a connection would take.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// `tunnel`, `same_node`, `plain` (no identity is proven), `local` (not captured) or `none`.
    pub path: String,
    /// The address and port that would serve it.
    pub to: Option<String>,
    /// The tunnel address in front of it.
    pub via: Option<String>,
}

/// What is demanded of peers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mtls {
    /// `STRICT` or `PERMISSIVE`.
    pub mode: String,
    /// The PeerAuthentication that decided, as `namespace/name`; absent by default.
    pub policy: Option<String>,
    /// The level on which it decided.
    pub level: String,
}

/// An AuthorizationPolicy that was considered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// `namespace/name`
    pub name: String,
    /// `mesh`, `namespace` or `workload`.
    pub scope: String,
    /// `ALLOW`, `DENY`, or `REFUSE` for one that was not understood.
    pub action: String,
    /// Whether it is not enforced.
    pub dry_run: bool,
    /// Each of `spec.rules`: what failed first, or nothing where the rule matches.
    pub rules: Vec<Option<String>>,
}

/// The decision.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// Whether the connection may proceed.
    pub permitted: bool,
    /// A stable word for why.
    pub reason: String,
    /// The policy that decided, as `namespace/name`.
    pub policy: Option<String>,
    /// The index in its `spec.rules` of the rule that decided.
    pub rule: Option<usize>,
    /// The same, as a sentence.
    pub text: String,
}

/// A dry-run policy that would turn the decision into its opposite.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DryRun {
    /// `namespace/name`
    pub policy: String,
    /// A stable word for what it would do.
    pub would: String,
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = if self.verdict.permitted {
            "permitted"
        } else {
            "refused"
        };
        writeln!(f, "{word}: {}", self.verdict.text)?;
        writeln!(f)?;
        writeln!(f, "source       {}", self.source)?;
        write!(f, "dialled      {}", self.dialled)?;
        match &self.service {
            Some(service) => writeln!(f, " (service {service})")?,
            None => writeln!(f)?,
        }
        writeln!(f, "route        {}", self.route)?;
        if let Some(destination) = &self.destination {
            writeln!(f, "destination  {destination}")?;
        }
        if let Some(mtls) = &self.mtls {
            writeln!(f, "mTLS         {mtls}")?;
        }
        list(f, "policies", &self.policies)?;
        let dry_run = self.dry_run.iter();
        let dry_run: Vec<_> = dry_run
            .map(|d| format!("{} {}", d.policy, d.would))
            .collect();
        list(f, "dry run", &dry_run)?;
        list(f, "notices", &self.notices)
    }
}

/// Items below one another, the first behind the heading; nothing where there are none.
fn list(f: &mut fmt::Formatter<'_>, heading: &str, items: &[impl fmt::Display]) -> fmt::Result {
    for (at, item) in items.iter().enumerate() {
        let heading = if at == 0 { heading } else { "" };
        writeln!(f, "{heading:<13}{item}")?;
    }
    Ok(())
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pod = self.pod.as_deref().unwrap_or("no pod known");
        write!(f, "{pod} at {}, {}", self.address, self.enrolment)?;
        match &self.identity {
            Some(identity) => write!(f, ", {identity}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.path)?;
        if let Some(to) = &self.to {
            write!(f, " to {to}")?;
        }
        if let Some(via) = &self.via {
            write!(f, " via {via}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Mtls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.policy {
            Some(policy) => write!(
                f,
                "{}, by PeerAuthentication {policy} ({})",
                self.mode, self.level
            ),
            None => write!(f, "{}, by {}", self.mode, self.level),
        }
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dry_run = if self.dry_run { ", dry run" } else { "" };
        write!(f, "{} {} ({}{dry_run})", self.action, self.name, self.scope)?;
        if self.rules.is_empty() && self.action != "REFUSE" {
            write!(f, "\n{:<15}no rules, so nothing matches", "")?;
        }
        for (at, failed) in self.rules.iter().enumerate() {
            match failed {
                Some(failed) => write!(f, "\n{:<15}rules[{at}] fails: {failed}", "")?,
                None => write!(f, "\n{:<15}rules[{at}] matches", "")?,
            }
        }
        Ok(())
    }
}
