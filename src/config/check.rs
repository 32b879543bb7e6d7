//! Flags of `adit check` where it is about a cluster.

use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};

use crate::api::ADMIN_SOCKET;
use crate::api::ask::Target;
use crate::check::facts::{Mesh, Place};
use crate::check::{Config, Output};
use crate::config::control::ClusterArgs;
use crate::config::{Error, MeshArgs, RunArgs, SecretArgs};

/// The flags of `adit check` that are about a cluster.
#[derive(Clone, Debug, Args)]
pub struct CheckArgs {
    /// Before the installation: may it be installed, and will it work here?
    #[arg(long)]
    pub pre: bool,

    /// Look at this machine as well, as root: kernel, rights, its daemon; at it alone without a
    /// kubeconfig [default: where a daemon runs]
    #[arg(long)]
    pub node_local: bool,

    /// The cluster's part.
    #[command(flatten)]
    pub cluster: ClusterArgs,

    /// The authority's Secret.
    #[command(flatten)]
    pub secret: SecretArgs,

    /// Where this machine's daemon has its sockets.
    #[command(flatten)]
    pub run: RunArgs,

    /// Form of the answer
    #[arg(
        short,
        long,
        default_value = "text",
        value_parser = PossibleValuesParser::new(["text", "json"]).map(output)
    )]
    pub output: Output,
}

impl CheckArgs {
    /// Completes the flags; `mesh` is what the daemons are told, or are to be.
    ///
    /// # Errors
    ///
    /// As [`KubeArgs::access`](crate::config::KubeArgs::access).
    pub fn check(self, mesh: MeshArgs) -> Result<Config, Error> {
        let here = self.node_local || self.run.run_dir.join(ADMIN_SOCKET).exists();
        let namespace = self.cluster.namespace();
        let access = match self.cluster.kube.access() {
            // There is this machine to look at.
            Err(Error::NoApiServer) if here => None,
            found => Some(found?),
        };
        Ok(Config {
            pre: self.pre,
            place: Place {
                namespace,
                bundle: self.cluster.ca_config_map,
                secret: self.secret.ca_secret,
            },
            access,
            mesh: Mesh {
                settings: mesh.settings(),
                root_namespace: mesh.root_namespace,
            },
            node: here.then(|| Target::in_run_dir(&self.run.run_dir)),
            output: self.output,
        })
    }
}

fn output(word: String) -> Output {
    match word.as_str() {
        "json" => Output::Json,
        _ => Output::Text,
    }
}
