//! Flags of the certificate authority, `adit control`, and of `adit ca`.

use std::net::SocketAddr;
use std::time::Duration;

use clap::Args;

use crate::config::{
    DomainArgs, Error, KubeArgs, LogArgs, SHORTEST_CERTIFICATE, SecretArgs, WatchArgs, address,
    dns_name, duration, namespace,
};
use crate::control::ca::Place;
use crate::control::config::{Config, KeySpec};

/// Where the authority lies in the cluster, and how the cluster is reached.
#[derive(Clone, Debug, Args)]
pub struct ClusterArgs {
    /// Namespace of the authority's Secret and ConfigMap [also: POD_NAMESPACE]
    /// [default: adit-system]
    #[arg(
        short,
        long,
        env = "ADIT_NAMESPACE",
        value_name = "NAMESPACE",
        value_parser = namespace,
        hide_env_values = true
    )]
    pub namespace: Option<String>,

    /// ConfigMap in which the roots are published
    #[arg(
        long,
        env = "ADIT_CA_CONFIG_MAP",
        value_name = "NAME",
        default_value = "adit-ca-root",
        value_parser = dns_name,
        hide_env_values = true
    )]
    pub ca_config_map: String,

    /// How the cluster is reached.
    #[command(flatten)]
    pub kube: KubeArgs,
}

impl ClusterArgs {
    pub(super) fn namespace(&self) -> String {
        #[expect(clippy::disallowed_methods, reason = "config reads the environment")]
        let injected = std::env::var("POD_NAMESPACE").ok();
        let injected = injected.filter(|name| namespace(name).is_ok());
        let given = self.namespace.clone().or(injected);
        given.unwrap_or_else(|| "adit-system".to_owned())
    }
}

/// The flags of `adit control`, each with its twin in the environment.
#[derive(Clone, Debug, Args)]
pub struct ControlArgs {
    /// The cluster's part.
    #[command(flatten)]
    pub cluster: ClusterArgs,

    /// Key of the authority: a Secret, made at the first start; or a directory with tls.crt, tls.key
    /// and ca.crt, as cert-manager fills a Secret, mounted here
    #[arg(
        long,
        env = "ADIT_CONTROL_CA",
        value_name = "secret:NAME|dir:PATH",
        default_value = "secret:adit-ca",
        value_parser = keys,
        hide_env_values = true
    )]
    pub ca: KeySpec,

    /// What names end with.
    #[command(flatten)]
    pub domains: DomainArgs,

    /// Audience that the tokens of node daemons must be made for
    #[arg(
        long,
        env = "ADIT_CA_AUDIENCE",
        value_name = "AUDIENCE",
        default_value = "adit-ca",
        hide_env_values = true
    )]
    pub audience: String,

    /// Service account of the node daemons; may be repeated [default: adit-node in --namespace]
    #[arg(
        long,
        env = "ADIT_NODE_ACCOUNT",
        value_name = "NAMESPACE/NAME",
        value_delimiter = ',',
        value_parser = account,
        hide_env_values = true
    )]
    pub node_account: Vec<String>,

    /// No certificate is valid for longer, whatever a node wishes
    #[arg(
        long,
        env = "ADIT_MAX_VALIDITY",
        value_name = "DURATION",
        default_value = "24h",
        value_parser = duration,
        hide_env_values = true
    )]
    pub max_validity: Duration,

    /// Name of the Service by which nodes reach this: its forms go into the serving certificate
    #[arg(
        long,
        env = "ADIT_CONTROL_SERVICE",
        value_name = "NAME",
        default_value = "adit-control",
        value_parser = namespace,
        hide_env_values = true
    )]
    pub service: String,

    /// A further DNS name or address by which nodes reach this; may be repeated
    #[arg(
        long,
        env = "ADIT_CONTROL_NAME",
        value_name = "NAME",
        value_delimiter = ',',
        value_parser = name,
        hide_env_values = true
    )]
    pub name: Vec<String>,

    /// Address where certificates are asked for
    #[arg(
        long,
        env = "ADIT_CONTROL_LISTEN",
        value_name = "ADDRESS:PORT",
        default_value = "[::]:15012",
        value_parser = address,
        hide_env_values = true
    )]
    pub listen: SocketAddr,

    /// Where it is looked at.
    #[command(flatten)]
    pub watch: WatchArgs,

    /// What it logs.
    #[command(flatten)]
    pub log: LogArgs,
}

impl ControlArgs {
    /// Completes and checks the flags as a whole.
    ///
    /// # Errors
    ///
    /// [`Error::MaxValidity`], and as [`KubeArgs::access`].
    pub fn check(self) -> Result<Config, Error> {
        if self.max_validity < SHORTEST_CERTIFICATE {
            return Err(Error::MaxValidity(self.max_validity));
        }
        let namespace = self.cluster.namespace();
        let mut node_accounts = self.node_account;
        if node_accounts.is_empty() {
            node_accounts.push(format!("{namespace}/adit-node"));
        }
        let mut names = service_names(&self.service, &namespace, &self.domains.cluster_domain);
        names.extend(self.name);
        Ok(Config {
            access: self.cluster.kube.access()?,
            bundle: self.cluster.ca_config_map,
            namespace,
            keys: self.ca,
            trust_domain: self.domains.trust_domain,
            audience: self.audience,
            node_accounts,
            max_validity: self.max_validity,
            names,
            listen: self.listen,
            metrics: self.watch.metrics,
            ready: self.watch.ready,
            log_filter: self.log.log,
            log_format: self.log.log_format,
        })
    }
}

/// The flags of `adit ca`.
#[derive(Clone, Debug, Args)]
pub struct CaArgs {
    /// The cluster's part.
    #[command(flatten)]
    pub cluster: ClusterArgs,

    /// The authority's Secret.
    #[command(flatten)]
    pub secret: SecretArgs,
}

impl CaArgs {
    /// Where the authority lies.
    ///
    /// # Errors
    ///
    /// As [`KubeArgs::access`].
    pub fn place(self) -> Result<Place, Error> {
        Ok(Place {
            namespace: self.cluster.namespace(),
            access: self.cluster.kube.access()?,
            secret: self.secret.ca_secret,
            bundle: self.cluster.ca_config_map,
        })
    }
}

/// The forms in which a pod may write the name of a service.
fn service_names(service: &str, namespace: &str, domain: &str) -> Vec<String> {
    vec![
        format!("{service}.{namespace}.svc"),
        format!("{service}.{namespace}.svc.{domain}"),
        format!("{service}.{namespace}"),
        service.to_owned(),
    ]
}

fn keys(text: &str) -> Result<KeySpec, String> {
    let wrong = || "write secret:NAME or dir:PATH, for example secret:adit-ca".to_owned();
    match text.split_once(':') {
        Some(("secret", name)) => {
            dns_name(name).map_err(|_| wrong())?;
            Ok(KeySpec::Secret(name.to_owned()))
        }
        Some(("dir", path)) if !path.is_empty() => Ok(KeySpec::Directory(path.into())),
        _ => Err(wrong()),
    }
}

fn account(text: &str) -> Result<String, String> {
    match text.split_once('/') {
        Some((space, name)) if namespace(space).is_ok() && dns_name(name).is_ok() => {
            Ok(text.to_owned())
        }
        _ => Err("write NAMESPACE/NAME, for example adit-system/adit-node".to_owned()),
    }
}

fn name(text: &str) -> Result<String, String> {
    if text.parse::<std::net::IpAddr>().is_ok() || dns_name(text).is_ok() {
        Ok(text.to_owned())
    } else {
        Err("neither a DNS name nor an address".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_the_key_is_says_what_it_is() {
        let check = |text: &str, expect: Option<&str>| {
            let parsed = keys(text).ok().map(|keys| keys.to_string());
            assert_eq!(parsed.as_deref(), expect, "{text:?}");
        };
        check("secret:adit-ca", Some("secret:adit-ca"));
        check("dir:/etc/ca", Some("dir:/etc/ca"));
        check("secret:", None);
        check("secret:A/B", None);
        check("dir:", None);
        check("adit-ca", None);
        check("/etc/ca", None);
    }

    #[test]
    fn accounts_and_names_are_checked() {
        let check = |valid: bool, right: bool, text: &str| assert_eq!(valid, right, "{text:?}");
        for (text, right) in [
            ("adit-system/adit-node", true),
            ("istio-system/z.tunnel", true),
            ("adit-node", false),
            ("a/b/c", false),
            ("/b", false),
            ("a/", false),
        ] {
            check(account(text).is_ok(), right, text);
        }
        for (text, right) in [
            ("127.0.0.1", true),
            ("::1", true),
            ("a.b", true),
            ("a b", false),
        ] {
            check(name(text).is_ok(), right, text);
        }
        assert_eq!(
            service_names("c", "n", "d.e"),
            ["c.n.svc", "c.n.svc.d.e", "c.n", "c"]
        );
    }
}
