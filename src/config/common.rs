//! Flags that more than one program has: each is written here once.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};

use crate::cluster::Access;
use crate::config::{Error, address, dns_name};
use crate::control::config::SECRET;
use crate::mesh::TrustDomain;
use crate::telemetry::log::{Filter, Format};

/// What a program logs.
#[derive(Clone, Debug, Args)]
pub struct LogArgs {
    /// Log filter: LEVEL or TARGET=LEVEL, separated by commas
    #[arg(
        long,
        env = "ADIT_LOG",
        value_name = "FILTER",
        default_value = "info",
        value_parser = Filter::parse,
        hide_env_values = true
    )]
    pub log: Filter,

    /// How log lines look
    #[arg(
        long,
        env = "ADIT_LOG_FORMAT",
        default_value = "text",
        value_parser = PossibleValuesParser::new(["text", "json"]).map(format),
        hide_env_values = true
    )]
    pub log_format: Format,
}

/// What all names in the mesh and in the cluster end with.
#[derive(Clone, Debug, Args)]
pub struct DomainArgs {
    /// Trust domain of all identities
    #[arg(
        long,
        env = "ADIT_TRUST_DOMAIN",
        value_name = "DOMAIN",
        default_value = "cluster.local",
        value_parser = TrustDomain::parse,
        hide_env_values = true
    )]
    pub trust_domain: TrustDomain,

    /// DNS suffix of the cluster's services
    #[arg(
        long,
        env = "ADIT_CLUSTER_DOMAIN",
        value_name = "DOMAIN",
        default_value = "cluster.local",
        value_parser = dns_name,
        hide_env_values = true
    )]
    pub cluster_domain: String,
}

/// Where a program is looked at by those who watch it.
#[derive(Clone, Debug, Args)]
pub struct WatchArgs {
    /// Address of metrics
    #[arg(
        long,
        env = "ADIT_METRICS",
        value_name = "ADDRESS:PORT",
        default_value = "[::]:15020",
        value_parser = address,
        hide_env_values = true
    )]
    pub metrics: SocketAddr,

    /// Address of readiness
    #[arg(
        long,
        env = "ADIT_READY",
        value_name = "ADDRESS:PORT",
        default_value = "[::]:15021",
        value_parser = address,
        hide_env_values = true
    )]
    pub ready: SocketAddr,
}

/// Where a node's daemon has its sockets.
#[derive(Clone, Debug, Args)]
pub struct RunArgs {
    /// Directory of the daemon's sockets
    #[arg(
        long,
        env = "ADIT_RUN_DIR",
        value_name = "DIR",
        default_value = "/run/adit",
        hide_env_values = true
    )]
    pub run_dir: PathBuf,
}

/// What a cluster's authority keeps its key in.
#[derive(Clone, Debug, Args)]
pub struct SecretArgs {
    /// Secret of the authority
    #[arg(
        long,
        env = "ADIT_CA_SECRET",
        value_name = "NAME",
        default_value = SECRET,
        value_parser = dns_name,
        hide_env_values = true
    )]
    pub ca_secret: String,
}

/// How the Kubernetes API is reached.
#[derive(Clone, Debug, Args)]
pub struct KubeArgs {
    /// How the Kubernetes API is reached [default: KUBECONFIG, else the pod's service account, else
    /// ~/.kube/config]
    #[arg(
        long,
        env = "ADIT_KUBECONFIG",
        value_name = "FILE",
        hide_env_values = true
    )]
    pub kubeconfig: Option<PathBuf>,
}

impl KubeArgs {
    /// Chooses the way, by what is given and what is there.
    ///
    /// # Errors
    ///
    /// [`Error::Kubeconfig`] for a file that cannot be read, [`Error::NoApiServer`] where there is
    /// no way.
    pub fn access(self) -> Result<Access, Error> {
        #[expect(clippy::disallowed_methods, reason = "config reads the environment")]
        let injected = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        let surroundings = Surroundings {
            listed: injected("KUBECONFIG")
                .iter()
                .flat_map(std::env::split_paths)
                .collect(),
            in_pod: injected("KUBERNETES_SERVICE_HOST").is_some(),
            own: injected("HOME").map(|home| PathBuf::from(home).join(".kube/config")),
        };
        surroundings.choose(self.kubeconfig)
    }
}

/// What lies about of ways to an API server.
struct Surroundings {
    /// The files of KUBECONFIG. As kubectl has it there may be several; they are not merged here.
    listed: Vec<PathBuf>,
    in_pod: bool,
    own: Option<PathBuf>,
}

impl Surroundings {
    fn choose(self, given: Option<PathBuf>) -> Result<Access, Error> {
        let listed = self.listed.iter().find(|file| file.is_file());
        let listed = listed.or(self.listed.first()).cloned();
        match given.or(listed) {
            Some(path) => match std::fs::File::open(&path) {
                Ok(_) => Ok(Access::Kubeconfig(path)),
                Err(cause) => Err(Error::Kubeconfig { path, cause }),
            },
            None if self.in_pod => Ok(Access::InCluster),
            None => match self.own.filter(|file| file.is_file()) {
                Some(own) => Ok(Access::Kubeconfig(own)),
                None => Err(Error::NoApiServer),
            },
        }
    }
}

fn format(word: String) -> Format {
    match word.as_str() {
        "json" => Format::Json,
        _ => Format::Text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_api_server_is_found_as_kubectl_finds_it() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str| dir.path().join(name);
        for name in ["given", "listed", "own"] {
            std::fs::write(file(name), "").unwrap();
        }
        let check = |given: Option<&str>,
                     listed: &[&str],
                     in_pod: bool,
                     own: Option<&str>,
                     expect: Result<&str, &str>| {
            let surroundings = Surroundings {
                listed: listed.iter().map(|name| file(name)).collect(),
                in_pod,
                own: own.map(&file),
            };
            let found = match surroundings.choose(given.map(&file)) {
                Ok(Access::InCluster) => Ok("pod".to_owned()),
                Ok(Access::Kubeconfig(path)) => {
                    Ok(path.file_name().unwrap().to_string_lossy().into_owned())
                }
                Err(Error::Kubeconfig { path, .. }) => {
                    Err(path.file_name().unwrap().to_string_lossy().into_owned())
                }
                Err(_) => Err("nothing".to_owned()),
            };
            assert_eq!(found, expect.map(str::to_owned).map_err(str::to_owned));
        };
        check(Some("given"), &["listed"], true, Some("own"), Ok("given"));
        check(Some("gone"), &["listed"], true, Some("own"), Err("gone"));
        check(None, &["gone", "listed"], true, Some("own"), Ok("listed"));
        check(None, &["gone", "lost"], true, Some("own"), Err("gone"));
        check(None, &[], true, Some("own"), Ok("pod"));
        check(None, &[], false, Some("own"), Ok("own"));
        check(None, &[], false, Some("gone"), Err("nothing"));
        check(None, &[], false, None, Err("nothing"));
    }
}
