//! The command line: what can be asked for, and who does it.
//!
//! `adit node` and `adit control` are daemons; every other subcommand is a person's question. Clap refuses what is
//! not understood, with the nearest word that is; exit status 2 says that the question was wrong,
//! 1 that the answer is no or could not be had.

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand};

use crate::check;
use crate::cni;
use crate::config::{self, CaArgs, CheckArgs, ControlArgs, MeshArgs, NodeArgs, RunArgs};
use crate::control;
use crate::control::ca::{self, Step};
use crate::inspect::{self, Offline, Output, Page, Target};
use crate::node;
use crate::node::config::SameNode;

/// Exit status for a question that makes no sense, as clap has it.
const USAGE: u8 = 2;

/// Carries pods' TCP traffic through mutually authenticated tunnels, one daemon per node.
#[derive(Debug, Parser)]
#[command(
    name = "adit",
    version,
    max_term_width = 100,
    arg_required_else_help = true
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the daemon of this node
    Node(Box<NodeArgs>),
    /// Run as CNI plugin, as container runtimes do with CNI_COMMAND set; or remove it from a node
    Cni {
        #[command(subcommand)]
        command: CniCommand,
    },
    /// Run the certificate authority of the cluster
    Control(Box<ControlArgs>),
    /// Show the authority's roots, or exchange them step by step
    Ca(Ca),
    /// Show a node on one screen
    Status(Ask),
    /// List the pods that a node knows, of the whole cluster
    Workloads(AskNamespace),
    /// List the services that a node knows, with their endpoints
    Services(AskNamespace),
    /// List the policies, as a node understands them
    Policies(AskNamespace),
    /// List the pods of a node that belong to the mesh: enrolled, pending, failed, draining
    Pods(AskNamespace),
    /// List the certificates of a node
    Certificates(Ask),
    /// List the connections alive on a node
    Connections(Ask),
    /// Tell what policy says to a connection, and which rule says it
    Explain(Box<Explain>),
    /// Look over a cluster, before (--pre) or after Adit is in it, and tell the mend of what is wrong;
    /// or check source files. Exit status 1 when something is wrong, 2 when nothing could be checked
    Check(Box<Check>),
    /// Print the version
    Version,
}

#[derive(Debug, Subcommand)]
enum CniCommand {
    /// Remove the CNI plugin from this node: from the runtime's chain, then the binary
    Uninstall {
        /// Directory of the node's CNI plugins
        #[arg(
            long,
            env = "ADIT_CNI_BIN_DIR",
            value_name = "DIR",
            hide_env_values = true
        )]
        cni_bin_dir: PathBuf,

        /// Directory of the node's CNI configuration
        #[arg(
            long,
            env = "ADIT_CNI_CONF_DIR",
            value_name = "DIR",
            hide_env_values = true
        )]
        cni_conf_dir: PathBuf,

        /// Leave the binary: CRI-O executes it once more for each pod that was made with it
        #[arg(long)]
        keep_binary: bool,
    },
}

/// How to reach a node, and how to print.
#[derive(Debug, Args)]
struct Ask {
    /// Admin server of the node: unix:PATH or http://ADDRESS:PORT
    /// [default: admin.sock in the run directory]
    #[arg(long, env = "ADIT_ADMIN", value_name = "WHERE", value_parser = Target::parse, hide_env_values = true)]
    admin: Option<Target>,

    /// Where the sockets of the node are.
    #[command(flatten)]
    run: RunArgs,

    /// Form of the answer
    #[arg(
        short,
        long,
        default_value = "table",
        value_parser = PossibleValuesParser::new(["table", "json"]).map(output)
    )]
    output: Output,
}

#[derive(Debug, Args)]
struct AskNamespace {
    #[command(flatten)]
    ask: Ask,

    /// Only those of this namespace
    #[arg(short, long, value_name = "NAMESPACE")]
    namespace: Option<String>,
}

#[derive(Debug, Args)]
struct Explain {
    /// The pod that connects, NAMESPACE/POD, or an address
    #[arg(value_name = "SRC")]
    from: String,

    /// What it connects to: a pod or service NAMESPACE/NAME:PORT, a service's host name with
    /// :PORT, or ADDRESS:PORT
    #[arg(value_name = "DST:PORT")]
    to: String,

    /// Answer from this file or directory instead of asking a node; may be repeated
    #[arg(long, value_name = "FILE|DIR")]
    source: Vec<PathBuf>,

    #[command(flatten)]
    mesh: MeshArgs,

    /// With --source: the way between two pods of one node
    #[arg(
        long,
        env = "ADIT_SAME_NODE",
        default_value = "direct",
        value_parser = config::same_node(),
        hide_env_values = true
    )]
    same_node: SameNode,

    #[command(flatten)]
    ask: Ask,
}

#[derive(Debug, Args)]
struct Check {
    /// Check this file or directory of Kubernetes objects, and no cluster; may be repeated
    #[arg(long, value_name = "FILE|DIR", num_args = 1.., conflicts_with_all = ["pre", "node_local"])]
    source: Vec<PathBuf>,

    #[command(flatten)]
    cluster: CheckArgs,

    #[command(flatten)]
    mesh: MeshArgs,
}

/// Exchanges the root of `adit control` without cutting anybody off: stage, wait, promote, wait,
/// retire. A step that comes too early is refused and says when it is possible.
#[derive(Debug, Args)]
struct Ca {
    #[command(subcommand)]
    step: CaStep,
}

#[derive(Debug, Subcommand)]
enum CaStep {
    /// Show which roots are trusted, which one signs, and what can be done next
    Status(CaArgs),
    /// Make a new root and let it be trusted beside the one that signs
    Stage(CaArgs),
    /// Let the staged root sign; refused until everybody trusts it
    Promote(CaArgs),
    /// Forget the old root; refused until none of its certificates can be in use
    Retire(CaArgs),
}

impl Ca {
    fn run(self) -> anyhow::Result<ExitCode> {
        let (step, args) = match self.step {
            CaStep::Status(args) => (Step::Status, args),
            CaStep::Stage(args) => (Step::Stage, args),
            CaStep::Promote(args) => (Step::Promote, args),
            CaStep::Retire(args) => (Step::Retire, args),
        };
        match args.place() {
            Ok(place) => {
                ca::run(step, &place, &mut io::stdout().lock())?;
                Ok(ExitCode::SUCCESS)
            }
            Err(error) => misused(error),
        }
    }
}

fn output(word: String) -> Output {
    match word.as_str() {
        "json" => Output::Json,
        _ => Output::Table,
    }
}

/// Does what the arguments ask for.
///
/// # Errors
///
/// Why it could not be done. What is wrong with the arguments themselves is told at once, and the
/// exit status says so.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> anyhow::Result<ExitCode> {
    if let Some(environment) = config::plugin() {
        return Ok(cni::run(&environment, io::stdin(), &mut io::stdout())?);
    }
    match Cli::try_parse_from(arguments) {
        Ok(cli) => cli.command.run(),
        Err(error) => {
            // Help and version come this way too, with exit status 0.
            let _ = error.print();
            Ok(u8::try_from(error.exit_code()).map_or(ExitCode::FAILURE, ExitCode::from))
        }
    }
}

impl Command {
    fn run(self) -> anyhow::Result<ExitCode> {
        let page = match self {
            Self::Node(args) => return run_node(*args),
            Self::Cni { command } => return command.run(),
            Self::Control(args) => return run_control(*args),
            Self::Ca(ca) => return ca.run(),
            Self::Explain(args) => return args.run(),
            Self::Check(args) => return args.run(),
            Self::Version => {
                writeln!(io::stdout(), "adit {}", env!("CARGO_PKG_VERSION"))?;
                return Ok(ExitCode::SUCCESS);
            }
            Self::Status(ask) => (Page::Status, ask.anywhere()),
            Self::Certificates(ask) => (Page::Certificates, ask.anywhere()),
            Self::Connections(ask) => (Page::Connections, ask.anywhere()),
            Self::Workloads(ask) => (Page::Workloads, ask),
            Self::Services(ask) => (Page::Services, ask),
            Self::Policies(ask) => (Page::Policies, ask),
            Self::Pods(ask) => (Page::Pods, ask),
        };
        let (page, AskNamespace { ask, namespace }) = page;
        let (node, output) = (ask.target(), ask.output);
        printed(|to| inspect::show(page, namespace.as_deref(), &node, output, to))
    }
}

impl CniCommand {
    fn run(self) -> anyhow::Result<ExitCode> {
        let Self::Uninstall {
            cni_bin_dir,
            cni_conf_dir,
            keep_binary,
        } = self;
        let removed = node::uninstall(&cni_bin_dir, &cni_conf_dir, keep_binary);
        let removed = removed.with_context(|| {
            let (bin, conf) = (cni_bin_dir.display(), cni_conf_dir.display());
            format!("cannot remove the CNI plugin from {bin} and {conf}: run as root on the node")
        })?;
        for path in removed {
            writeln!(io::stdout(), "removed {}", path.display())?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn run_node(args: NodeArgs) -> anyhow::Result<ExitCode> {
    match args.check() {
        Ok(config) => {
            node::run(config)?;
            Ok(ExitCode::SUCCESS)
        }
        Err(error) => misused(error),
    }
}

fn run_control(args: ControlArgs) -> anyhow::Result<ExitCode> {
    match args.check() {
        Ok(config) => {
            control::run(config)?;
            Ok(ExitCode::SUCCESS)
        }
        Err(error) => misused(error),
    }
}

/// Tells what is wrong with the arguments as a whole.
fn misused(error: config::Error) -> anyhow::Result<ExitCode> {
    writeln!(io::stderr(), "adit: {:#}", anyhow::Error::from(error))?;
    Ok(ExitCode::from(USAGE))
}

impl Ask {
    fn target(&self) -> Target {
        let default = || Target::in_run_dir(&self.run.run_dir);
        self.admin.clone().unwrap_or_else(default)
    }

    fn anywhere(self) -> AskNamespace {
        AskNamespace {
            ask: self,
            namespace: None,
        }
    }
}

impl Explain {
    fn run(self) -> anyhow::Result<ExitCode> {
        let question = (self.from.as_str(), self.to.as_str());
        let output = self.ask.output;
        if self.source.is_empty() {
            let node = self.ask.target();
            return printed(|to| inspect::explain(question, &node, output, to));
        }
        match offline(self.source, self.mesh, self.same_node) {
            Ok(files) => printed(|to| files.explain(question, output, to, &mut io::stderr())),
            Err(error) => misused(error),
        }
    }
}

impl Check {
    fn run(self) -> anyhow::Result<ExitCode> {
        if self.source.is_empty() {
            return match self.cluster.check(self.mesh) {
                Ok(config) => check_cluster(&config),
                Err(error) => misused(error),
            };
        }
        match offline(self.source, self.mesh, SameNode::Direct) {
            Ok(files) => {
                let mut clean = true;
                let done = printed(|to| files.check(to).map(|found| clean = found))?;
                Ok(if clean { done } else { ExitCode::FAILURE })
            }
            Err(error) => misused(error),
        }
    }
}

fn check_cluster(config: &check::Config) -> anyhow::Result<ExitCode> {
    let mut text = Vec::new();
    let outcome = check::run(config, &mut text);
    printed(|to| Ok(to.write_all(&text)?))?;
    match outcome {
        Ok(true) => Ok(ExitCode::SUCCESS),
        Ok(false) => Ok(ExitCode::FAILURE),
        Err(error) => {
            writeln!(io::stderr(), "adit: {:#}", anyhow::Error::from(error))?;
            Ok(ExitCode::from(USAGE))
        }
    }
}

fn offline(
    sources: Vec<PathBuf>,
    mesh: MeshArgs,
    same_node: SameNode,
) -> Result<Offline, config::Error> {
    Ok(Offline {
        sources: config::sources(sources)?,
        same_node_direct: same_node == SameNode::Direct,
        settings: mesh.settings(),
        root_namespace: mesh.root_namespace,
    })
}

/// Prints an answer. A reader that has seen enough (`| head`) is no failure.
fn printed(
    print: impl FnOnce(&mut dyn Write) -> Result<(), inspect::Error>,
) -> anyhow::Result<ExitCode> {
    let mut to = io::BufWriter::new(io::stdout().lock());
    let done = print(&mut to).and_then(|()| Ok(to.flush()?));
    match done {
        Err(inspect::Error::Print(cause)) if cause.kind() == io::ErrorKind::BrokenPipe => {}
        done => done?,
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }
}
