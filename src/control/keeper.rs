//! Keeps the authority in force: reads it, makes it at the first start, publishes its roots.
//!
//! Every replica reads the Secret every [`PAUSE`] and does what it finds there. No replica is the
//! leader: the API server's versions decide who was first, and who was second reads again. A state
//! that could not be read for [`FRESH`] signs no more, because the rules of a rotation count on it.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwapOption;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, PostParams};
use tokio::sync::watch;

use crate::causes::Causes;
use crate::control::config::{Config, KeySpec};
use crate::control::kube::{self as api, Kube};
use crate::control::rotation::FRESH;
use crate::control::store::{Keys, Published, Root, Unreadable};
use crate::mesh::TrustDomain;
use crate::pki::authority::{Authority, Flaw, Material, Part, write_bundle};
use crate::task;
use crate::telemetry::metrics::{Control as Metrics, Reason};
use crate::telemetry::timestamp;

/// The time between two looks.
const PAUSE: Duration = Duration::from_secs(5);
/// The time to the next look while there is nothing in force.
const SHORT_PAUSE: Duration = Duration::from_secs(1);
/// An authority that ends within this is worth a word.
const NOTICE: Duration = Duration::from_secs(30 * 24 * 60 * 60);
/// How often.
const NOTICE_EVERY: Duration = Duration::from_secs(24 * 60 * 60);

/// Why there is no authority, or no change of it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The API server.
    #[error(transparent)]
    Api(#[from] api::Error),
    /// Somebody has taken the key away.
    #[error(
        "the Secret {secret} is gone, and the ConfigMap {bundle} says that its root is trusted: \
         restore the Secret; or, to cut everybody off and begin with a new root, delete the ConfigMap"
    )]
    Gone {
        /// The Secret's name.
        secret: String,
        /// The ConfigMap's name.
        bundle: String,
    },
    /// Another authority is in force, and nobody who has a certificate of that would know one of this.
    #[error(
        "the ConfigMap {bundle} says that other roots are trusted, and none of {place}'s: whoever has a \
         certificate would be cut off from whoever gets one now. Let both be trusted for a while \
         (daemonset/README.md, \"An authority of your own\"); or, to cut everybody off and begin anew, \
         delete the ConfigMap"
    )]
    Foreign {
        /// The ConfigMap.
        bundle: String,
        /// Where the authority is.
        place: String,
    },
    /// The Secret is not one of ours, or was damaged.
    #[error("the Secret {secret} cannot be used: {cause}; restore it")]
    Secret {
        /// Its name.
        secret: String,
        /// What is wrong.
        cause: Unreadable,
    },
    /// What is there is no authority for us.
    #[error("{place} {fault}")]
    Flaw {
        /// `secret:NAME` or `dir:PATH`.
        place: String,
        /// What is wrong with it, and what to do.
        fault: String,
    },
    /// A mounted file cannot be read.
    #[error("cannot read {path}: mount the Secret with tls.crt, tls.key and ca.crt there")]
    File {
        /// The file.
        path: String,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// A key could not be made.
    #[error("cannot make a root")]
    Crypto(#[source] rcgen::Error),
}

impl Error {
    /// The stable label.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::Api(_) => "api",
            Self::Gone { .. } => "secret_gone",
            Self::Foreign { .. } => "foreign_roots",
            Self::Secret { .. } => "secret_unreadable",
            Self::Flaw { .. } => "authority_unusable",
            Self::File { .. } => "file",
            Self::Crypto(_) => "crypto",
        }
    }
}

/// An authority in force.
pub(crate) struct InForce {
    /// What signs.
    pub(crate) authority: Authority,
    /// The roots of the trust domain, in PEM.
    pub(crate) bundle: String,
    /// What is told apart: another one has another text.
    material: String,
}

/// The authority, as the rest of the program finds it.
pub(crate) struct Keeper {
    config: Config,
    kube: Arc<Kube>,
    metrics: Arc<Metrics>,
    current: ArcSwapOption<InForce>,
    /// When it was last seen to be up to date.
    seen: watch::Sender<Option<Instant>>,
    /// Tells that another one is in force.
    changed: watch::Sender<()>,
}

impl Keeper {
    /// Nothing is in force yet.
    pub(crate) fn new(config: &Config, kube: &Arc<Kube>, metrics: &Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self {
            config: config.clone(),
            kube: kube.clone(),
            metrics: metrics.clone(),
            current: ArcSwapOption::empty(),
            seen: watch::Sender::new(None),
            changed: watch::Sender::new(()),
        })
    }

    /// The authority, if it may sign.
    pub(crate) fn current(&self) -> Result<Arc<InForce>, String> {
        let Some(current) = self.current.load_full() else {
            return Err("it has no key yet; see its log".to_owned());
        };
        if current.authority.ends() <= SystemTime::now() {
            return Err("its certificate is over; see its log".to_owned());
        }
        let seen = *self.seen.borrow();
        // A directory is read where it lies, and no rotation by us goes on there.
        let mounted = matches!(self.config.keys, KeySpec::Directory(_));
        if !mounted && seen.is_none_or(|seen| seen.elapsed() > FRESH) {
            return Err(format!(
                "it has not seen its Secret for {FRESH:?}; see its log"
            ));
        }
        Ok(current)
    }

    /// Whatever is in force, also when it may not sign: for the server's own certificate.
    pub(crate) fn latest(&self) -> Option<Arc<InForce>> {
        self.current.load_full()
    }

    /// Changes whenever another authority is in force.
    pub(crate) fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Keeps it, for ever.
    pub(crate) async fn run(self: Arc<Self>) {
        let mut told: Option<String> = None;
        let mut noticed: Option<Instant> = None;
        loop {
            match self.look().await {
                Ok(()) => {
                    if told.take().is_some() {
                        tracing::info!("the authority is kept again");
                    }
                }
                Err(error) => {
                    let reason = Reason {
                        reason: error.reason(),
                    };
                    self.metrics.keep_failures.get_or_create(&reason).inc();
                    let words = Causes(&error).to_string();
                    // Once for each cause: the next look is seconds away.
                    if told.as_ref() != Some(&words) {
                        tracing::error!(reason = error.reason(), error = %words, "the authority cannot be kept up to date");
                        told = Some(words);
                    }
                }
            }
            self.notice_end(&mut noticed);
            let pause = if self.current.load().is_some() {
                PAUSE
            } else {
                SHORT_PAUSE
            };
            tokio::time::sleep(pause).await;
        }
    }

    fn notice_end(&self, noticed: &mut Option<Instant>) {
        let Some(current) = self.current.load_full() else {
            return;
        };
        let ends = current.authority.ends();
        let told = noticed.is_some_and(|at| at.elapsed() < NOTICE_EVERY);
        if ends <= SystemTime::now() + NOTICE && !told {
            *noticed = Some(Instant::now());
            tracing::warn!(
                ends = timestamp(ends),
                mend = "adit ca stage",
                "the authority's certificate ends soon"
            );
        }
    }

    /// One look: read, put in force, publish.
    async fn look(&self) -> Result<(), Error> {
        let asked = Instant::now();
        let map = self.bundle_map().await?;
        let (authority, material) = match &self.config.keys {
            KeySpec::Secret(name) => self.read_secret(name, map.as_ref()).await?,
            KeySpec::Directory(path) => self.read_mounted(path).await?,
        };
        let bundle = write_bundle(authority.roots());
        self.publish(map, &authority).await?;
        // What signs is never ahead of what is published.
        self.seen.send_replace(Some(asked));
        let ends = authority.ends().duration_since(SystemTime::UNIX_EPOCH);
        let ends = ends.unwrap_or_default().as_secs();
        self.metrics
            .authority_expiry
            .set(i64::try_from(ends).unwrap_or(i64::MAX));
        self.metrics
            .roots
            .set(i64::try_from(authority.roots().len()).unwrap_or(i64::MAX));
        let same =
            |current: &Arc<InForce>| current.material == material && current.bundle == bundle;
        if !self.current.load().as_ref().is_some_and(same) {
            tracing::info!(
                from = %self.config.keys,
                serial = authority.serial(),
                roots = authority.roots().len(),
                ends = timestamp(authority.ends()),
                "authority in force",
            );
            self.current.store(Some(Arc::new(InForce {
                authority,
                bundle,
                material,
            })));
            self.changed.send_replace(());
        }
        Ok(())
    }

    async fn read_secret(
        &self,
        name: &str,
        map: Option<&ConfigMap>,
    ) -> Result<(Authority, String), Error> {
        let mut secret = self.secret(name, map).await?;
        let unusable = |cause| Error::Secret {
            secret: name.to_owned(),
            cause,
        };
        let mut keys = Keys::read(&secret).map_err(unusable)?;
        let longest = self.config.max_validity;
        if keys.longest < longest {
            // Whoever rotates counts on this, so it is written before anything so long is signed.
            keys.longest = longest;
            keys.write(&mut secret);
            let secrets = |client| Api::<Secret>::namespaced(client, &self.config.namespace);
            let replace = async |client| {
                let params = PostParams::default();
                secrets(client).replace(name, &params, &secret).await
            };
            self.kube
                .ask("write the Secret of the authority", replace)
                .await?;
        }
        let now = SystemTime::now();
        let authority = keys.authority(&self.config.trust_domain, now);
        let authority = authority.map_err(|flaw| self.flaw(flaw))?;
        Ok((authority, keys.active.certificate))
    }

    /// The Secret, made if this is the first start. Of two replicas that make it at once, the second
    /// learns so and reads the first one's.
    async fn secret(&self, name: &str, map: Option<&ConfigMap>) -> Result<Secret, Error> {
        let secrets = |client| Api::<Secret>::namespaced(client, &self.config.namespace);
        let read = async |client| secrets(client).get_opt(name).await;
        let attempt = "read the Secret of the authority";
        if let Some(secret) = self.kube.ask(attempt, read).await? {
            return Ok(secret);
        }
        let bundle = map.map(Published::read).unwrap_or_default().bundle;
        if !bundle.trim().is_empty() {
            return Err(Error::Gone {
                secret: name.to_owned(),
                bundle: self.config.bundle.clone(),
            });
        }
        let root = Root::make(&self.config.trust_domain, SystemTime::now());
        let root = root.map_err(Error::Crypto)?;
        let mut secret = Secret {
            metadata: named(name, &self.config.namespace),
            type_: Some("adit.mesh/ca".to_owned()),
            ..Secret::default()
        };
        Keys::first(root, self.config.max_validity).write(&mut secret);
        let create = async |client| {
            secrets(client)
                .create(&PostParams::default(), &secret)
                .await
        };
        let made = self
            .kube
            .ask("create the Secret of the authority", create)
            .await;
        match made {
            Ok(_) => tracing::info!(secret = name, "made a root"),
            Err(error) if error.code() == Some(409) => {
                tracing::info!(secret = name, "another replica has made the root");
            }
            Err(error) => return Err(error.into()),
        }
        // What counts is what is there, whoever made it.
        let read = self
            .kube
            .ask(attempt, async |client| secrets(client).get(name).await);
        Ok(read.await?)
    }

    async fn read_mounted(&self, path: &Path) -> Result<(Authority, String), Error> {
        let (path, domain) = (path.to_owned(), self.config.trust_domain.clone());
        let work = move || read_directory(&path, &domain);
        let read = task::blocking("read the mounted authority", work).await;
        read.unwrap_or_else(|| {
            Err(Unread::File(
                "the directory".to_owned(),
                std::io::Error::other("reading was given up"),
            ))
        })
        .map_err(|error| match error {
            Unread::File(path, source) => Error::File { path, source },
            Unread::Flaw(flaw) => self.flaw(flaw),
        })
    }

    async fn bundle_map(&self) -> Result<Option<ConfigMap>, Error> {
        let maps = |client| Api::<ConfigMap>::namespaced(client, &self.config.namespace);
        let read = async |client| maps(client).get_opt(&self.config.bundle).await;
        Ok(self
            .kube
            .ask("read the ConfigMap of the roots", read)
            .await?)
    }

    /// Sees to it that the ConfigMap has exactly these roots.
    async fn publish(&self, map: Option<ConfigMap>, authority: &Authority) -> Result<(), Error> {
        let name = &self.config.bundle;
        let maps = |client| Api::<ConfigMap>::namespaced(client, &self.config.namespace);
        let published = map.as_ref().map(Published::read).unwrap_or_default();
        if published.is_foreign(authority.roots()) {
            return Err(Error::Foreign {
                bundle: name.clone(),
                place: self.config.keys.to_string(),
            });
        }
        let wanted = published.renewed(authority.roots(), SystemTime::now());
        if map.is_some() && wanted == published {
            return Ok(());
        }
        let fresh = map.is_none();
        let mut map = map.unwrap_or_else(|| ConfigMap {
            metadata: named(name, &self.config.namespace),
            ..ConfigMap::default()
        });
        wanted.write(&mut map);
        let params = PostParams::default();
        let write = async |client| match fresh {
            true => maps(client).create(&params, &map).await,
            false => maps(client).replace(name, &params, &map).await,
        };
        match self
            .kube
            .ask("write the ConfigMap of the roots", write)
            .await
        {
            Ok(_) => {
                tracing::info!(
                    config_map = name,
                    roots = authority.roots().len(),
                    "roots published"
                );
                Ok(())
            }
            // Another replica was first, from the same Secret; the next look compares again.
            Err(error) if error.code() == Some(409) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn flaw(&self, flaw: Flaw) -> Error {
        let part = |part| match part {
            Part::Certificate => "certificate",
            Part::Key => "key",
            Part::Chain => "chain",
            Part::Roots => "further roots",
        };
        let ours = &self.config.trust_domain;
        let fault = match flaw {
            Flaw::Malformed { part: of, fault } => {
                format!("cannot be used, its {} {fault}: replace it", part(of))
            }
            Flaw::Mismatch => {
                "cannot be used, its key is not its certificate's: put the two of one authority there"
                    .to_owned()
            }
            Flaw::TrustDomain { found } => format!(
                "is the authority of trust domain {found}, and this is {ours}: start with \
                 --trust-domain {found}, or with another --ca"
            ),
            Flaw::NotValid {
                part: of,
                not_before,
                not_after,
            } => format!(
                "has a {} that is valid from {not_before} to {not_after} only: check the clock, or \
                 replace it",
                part(of)
            ),
        };
        Error::Flaw {
            place: self.config.keys.to_string(),
            fault,
        }
    }
}

fn named(name: &str, namespace: &str) -> ObjectMeta {
    ObjectMeta {
        name: Some(name.to_owned()),
        namespace: Some(namespace.to_owned()),
        ..ObjectMeta::default()
    }
}

enum Unread {
    File(String, std::io::Error),
    Flaw(Flaw),
}

/// The files that cert-manager writes: the chain without its root, the key, and the root.
fn read_directory(path: &Path, domain: &TrustDomain) -> Result<(Authority, String), Unread> {
    let read = |name: &str| {
        let path = path.join(name);
        std::fs::read(&path).map_err(|source| Unread::File(path.display().to_string(), source))
    };
    let (certificate, key) = (read("tls.crt")?, read("tls.key")?);
    // Not every issuer knows its root: a self-signed tls.crt needs none.
    let roots = match read("ca.crt") {
        Err(Unread::File(_, source)) if source.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        roots => roots?,
    };
    let material = Material {
        certificate: &certificate,
        key: &key,
        chain: b"",
        roots: &roots,
    };
    let authority = Authority::read(material, domain, SystemTime::now()).map_err(Unread::Flaw)?;
    Ok((
        authority,
        String::from_utf8_lossy(&certificate).into_owned(),
    ))
}
