//! The one place that makes a client of the Kubernetes API.
//!
//! Address, authority and credentials come from the service account that Kubernetes mounts into a
//! pod, or from a kubeconfig file ([`Access`]). All three may change while the daemon runs: tokens
//! expire, an authority is rotated. The library reads a token's file again only once a minute, and
//! the authority never. So whoever is refused asks [`Clients`] for another client, which is made
//! from what the files say then.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use http::HeaderValue;
use http::header::USER_AGENT;
use kube::Client;
use kube::config::{Config, InClusterError, KubeConfigOptions, Kubeconfig, KubeconfigError};

/// How long a connection to the API server may take to come about.
const CONNECT: Duration = Duration::from_secs(5);

/// Who we are in the API server's audit log.
const AGENT: &str = concat!("adit/", env!("CARGO_PKG_VERSION"));

/// Where the API server and our credentials for it are found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Access {
    /// In a pod: the mounted service account, and the address in the environment.
    InCluster,
    /// The current context of a kubeconfig file.
    Kubeconfig(PathBuf),
}

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not in a pod, or in one without a service account.
    #[error(
        "cannot use the pod's service account for the Kubernetes API: \
         let it be mounted (automountServiceAccountToken), or give --kubeconfig"
    )]
    InCluster(#[source] InClusterError),
    /// The file cannot be read or used.
    #[error("cannot use kubeconfig {}: mend the file, or give another with --kubeconfig", .0.display())]
    Kubeconfig(PathBuf, #[source] Box<KubeconfigError>),
    /// What was found makes no client: a certificate or token that cannot be read.
    #[error("cannot use the credentials for the Kubernetes API: mend what the next part names")]
    Credentials(#[source] Box<kube::Error>),
}

impl Access {
    /// Makes a client from what the files say now. It speaks to nobody yet.
    ///
    /// # Errors
    ///
    /// An [`Error`] that names what cannot be used.
    ///
    /// # Panics
    ///
    /// Outside of a runtime.
    pub async fn client(&self) -> Result<Client, Error> {
        let mut config = match self {
            Self::InCluster => Config::incluster().map_err(Error::InCluster)?,
            Self::Kubeconfig(path) => {
                let wrong = |cause| Error::Kubeconfig(path.clone(), Box::new(cause));
                let file = Kubeconfig::read_from(path).map_err(wrong)?;
                let options = KubeConfigOptions::default();
                let config = Config::from_custom_kubeconfig(file, &options);
                config.await.map_err(wrong)?
            }
        };
        config.connect_timeout = Some(CONNECT);
        // Whoever asks knows how long it may take, and when to ask again.
        config.read_timeout = None;
        config.default_retry = false;
        let agent = HeaderValue::from_static(AGENT);
        config.headers.push((USER_AGENT, agent));
        Client::try_from(config).map_err(|cause| Error::Credentials(Box::new(cause)))
    }
}

/// Clients of one API server, shared by all who ask it and made anew when one is refused.
#[derive(Debug)]
pub struct Clients {
    access: Access,
    current: Mutex<Current>,
}

#[derive(Default)]
struct Current {
    generation: u64,
    client: Option<Client>,
}

impl std::fmt::Debug for Current {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Current")
            .field("generation", &self.generation)
            .finish_non_exhaustive()
    }
}

/// Which client it was, for [`Clients::renew`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Generation(u64);

impl Clients {
    /// Clients by this access; none is made yet.
    #[must_use]
    pub fn new(access: Access) -> Self {
        Self {
            access,
            current: Mutex::default(),
        }
    }

    /// The client of now.
    ///
    /// # Errors
    ///
    /// An [`Error`] where none can be made.
    ///
    /// # Panics
    ///
    /// Outside of a runtime.
    pub async fn client(&self) -> Result<(Client, Generation), Error> {
        if let Some(known) = self.known() {
            return Ok(known);
        }
        // Two who come at once make one each, and the later one's is kept.
        let made = self.access.client().await?;
        let mut current = self.lock();
        let client = current.client.insert(made).clone();
        Ok((client, Generation(current.generation)))
    }

    /// Drops the client of `generation`, since it was refused; the next is made from what the files
    /// say then. Does nothing when that has happened already.
    pub fn renew(&self, generation: Generation) {
        let mut current = self.lock();
        if current.generation == generation.0 {
            current.generation += 1;
            current.client = None;
        }
    }

    fn known(&self) -> Option<(Client, Generation)> {
        let current = self.lock();
        let client = current.client.clone()?;
        Some((client, Generation(current.generation)))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Current> {
        // Nothing that is done under the lock can leave it half done.
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
