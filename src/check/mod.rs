//! `adit check`: looks over a cluster, before and after Adit is installed in it, and tells what is
//! wrong with the mend of each.
//!
//! ```text
//!  API server, this node ─▶ gather ─▶ Facts ─▶ rules::check ─▶ Vec<Finding> ─▶ report
//!                           (thin)    (plain)      (pure)
//! ```
//!
//! It runs wherever the API server is reached: on a workstation, or in a daemon's pod, where it
//! looks at the node as well. It changes nothing. `shape` reads the API's JSON, `selector` its
//! label selectors; whom the mesh carries is asked of [`identify`](crate::identify), what a policy
//! means of [`mesh::policy`](crate::mesh::policy), what the kernel can of
//! [`capture`](crate::capture): what is told here is what a daemon would do.

pub mod facts;
mod finding;
mod gather;
mod report;
pub mod rules;
mod selector;
mod shape;

use std::io::{self, Write};
use std::time::{Duration, SystemTime};

use tokio::runtime::Builder;

use crate::api::ask::Target;
use crate::check::facts::{Asked, Facts, Mesh, Place};
use crate::cluster::{Access, client};

pub use finding::{Finding, State};
pub use selector::Selector;

/// What is to be checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// Whether Adit is not installed yet.
    pub pre: bool,
    /// How the API server is reached; `None` where nothing tells, and this machine alone is to be
    /// looked at.
    pub access: Option<Access>,
    /// Where Adit is, or is to be.
    pub place: Place,
    /// How objects are understood, where no daemon says it.
    pub mesh: Mesh,
    /// The daemon of this machine, where the machine is to be looked at, too.
    pub node: Option<Target>,
    /// How the answer is printed.
    pub output: Output,
}

/// How findings are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Output {
    /// In groups, for people.
    #[default]
    Text,
    /// JSON, for programs.
    Json,
}

/// Why nothing could be checked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no way to ask.
    #[error("cannot check the cluster")]
    Access(#[source] client::Error),
    /// Nobody answers.
    #[error(
        "cannot check the cluster: no answer from the Kubernetes API; is it up, and is its address in \
         the kubeconfig right? (--kubeconfig gives another one)"
    )]
    Answer(#[source] kube::Error),
    /// The answer takes too long.
    #[error("cannot check the cluster: the Kubernetes API did not answer within {0:?}")]
    Silent(Duration),
    /// The server does not know who asks.
    #[error(
        "cannot check the cluster: the Kubernetes API does not take these credentials ({0}): log in \
         anew, or give another --kubeconfig"
    )]
    Credentials(String),
    /// There is no runtime, or the answer could not be printed.
    #[error("cannot print the answer")]
    Print(#[from] io::Error),
}

/// Checks, and prints what is found. Whether nothing failed.
///
/// # Errors
///
/// [`Error`]; what was found on this machine has been printed even so.
pub fn run(config: &Config, to: &mut dyn Write) -> Result<bool, Error> {
    let node = gather::node(config);
    let asked = config.access.as_ref().map(|access| {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(gather::cluster(config, access))
    });
    let (cluster, failure) = match asked {
        None => (Asked::Nobody, None),
        Some(Ok(cluster)) => (Asked::Answered(Box::new(cluster)), None),
        Some(Err(failure)) => (Asked::InVain, Some(failure)),
    };
    let facts = Facts {
        pre: config.pre,
        now: SystemTime::now(),
        version: env!("CARGO_PKG_VERSION"),
        place: config.place.clone(),
        told: config.mesh.clone(),
        cluster,
        node,
    };
    let findings = rules::check(&facts);
    if !findings.is_empty() {
        match config.output {
            Output::Text => report::text(&findings, to)?,
            Output::Json => report::json(&facts, &findings, to)?,
        }
    }
    match failure {
        Some(failure) => Err(failure),
        None => Ok(findings.iter().all(|one| one.state != State::Fail)),
    }
}
