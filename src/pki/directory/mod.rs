//! A certificate authority that is a directory: `--ca dir:PATH`.
//!
//! | file | what it holds, in PEM |
//! |---|---|
//! | `root.key` | the key that signs; readable by its owner alone |
//! | `root.pem` | the certificate of that key |
//! | `chain.pem` | optional: when `root.pem` is not self-signed, what leads from it up to a root |
//! | `roots.pem` | optional: further roots to trust, as during a rotation |
//!
//! The first daemon that finds neither `root.key` nor `root.pem` makes them; whoever starts at the
//! same moment finds one and the same. A root of one's own is put there as these files; a key alone
//! is given a certificate. Roots are the self-signed certificates among all of these; a root that
//! is over is not trusted.
//!
//! Files are read again for each certificate, so what is replaced counts from the next one on. To
//! rotate: (1) put the new root into `roots.pem` and wait until all certificates were renewed,
//! (2) replace `root.key` and `root.pem` and put the old root into `roots.pem`, (3) take it out
//! after one more life of a certificate.
//!
//! `files` knows the file system, `authority` which file is what;
//! [`crate::pki::authority`] knows X.509.

mod authority;
mod error;
mod files;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use futures_util::future::BoxFuture;
use rustls_pki_types::CertificateDer;

use crate::mesh::{Identity, TrustDomain};
use crate::pki::certificate::Certificate;
use crate::pki::issue::{IssueError, Issuer, Request};
use crate::task;

pub use error::Error;

/// How long a certificate is valid unless told otherwise.
pub const VALIDITY: Duration = Duration::from_secs(24 * 60 * 60);

/// The issuer that needs a directory and nothing else.
#[derive(Debug)]
pub struct DirectoryCa {
    place: Arc<Place>,
    /// The end of the authority as of the last time that it was read.
    ends: Arc<Mutex<SystemTime>>,
    roots: Vec<CertificateDer<'static>>,
}

#[derive(Debug)]
struct Place {
    path: PathBuf,
    trust_domain: TrustDomain,
    validity: Duration,
}

impl DirectoryCa {
    /// Opens the authority at `path`, and makes it if there is none. Blocks on the file system.
    ///
    /// # Errors
    ///
    /// [`Error`]: the authority cannot be used, and its text says what to do.
    pub fn open(path: &Path, trust_domain: &TrustDomain) -> Result<Self, Error> {
        files::prepare(path)?;
        authority::establish(path, trust_domain, SystemTime::now())?;
        let authority = authority::load(path, trust_domain, SystemTime::now())?;
        Ok(Self {
            ends: Arc::new(Mutex::new(authority.ends())),
            roots: authority.roots().to_vec(),
            place: Arc::new(Place {
                path: path.to_owned(),
                trust_domain: trust_domain.clone(),
                validity: VALIDITY,
            }),
        })
    }

    /// The same authority, whose certificates are valid for `validity` instead of [`VALIDITY`].
    /// X.509 counts whole seconds. No certificate outlives its authority.
    #[must_use]
    pub fn with_validity(mut self, validity: Duration) -> Self {
        self.place = Arc::new(Place {
            path: self.place.path.clone(),
            trust_domain: self.place.trust_domain.clone(),
            validity,
        });
        self
    }

    /// The roots as they were when this was opened.
    #[must_use]
    pub fn roots(&self) -> &[CertificateDer<'static>] {
        &self.roots
    }
}

impl Issuer for DirectoryCa {
    fn issue<'a>(
        &'a self,
        identity: &'a Identity,
    ) -> BoxFuture<'a, Result<Certificate, IssueError>> {
        let (place, ends, identity) = (self.place.clone(), self.ends.clone(), identity.clone());
        // Signing takes CPU time and reading may hang on a network file system: the thread that
        // asks has other work to do.
        let work = move || place.issue(&identity, &ends, SystemTime::now());
        Box::pin(async {
            let outcome = task::blocking("issue", work).await;
            outcome.ok_or(IssueError::Aborted)?
        })
    }

    fn ends(&self) -> Option<SystemTime> {
        Some(*self.ends.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Place {
    fn issue(
        &self,
        identity: &Identity,
        ends: &Mutex<SystemTime>,
        now: SystemTime,
    ) -> Result<Certificate, IssueError> {
        files::check_directory(&self.path).map_err(IssueError::Directory)?;
        let authority =
            authority::load(&self.path, &self.trust_domain, now).map_err(IssueError::Directory)?;
        *ends.lock().unwrap_or_else(PoisonError::into_inner) = authority.ends();
        let request = Request::new(identity)?;
        let chain = authority
            .sign(request.public_key(), identity, self.validity, now)
            .map_err(IssueError::Crypto)?;
        request.complete(chain, authority.roots().to_vec(), now)
    }
}

#[cfg(test)]
mod tests;
