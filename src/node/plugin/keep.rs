//! Keeps the plugin installed for as long as the daemon runs.

use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use kube::api::Api;
use prometheus_client::metrics::gauge::Gauge;

use crate::causes::Causes;
use crate::cluster::Clients;
use crate::node::config::{Chain as Wanted, Config, Install, Source};
use crate::node::plugin::chain::Entry;
use crate::node::plugin::install::{Error, Installed, Installer};
use crate::task;

/// How often the node is looked at: primary networks write their files at any time.
const LOOK: Duration = Duration::from_millis(500);
/// How long the API server may take to say what the runtime is.
const PATIENCE: Duration = Duration::from_secs(10);

/// Keeps it installed as `install` says; ends with the task, and leaves everything in place.
pub(crate) async fn keep(config: Config, install: Install, installed: Gauge) {
    let entry = Entry {
        run_dir: config.run_dir.display().to_string(),
        own_namespace: install.own_namespace.clone(),
        excluded: config.excluded_namespaces.clone(),
    };
    let runtime = runtime(&config, install.chain).await;
    let (bin, conf) = (&install.bin_dir, &install.conf_dir);
    let mut installer = Installer::new(bin, conf, entry, runtime.as_deref());
    let mut told = None;
    loop {
        let round = task::blocking("install", move || {
            let round = installer.round();
            (installer, round)
        });
        let Some((back, round)) = round.await else {
            return;
        };
        installer = back;
        installed.set(round.is_ok().into());
        tell(&mut told, &round);
        tokio::time::sleep(LOOK).await;
    }
}

/// Tells what is new.
fn tell(told: &mut Option<String>, round: &Result<(Installed, bool), Error>) {
    match round {
        Ok((how, changed)) => {
            let (Installed::List(path) | Installed::Beside(path)) = how;
            if *changed || told.is_some() {
                tracing::info!(path = %path.display(), "cni plugin installed");
            }
            *told = None;
        }
        Err(error) => {
            let why = Causes(error).to_string();
            if told.as_ref() != Some(&why) {
                tracing::warn!(error = %why, "cni plugin not installed: pods may start uncaptured");
            }
            *told = Some(why);
        }
    }
}

/// What the node's container runtime is, as far as it matters.
async fn runtime(config: &Config, chain: Wanted) -> Option<String> {
    match (chain, &config.source) {
        (Wanted::List, _) | (Wanted::Auto, Source::Files(_)) => None,
        (Wanted::Beside, _) => Some("containerd://2.1.0".to_owned()),
        (Wanted::Auto, Source::Kube { access, .. }) => {
            let clients = Clients::new(access.clone());
            let ask = async {
                let (client, _) = clients.client().await.ok()?;
                let node = Api::<Node>::all(client).get(&config.node).await.ok()?;
                Some(node.status?.node_info?.container_runtime_version)
            };
            let runtime = tokio::time::timeout(PATIENCE, ask).await.ok().flatten();
            if runtime.is_none() {
                tracing::info!(
                    "container runtime not told by the API server: taken for an old one"
                );
            }
            runtime
        }
    }
}
