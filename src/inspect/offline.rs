//! Answers without a node: source files are read as a node would read them, once.
//!
//! `check` says what is wrong in them; `explain` asks the same engine that a node asks.

use std::fmt;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::api::{Policy, Problem};
use crate::authorize::{Change as PolicyChange, Policies, Store};
use crate::explain;
use crate::identify::{Index, Settings, Snapshot};
use crate::inspect::status::place;
use crate::inspect::{Error, Output, print_json};
use crate::mesh::policy::PolicyName;
use crate::source::{Change, Files, Key, Kind, Object, Poll};

/// Longer than [`Files`] takes a file to be in motion.
const SETTLE: Duration = Duration::from_millis(150);

/// What a node would be told.
#[derive(Clone, Debug)]
pub struct Offline {
    /// Files and directories of Kubernetes objects.
    pub sources: Vec<PathBuf>,
    /// How workloads are identified.
    pub settings: Settings,
    /// The namespace whose policies bind the whole mesh.
    pub root_namespace: String,
    /// Whether two pods of one node are joined without a tunnel.
    pub same_node_direct: bool,
}

/// What the files say.
struct Cluster {
    snapshot: Arc<Snapshot>,
    policies: Arc<Policies>,
    problems: Vec<Problem>,
    notes: Vec<String>,
}

impl Offline {
    /// Prints everything that is wrong in the files, and what authors of policies should know.
    /// Returns whether nothing is wrong.
    ///
    /// # Errors
    ///
    /// As `to`.
    pub fn check(&self, to: &mut dyn Write) -> Result<bool, Error> {
        let cluster = self.read();
        for problem in &cluster.problems {
            writeln!(to, "problem: {}", place(problem))?;
        }
        let mut refusing = 0;
        for policy in listed(&cluster.policies) {
            let name = format!("{} {}/{}", policy.kind, policy.namespace, policy.name);
            if let Some(why) = &policy.not_understood {
                refusing += 1;
                writeln!(to, "problem: {name}: refuses, not understood: {why}")?;
            }
            let notices = policy.notices.iter();
            for notice in notices.filter(|notice| notice.kind != "not_understood") {
                writeln!(to, "notice: {name}: {}", notice.message)?;
            }
        }
        for note in &cluster.notes {
            writeln!(to, "note: {note}")?;
        }
        let problems = cluster.problems.len() + refusing;
        writeln!(to, "{cluster}; problems: {problems}")?;
        Ok(problems == 0)
    }

    /// Prints what policy says to a connection. Objects that are wrong are told on `aside`: the
    /// answer is without them.
    ///
    /// # Errors
    ///
    /// [`Error::Question`] when there is no such question, or as `to`.
    pub fn explain(
        &self,
        (source, destination): (&str, &str),
        output: Output,
        to: &mut dyn Write,
        aside: &mut dyn Write,
    ) -> Result<(), Error> {
        let cluster = self.read();
        for problem in &cluster.problems {
            writeln!(aside, "problem: {}", place(problem))?;
        }
        let settings = explain::Settings {
            cluster_domain: &self.settings.cluster_domain,
            same_node_direct: self.same_node_direct,
        };
        let snapshot = &*cluster.snapshot;
        let policies = &cluster.policies;
        let told = explain::explain(snapshot, policies, settings, source, destination)?;
        match output {
            Output::Table => write!(to, "{told}")?,
            Output::Json => print_json(&serde_json::json!(told), to)?,
        }
        Ok(())
    }

    fn read(&self) -> Cluster {
        let poll = read_once(self.sources.clone());
        let mut index = Index::new(self.settings.clone());
        let rejected = index.apply(&poll.changes);
        let domain = &self.settings.trust_domain;
        let mut store = Store::new(&self.root_namespace, domain);
        for change in poll.changes.into_iter().filter_map(policy_change) {
            store.apply(change);
        }
        let found = poll.problems.iter().map(|problem| Problem {
            file: problem.file.display().to_string(),
            line: problem.line as usize,
            object: problem.object.clone(),
            message: problem.message.clone(),
        });
        let rejected = rejected.into_iter().map(|rejected| Problem {
            object: rejected.object.to_string(),
            message: rejected.cause.to_string(),
            ..Problem::default()
        });
        Cluster {
            snapshot: index.snapshot(),
            policies: store.policies(),
            problems: found.chain(rejected).collect(),
            notes: poll.notes,
        }
    }
}

/// What the sources say now. A file that was written a moment ago is passed over by the first
/// look, lest it be half of itself, and read by the second.
fn read_once(sources: Vec<PathBuf>) -> Poll {
    let mut files = Files::new(sources);
    let mut first = files.poll();
    std::thread::sleep(SETTLE);
    let second = files.poll();
    first.changes.extend(second.changes);
    first.notes.extend(second.notes);
    Poll {
        problems: second.problems,
        ..first
    }
}

/// A change of a policy, for the store of policies.
fn policy_change(change: Change) -> Option<PolicyChange> {
    let gone = |key: &Key| PolicyName::new(&key.namespace, &key.name);
    match change {
        Change::Upsert(Object::AuthorizationPolicy(policy)) => {
            Some(PolicyChange::Authorization(*policy))
        }
        Change::Upsert(Object::PeerAuthentication(policy)) => {
            Some(PolicyChange::PeerAuthentication(*policy))
        }
        Change::Remove(key) if key.kind == Kind::AuthorizationPolicy => {
            Some(PolicyChange::AuthorizationGone(gone(&key)))
        }
        Change::Remove(key) if key.kind == Kind::PeerAuthentication => {
            Some(PolicyChange::PeerAuthenticationGone(gone(&key)))
        }
        _ => None,
    }
}

/// Every policy, as it is understood.
fn listed(policies: &Policies) -> impl Iterator<Item = Policy> {
    let root = policies.root_namespace();
    let authorization = policies.authorization();
    let peer = policies.peer_authentication();
    authorization
        .map(move |policy| Policy::authorization(policy, root))
        .chain(peer.map(move |policy| Policy::peer_authentication(policy, root)))
}

impl fmt::Display for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = self.snapshot.counts();
        let enrolled = self.snapshot.workloads().filter(|w| w.enrolled()).count();
        write!(
            f,
            "{} workloads ({enrolled} enrolled), {} services, {} policies",
            counts.workloads,
            counts.services,
            listed(&self.policies).count(),
        )
    }
}
