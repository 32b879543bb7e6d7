//! Keeps the plugin installed for as long as the daemon runs.

use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use kube::api::Api;
use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::watch;

use crate::causes::Causes;
use crate::cluster::Clients;
use crate::node::config::{Chain as Wanted, Config, Install, Source};
use crate::node::plugin::chain::Entry;
use crate::node::plugin::install::{Error, Installed, Installer, uninstall};
use crate::task;

/// How often the node is looked at: primary networks write their files at any time.
const LOOK: Duration = Duration::from_millis(500);
/// How long the API server may take to say what the runtime is.
const PATIENCE: Duration = Duration::from_secs(10);

/// Keeps it installed as `install` says; ends with the task, and leaves everything in place. Once
/// the mesh is `over`, removes it.
pub(crate) async fn keep(
    config: Config,
    install: Install,
    installed: Gauge,
    mut over: watch::Receiver<bool>,
) {
    let entry = Entry {
        run_dir: config.run_dir.display().to_string(),
        own_namespace: install.own_namespace.clone(),
        excluded: config.excluded_namespaces.clone(),
    };
    let runtime = runtime(&config, install.chain).await;
    let (bin, conf) = (&install.bin_dir, &install.conf_dir);
    let mut installer = Installer::new(bin, conf, entry, runtime.as_deref());
    let mut told = None;
    while !*over.borrow() {
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
        if let Ok(Err(_)) = tokio::time::timeout(LOOK, over.wait_for(|over| *over)).await {
            return; // The daemon ends.
        }
    }
    installed.set(0);
    remove(install, runtime.as_deref()).await;
}

/// Removes the plugin. CRI-O executes it once more for each pod that was made with it, and keeps such
/// pods for ever if it cannot: there the binary stays.
async fn remove(install: Install, runtime: Option<&str>) {
    let keep_binary = runtime.is_some_and(|runtime| runtime.starts_with("cri-o:"));
    let work = move || uninstall(&install.bin_dir, &install.conf_dir, keep_binary);
    match task::blocking("uninstall", work).await {
        Some(Ok(removed)) => {
            let removed: Vec<_> = removed
                .iter()
                .map(|path| path.display().to_string())
                .collect();
            tracing::info!(
                removed = removed.join(" "),
                keep_binary,
                "cni plugin removed"
            );
        }
        Some(Err(error)) => {
            tracing::error!(error = %error, "cni plugin not removed: run adit cni uninstall on the node");
        }
        None => {}
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
