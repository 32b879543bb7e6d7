//! Flags and environment, from what was typed to what is checked.
//!
//! The only reader of the environment. [`NodeArgs`] is what clap has read: every single value is
//! already parsed, or refused with the form that would do. [`NodeArgs::check`] answers for the
//! whole: what is missing, what does not exist, what is chosen where nothing was said. The result
//! is a [`Config`], in which nothing is in doubt.

mod check;
mod common;
mod control;
mod plugin;
mod value;

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};

use crate::identify::Settings;
use crate::node::config::{CaSpec, Config, Existing, SameNode, Source};
use crate::sys::socket::Congestion;

use value::{address, busy_poll, ca, dns_name, duration, label, namespace};

pub use check::CheckArgs;
pub use common::{DomainArgs, KubeArgs, LogArgs, RunArgs, SecretArgs, WatchArgs};
pub use control::{CaArgs, ControlArgs};
pub use plugin::{InstallArgs, plugin};

/// The label that enrols unless others are added.
const ENROL_LABEL: (&str, &str) = ("adit.mesh/mode", "ambient");
/// Most workers that are chosen without being asked for.
const WORKERS: usize = 8;
/// The shortest certificate that can be renewed in time.
const SHORTEST_CERTIFICATE: Duration = Duration::from_secs(10);
/// The source that is the API server.
const KUBE: &str = "kube";
/// A watch that may not even be silent for this long is never open.
const SHORTEST_SILENCE: Duration = Duration::from_secs(1);

/// Why flags that are each well-formed do not make a daemon.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// More than one thing is missing that a node cannot do without.
    #[error("a node needs more to start: give {0}")]
    Missing(String),
    /// Nothing names the node.
    #[error("no node name: give --node NAME, or set NODE_NAME (in a pod: from spec.nodeName)")]
    NoNode,
    /// Nothing to read objects from.
    #[error("no source: give --source FILE or --source DIR, once or more often, or --source kube")]
    NoSource,
    /// A source is not there or not readable.
    #[error("cannot read --source {path:?}")]
    Source {
        /// What was given.
        path: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// The Kubernetes API where only files will do.
    #[error("--source kube is for a node: give files or directories, or ask a node")]
    OnlyFiles,
    /// Files beside the Kubernetes API.
    #[error(
        "--source kube stands alone: what the API server says and what files say would contradict"
    )]
    KubeAndFiles,
    /// No API server to ask.
    #[error(
        "no API server for Kubernetes objects: run in a pod, give --kubeconfig FILE, or set KUBECONFIG"
    )]
    NoApiServer,
    /// A kubeconfig is not there or not readable.
    #[error("cannot read kubeconfig {path:?}: give another with --kubeconfig")]
    Kubeconfig {
        /// What was given.
        path: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// Healthy watches would be taken for dead.
    #[error("--watch-silence {0:?} is too short: give 1s or more; the default suits API servers")]
    WatchSilence(Duration),
    /// Nobody to sign certificates.
    #[error(
        "no certificate authority: give --ca dir:PATH (the first daemon makes it), or \
         --ca https://HOST:PORT (adit control, istiod or istio-csr)"
    )]
    NoCa,
    /// Certificates would end before they could be renewed.
    #[error("--cert-validity {0:?} is too short: give 10s or more")]
    CertValidity(Duration),
    /// The same, for those of others.
    #[error("--max-validity {0:?} is too short: give 10s or more")]
    MaxValidity(Duration),
}

/// The flags of `adit node`, each with its twin in the environment.
#[derive(Clone, Debug, Args)]
pub struct NodeArgs {
    /// Name of this node, as in pods' spec.nodeName [also: NODE_NAME]
    #[arg(long, env = "ADIT_NODE", value_name = "NAME", hide_env_values = true)]
    pub node: Option<String>,

    /// File or directory of Kubernetes objects, YAML or JSON, may be repeated; or kube, to watch
    /// the API server
    #[arg(
        long,
        env = "ADIT_SOURCE",
        value_name = "FILE|DIR|kube",
        value_delimiter = ',',
        hide_env_values = true
    )]
    pub source: Vec<PathBuf>,

    /// How the source kube is reached.
    #[command(flatten)]
    pub kube: KubeArgs,

    /// How long a watch of the API server may be silent before it is opened anew. A server says
    /// something every 75 seconds at least
    #[arg(
        long,
        env = "ADIT_WATCH_SILENCE",
        value_name = "DURATION",
        default_value = "90s",
        value_parser = duration,
        hide_env_values = true
    )]
    pub watch_silence: Duration,

    /// Certificate authority: a directory that all nodes share, made by the first that needs it; or
    /// a program that speaks Istio's certificate protocol: adit control, istiod, istio-csr
    #[arg(
        long,
        env = "ADIT_CA",
        value_name = "dir:PATH|https://HOST:PORT",
        value_parser = ca,
        hide_env_values = true
    )]
    pub ca: Option<CaSpec>,

    /// With --ca https: file with this daemon's service account token, read for each request
    #[arg(
        long,
        env = "ADIT_CA_TOKEN",
        value_name = "FILE",
        default_value = "/var/run/secrets/tokens/adit-ca",
        hide_env_values = true
    )]
    pub ca_token: PathBuf,

    /// With --ca https: file with the roots of the authority's server, read for each connection
    #[arg(
        long,
        env = "ADIT_CA_ROOT",
        value_name = "FILE",
        default_value = "/var/run/secrets/adit/root-cert.pem",
        hide_env_values = true
    )]
    pub ca_root: PathBuf,

    /// How objects are understood.
    #[command(flatten)]
    pub mesh: MeshArgs,

    /// Worker threads [default: the processors this process may use, at most 8]
    #[arg(
        long,
        env = "ADIT_WORKERS",
        value_name = "N",
        value_parser = clap::value_parser!(u16).range(1..=256),
        hide_env_values = true
    )]
    pub workers: Option<u16>,

    /// Way between two pods of this node: across their own links, or through a tunnel
    #[arg(
        long,
        env = "ADIT_SAME_NODE",
        default_value = "direct",
        value_parser = same_node(),
        hide_env_values = true
    )]
    pub same_node: SameNode,

    /// Congestion control of tunnels: the system's ("system"), the same unless it paces and the
    /// path is short ("auto"), or one by its name
    #[arg(
        long,
        env = "ADIT_TUNNEL_CONGESTION",
        value_name = "auto|system|NAME",
        default_value = "auto",
        value_parser = Congestion::parse,
        hide_env_values = true
    )]
    pub tunnel_congestion: Congestion,

    /// What becomes of connections older than their pod's enrolment
    #[arg(
        long,
        env = "ADIT_EXISTING",
        default_value = "keep",
        value_parser = PossibleValuesParser::new(["keep", "reset"]).map(existing),
        hide_env_values = true
    )]
    pub existing: Existing,

    /// How long a worker that has nothing more to do looks for more before it sleeps, one worker at
    /// a time and only while that pays: at most one processor's idle time, for shorter round trips.
    /// 0 for never; never where the control group has a processor quota
    #[arg(
        long,
        env = "ADIT_BUSY_POLL",
        value_name = "DURATION",
        default_value = "60us",
        value_parser = busy_poll,
        hide_env_values = true
    )]
    pub busy_poll: Duration,

    /// Where the CNI plugin is installed.
    #[command(flatten)]
    pub install: InstallArgs,

    /// Where its sockets are.
    #[command(flatten)]
    pub run: RunArgs,

    /// Address of the admin server, beside the socket admin.sock in the run directory
    #[arg(
        long,
        env = "ADIT_ADMIN",
        value_name = "ADDRESS:PORT",
        default_value = "127.0.0.1:15000",
        value_parser = address,
        hide_env_values = true
    )]
    pub admin: SocketAddr,

    /// Where it is looked at.
    #[command(flatten)]
    pub watch: WatchArgs,

    /// How long live connections may go on after SIGTERM
    #[arg(
        long,
        env = "ADIT_DRAIN",
        value_name = "DURATION",
        default_value = "30s",
        value_parser = duration,
        hide_env_values = true
    )]
    pub drain: Duration,

    /// How long a certificate is valid; it is renewed at half of it
    #[arg(
        long,
        env = "ADIT_CERT_VALIDITY",
        value_name = "DURATION",
        default_value = "24h",
        value_parser = duration,
        hide_env_values = true
    )]
    pub cert_validity: Duration,

    /// What it logs.
    #[command(flatten)]
    pub log: LogArgs,
}

/// The flags by which objects are understood, for a daemon and for answers without one.
#[derive(Clone, Debug, Args)]
pub struct MeshArgs {
    /// What names end with.
    #[command(flatten)]
    pub domains: DomainArgs,

    /// Namespace whose policies bind the whole mesh
    #[arg(
        long,
        env = "ADIT_ROOT_NAMESPACE",
        value_name = "NAMESPACE",
        default_value = "adit-system",
        value_parser = namespace,
        hide_env_values = true
    )]
    pub root_namespace: String,

    /// A further label of namespace or pod that enrols, beside adit.mesh/mode=ambient
    #[arg(
        long,
        env = "ADIT_ENROL_LABEL",
        value_name = "KEY=VALUE",
        value_delimiter = ',',
        value_parser = label,
        hide_env_values = true
    )]
    pub enrol_label: Vec<(String, String)>,

    /// Namespace that is never enrolled; may be repeated
    #[arg(
        long,
        env = "ADIT_EXCLUDE_NAMESPACE",
        value_name = "NAMESPACE",
        default_value = "kube-system",
        value_delimiter = ',',
        value_parser = namespace,
        hide_env_values = true
    )]
    pub exclude_namespace: Vec<String>,

    /// Runtime class whose packets do not pass the pod's namespace, beside those named for Kata and
    /// gVisor: its pods cannot be captured
    #[arg(
        long,
        env = "ADIT_SANDBOXED_RUNTIME",
        value_name = "CLASS",
        value_delimiter = ',',
        value_parser = dns_name,
        hide_env_values = true
    )]
    pub sandboxed_runtime: Vec<String>,
}

impl MeshArgs {
    /// How objects are understood by whoever is no node's daemon.
    #[must_use]
    pub fn settings(&self) -> Settings {
        Settings {
            enrol_labels: self.enrol_labels(),
            trust_domain: self.domains.trust_domain.clone(),
            cluster_domain: self.domains.cluster_domain.clone(),
            excluded_namespaces: self.exclude_namespace.clone(),
            sandboxed_runtimes: self.sandboxed_runtime.clone(),
            marking: None,
            home: None,
        }
    }

    /// The labels that enrol: the one that always does, and those given.
    #[must_use]
    pub fn enrol_labels(&self) -> Vec<(String, String)> {
        let (key, value) = ENROL_LABEL;
        let mut labels = vec![(key.to_owned(), value.to_owned())];
        for label in &self.enrol_label {
            if !labels.contains(label) {
                labels.push(label.clone());
            }
        }
        labels
    }
}

impl NodeArgs {
    /// Completes and checks the flags as a whole.
    ///
    /// # Errors
    ///
    /// [`Error`], each naming what to give.
    pub fn check(self) -> Result<Config, Error> {
        #[expect(clippy::disallowed_methods, reason = "this file reads the environment")]
        let injected = std::env::var("NODE_NAME").ok();
        let node = self.node.or(injected).filter(|name| !name.is_empty());
        let given = [
            ("--node NAME", node.is_some()),
            ("--source PATH", !self.source.is_empty()),
            ("--ca dir:PATH|https://HOST:PORT", self.ca.is_some()),
        ];
        let missing: Vec<_> = given
            .iter()
            .filter(|(_, given)| !given)
            .map(|(flag, _)| *flag)
            .collect();
        if missing.len() > 1 {
            return Err(Error::Missing(missing.join(", ")));
        }
        if self.cert_validity < SHORTEST_CERTIFICATE {
            return Err(Error::CertValidity(self.cert_validity));
        }
        Ok(Config {
            node: node.ok_or(Error::NoNode)?,
            source: source(self.source, self.kube, self.watch_silence)?,
            ca: self.ca.ok_or(Error::NoCa)?,
            ca_token: self.ca_token,
            ca_root: self.ca_root,
            enrol_labels: self.mesh.enrol_labels(),
            install: self.install.check(&self.mesh.root_namespace),
            trust_domain: self.mesh.domains.trust_domain,
            cluster_domain: self.mesh.domains.cluster_domain,
            root_namespace: self.mesh.root_namespace,
            excluded_namespaces: self.mesh.exclude_namespace,
            sandboxed_runtimes: self.mesh.sandboxed_runtime,
            workers: self.workers.map_or_else(workers, usize::from),
            busy_poll: self.busy_poll,
            same_node: self.same_node,
            tunnel_congestion: self.tunnel_congestion,
            existing: self.existing,
            run_dir: self.run.run_dir,
            admin: self.admin,
            metrics: self.watch.metrics,
            ready: self.watch.ready,
            drain: self.drain,
            cert_validity: self.cert_validity,
            log_filter: self.log.log,
            log_format: self.log.log_format,
        })
    }
}

/// Where a node's objects come from: files, or the API server. A file that happens to be called
/// `kube` is given as `./kube`.
fn source(paths: Vec<PathBuf>, kube: KubeArgs, silence: Duration) -> Result<Source, Error> {
    if !paths.iter().any(|path| path.as_os_str() == KUBE) {
        return Ok(Source::Files(sources(paths)?));
    }
    if paths.len() > 1 {
        return Err(Error::KubeAndFiles);
    }
    if silence < SHORTEST_SILENCE {
        return Err(Error::WatchSilence(silence));
    }
    let access = kube.access()?;
    Ok(Source::Kube { access, silence })
}

/// Checks that sources are there: later a file may break or go, but a typo is told at the start.
///
/// # Errors
///
/// [`Error::NoSource`], [`Error::OnlyFiles`], [`Error::Source`].
pub fn sources(paths: Vec<PathBuf>) -> Result<Vec<PathBuf>, Error> {
    if paths.is_empty() {
        return Err(Error::NoSource);
    }
    for path in &paths {
        let readable = if path.is_dir() {
            std::fs::read_dir(path).map(drop)
        } else {
            std::fs::File::open(path).map(drop)
        };
        match readable {
            Ok(()) => {}
            Err(_) if path.as_os_str() == KUBE => return Err(Error::OnlyFiles),
            Err(cause) => {
                let path = path.clone();
                return Err(Error::Source { path, cause });
            }
        }
    }
    Ok(paths)
}

fn workers() -> usize {
    std::thread::available_parallelism().map_or(1, |n| n.get().min(WORKERS))
}

/// Reads the way between two pods of one node.
pub(crate) fn same_node() -> impl TypedValueParser<Value = SameNode> {
    PossibleValuesParser::new(["direct", "hbone"]).map(|word| match word.as_str() {
        "hbone" => SameNode::Hbone,
        _ => SameNode::Direct,
    })
}

fn existing(word: String) -> Existing {
    match word.as_str() {
        "reset" => Existing::Reset,
        _ => Existing::Keep,
    }
}
