//! What the container runtime says to the CNI plugin, and where the daemon installs it.

use std::path::PathBuf;

use clap::builder::{PossibleValuesParser, TypedValueParser};

use crate::cni::Environment;
use crate::node::config::{Chain, Install};

/// What the runtime asks of the plugin; `None` when nobody runs us as one.
#[must_use]
pub fn plugin() -> Option<Environment> {
    #[expect(
        clippy::disallowed_methods,
        reason = "config alone reads the environment"
    )]
    let variable =
        |name: &str| std::env::var_os(name).map(|value| value.to_string_lossy().into_owned());
    let or_nothing = |name| variable(name).unwrap_or_default();
    Some(Environment {
        command: variable("CNI_COMMAND").filter(|command| !command.is_empty())?,
        container: or_nothing("CNI_CONTAINERID"),
        netns: or_nothing("CNI_NETNS"),
        interface: or_nothing("CNI_IFNAME"),
        arguments: or_nothing("CNI_ARGS"),
    })
}

/// The flags that let the daemon install its CNI plugin.
#[derive(Clone, Debug, clap::Args)]
pub struct InstallArgs {
    /// Directory of the node's CNI plugins; with it and --cni-conf-dir, the daemon keeps its plugin
    /// installed there, so that no pod starts uncaptured
    #[arg(
        long,
        env = "ADIT_CNI_BIN_DIR",
        value_name = "DIR",
        requires = "cni_conf_dir",
        hide_env_values = true
    )]
    pub cni_bin_dir: Option<PathBuf>,

    /// Directory of the node's CNI configuration
    #[arg(
        long,
        env = "ADIT_CNI_CONF_DIR",
        value_name = "DIR",
        requires = "cni_bin_dir",
        hide_env_values = true
    )]
    pub cni_conf_dir: Option<PathBuf>,

    /// Place of the plugin: in a list of plugins of its own, a copy of the primary network's; or
    /// beside that list, which only newer container runtimes read; or as the runtime of this node
    /// wants it
    #[arg(
        long,
        env = "ADIT_CNI_CHAIN",
        default_value = "auto",
        value_parser = PossibleValuesParser::new(["auto", "list", "beside"]).map(chain),
        hide_env_values = true
    )]
    pub cni_chain: Chain,

    /// Namespace of the daemon, whose pods never wait for it [default: POD_NAMESPACE, else the root
    /// namespace]
    #[arg(
        long,
        env = "ADIT_OWN_NAMESPACE",
        value_name = "NAMESPACE",
        hide_env_values = true
    )]
    pub own_namespace: Option<String>,
}

impl InstallArgs {
    /// What is to be installed, if anything.
    pub(super) fn check(self, root_namespace: &str) -> Option<Install> {
        #[expect(
            clippy::disallowed_methods,
            reason = "config alone reads the environment"
        )]
        let injected = || std::env::var("POD_NAMESPACE").ok();
        let own_namespace = self
            .own_namespace
            .or_else(injected)
            .filter(|name| !name.is_empty())
            .unwrap_or_else(|| root_namespace.to_owned());
        Some(Install {
            bin_dir: self.cni_bin_dir?,
            conf_dir: self.cni_conf_dir?,
            chain: self.cni_chain,
            own_namespace,
        })
    }
}

fn chain(word: String) -> Chain {
    match word.as_str() {
        "list" => Chain::List,
        "beside" => Chain::Beside,
        _ => Chain::Auto,
    }
}
