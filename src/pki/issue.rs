//! Asking for a certificate: the trait that every authority implements, and the request that a
//! remote one is sent.
//!
//! [`directory`](crate::pki::directory) implements it with files, [`remote`](crate::pki::remote)
//! with the network.

use std::time::{Duration, SystemTime};

use futures_util::future::BoxFuture;
use rcgen::{CertificateParams, DistinguishedName, KeyPair, SanType};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::mesh::Identity;
use crate::pki::certificate::{Certificate, Parts, UnusableCertificate};
use crate::pki::directory;
use crate::pki::remote;

/// An authority that gives out certificates.
pub trait Issuer: Send + Sync {
    /// Makes a new key and gets a certificate for it. May take long: the caller sets the limit.
    fn issue<'a>(
        &'a self,
        identity: &'a Identity,
    ) -> BoxFuture<'a, Result<Certificate, IssueError>>;

    /// The time after which the authority itself can issue nothing, if it is known.
    fn ends(&self) -> Option<SystemTime> {
        None
    }
}

/// Why there is no certificate. Each is tried again; none takes a valid certificate away.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IssueError {
    /// The CA directory does not allow it; the cause says what to mend.
    #[error("the CA directory cannot issue")]
    Directory(#[source] directory::Error),
    /// The remote authority gave none; the cause says what to mend.
    #[error("the remote authority did not issue")]
    Remote(#[source] remote::Error),
    /// A key, request or certificate could not be made on this machine.
    #[error("making a key or certificate failed")]
    Crypto(#[source] rcgen::Error),
    /// The authority answered, with something that peers would not accept.
    #[error("the authority's answer cannot be used")]
    Unusable(#[source] UnusableCertificate),
    /// The authority did not answer.
    #[error("the authority did not answer within {0:?}")]
    Timeout(Duration),
    /// Issuing stopped before its end, as when the program ends.
    #[error("issuing was given up")]
    Aborted,
}

impl IssueError {
    /// A stable label for metrics and records.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Directory(error) => error.reason(),
            Self::Remote(error) => error.reason(),
            Self::Crypto(_) => "crypto",
            Self::Unusable(_) => "unusable_certificate",
            Self::Timeout(_) => "timeout",
            Self::Aborted => "aborted",
        }
    }
}

/// A new EC P-256 key, for which a certificate is wanted.
pub struct Request {
    identity: Identity,
    key: KeyPair,
}

impl Request {
    /// Makes the key. Every certificate has a key of its own.
    ///
    /// # Errors
    ///
    /// [`IssueError::Crypto`] when the machine cannot make keys.
    pub fn new(identity: &Identity) -> Result<Self, IssueError> {
        Ok(Self {
            identity: identity.clone(),
            key: KeyPair::generate().map_err(IssueError::Crypto)?,
        })
    }

    /// The public half.
    #[must_use]
    pub fn public_key(&self) -> &(impl rcgen::PublicKeyData + use<>) {
        &self.key
    }

    /// The request in PEM (PKCS #10): empty subject, and the identity as critical URI name.
    ///
    /// # Errors
    ///
    /// [`IssueError::Crypto`] when signing it fails.
    pub fn csr(&self) -> Result<String, IssueError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![uri(&self.identity).map_err(IssueError::Crypto)?];
        let csr = params
            .serialize_request(&self.key)
            .map_err(IssueError::Crypto)?;
        csr.pem().map_err(IssueError::Crypto)
    }

    /// Joins the key with the authority's answer: a chain, leaf first, and its roots.
    ///
    /// # Errors
    ///
    /// [`IssueError::Unusable`] when the answer is not a working certificate for this request.
    pub fn complete(
        self,
        chain: Vec<CertificateDer<'static>>,
        roots: Vec<CertificateDer<'static>>,
        issued: SystemTime,
    ) -> Result<Certificate, IssueError> {
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key.serialize_der()));
        let parts = Parts {
            chain,
            key,
            roots,
            issued,
        };
        Certificate::new(&self.identity, parts).map_err(IssueError::Unusable)
    }
}

/// An identity as a subject alternative name.
pub(in crate::pki) fn uri(identity: &Identity) -> Result<SanType, rcgen::Error> {
    Ok(SanType::URI(identity.to_string().try_into()?))
}
