//! One certificate with its key and the roots that it was issued under.
//!
//! A [`Certificate`] that exists works: its key fits, its path leads to its roots, it names its
//! identity. So building TLS from it (in [`crate::tunnel`]) cannot fail and parses nothing again.

use std::fmt;
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use rustls::RootCertStore;
use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use webpki::KeyUsage;
use x509_parser::parse_x509_certificate;

use crate::mesh::Identity;
use crate::pki::crypto::{provider, verify_path};
use crate::pki::name::{NameError, identity_of};
use crate::pki::rotate::Lifetime;

/// What an issuer returns, before it is checked.
pub struct Parts {
    /// The leaf first, then what leads up to a root; no root.
    pub chain: Vec<CertificateDer<'static>>,
    /// The leaf's private key.
    pub key: PrivateKeyDer<'static>,
    /// Whom peers of this identity are checked against.
    pub roots: Vec<CertificateDer<'static>>,
    /// When it was issued by our own clock: renewal is counted from here, because the certificate's
    /// own start may be set back.
    pub issued: SystemTime,
}

/// Why what an issuer returned is not a certificate to work with.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UnusableCertificate {
    /// The chain has no certificate, or its leaf cannot be read.
    #[error("the issued certificate cannot be read")]
    Malformed,
    /// It names nobody, or in a form that no peer accepts.
    #[error("the issued certificate names no identity")]
    Nameless(#[source] NameError),
    /// It names somebody else.
    #[error("the issued certificate is for {found}, not for {wanted}")]
    Identity {
        /// The name in the certificate.
        found: Identity,
        /// The name that was asked for.
        wanted: Identity,
    },
    /// The key is not the leaf's.
    #[error("the key does not fit the issued certificate")]
    Key(#[source] rustls::Error),
    /// A root cannot be read, or there is none.
    #[error("the roots that came with the certificate cannot be used")]
    Roots(#[source] rustls::Error),
    /// The chain does not lead to the roots, for a server and for a client, at this time.
    #[error("the issued certificate does not lead to its roots")]
    Path(#[source] webpki::Error),
}

/// A certificate in force: what a node shows for one identity, and whom it trusts while it does.
pub struct Certificate {
    identity: Identity,
    epoch: u64,
    serial: String,
    lifetime: Lifetime,
    not_before: SystemTime,
    roots: Vec<CertificateDer<'static>>,
    key: Arc<CertifiedKey>,
    trusted: Arc<RootCertStore>,
}

impl Certificate {
    /// Checks what an issuer returned for `identity`, and prepares it for use.
    ///
    /// # Errors
    ///
    /// [`UnusableCertificate`]: no peer would accept it, so it never becomes current.
    pub fn new(identity: &Identity, parts: Parts) -> Result<Self, UnusableCertificate> {
        let leaf = parts.chain.first().ok_or(UnusableCertificate::Malformed)?;
        let found = identity_of(leaf).map_err(UnusableCertificate::Nameless)?;
        if found != *identity {
            let wanted = identity.clone();
            return Err(UnusableCertificate::Identity { found, wanted });
        }
        let trusted = trust(&parts.roots)?;
        check_path(&parts.chain, &trusted, parts.issued)?;
        let (serial, not_before, not_after) = facts(leaf)?;
        let key = CertifiedKey::from_der(parts.chain, parts.key, provider())
            .map_err(UnusableCertificate::Key)?;
        Ok(Self {
            identity: found,
            epoch: next_epoch(),
            serial,
            lifetime: Lifetime {
                issued: parts.issued,
                not_after,
            },
            not_before,
            roots: parts.roots,
            key: Arc::new(key),
            trusted: Arc::new(trusted),
        })
    }

    /// Whose certificate it is.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// A number that no other certificate of this process has; what is built from a certificate is
    /// cached by it.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The serial number in lower-case hexadecimal, without separators.
    #[must_use]
    pub fn serial(&self) -> &str {
        &self.serial
    }

    /// When it was issued by our clock, and when it ends.
    #[must_use]
    pub fn lifetime(&self) -> Lifetime {
        self.lifetime
    }

    /// The start of validity as written in the certificate, which an issuer sets back to bear with
    /// peers whose clocks are late.
    #[must_use]
    pub fn not_before(&self) -> SystemTime {
        self.not_before
    }

    /// The end of validity.
    #[must_use]
    pub fn not_after(&self) -> SystemTime {
        self.lifetime.not_after
    }

    /// What is sent to peers: the leaf first, then intermediates, never a root.
    #[must_use]
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.key.cert
    }

    /// The roots of the trust domain, as they came with this certificate.
    #[must_use]
    pub fn roots(&self) -> &[CertificateDer<'static>] {
        &self.roots
    }

    /// The same roots, parsed: peers' paths are checked against these.
    #[must_use]
    pub fn trusted(&self) -> &Arc<RootCertStore> {
        &self.trusted
    }

    /// The chain with its signing key, as TLS takes it.
    #[must_use]
    pub fn key(&self) -> &Arc<CertifiedKey> {
        &self.key
    }
}

/// Neither the key nor the chain is shown.
impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificate")
            .field("identity", &self.identity)
            .field("epoch", &self.epoch)
            .field("serial", &self.serial)
            .field("not_after", &self.lifetime.not_after)
            .finish_non_exhaustive()
    }
}

fn next_epoch() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

fn trust(roots: &[CertificateDer<'static>]) -> Result<RootCertStore, UnusableCertificate> {
    let mut store = RootCertStore::empty();
    for root in roots {
        store
            .add(root.clone())
            .map_err(UnusableCertificate::Roots)?;
    }
    if store.is_empty() {
        let none = rustls::Error::General("there is no root".to_owned());
        return Err(UnusableCertificate::Roots(none));
    }
    Ok(store)
}

/// Both usages, because the node is server and client under the same certificate.
fn check_path(
    chain: &[CertificateDer<'static>],
    roots: &RootCertStore,
    now: SystemTime,
) -> Result<(), UnusableCertificate> {
    let (leaf, intermediates) = chain.split_first().ok_or(UnusableCertificate::Malformed)?;
    let now = now
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    for usage in [KeyUsage::server_auth(), KeyUsage::client_auth()] {
        let now = UnixTime::since_unix_epoch(now);
        verify_path(leaf, intermediates, roots, now, usage).map_err(UnusableCertificate::Path)?;
    }
    Ok(())
}

/// Serial, start and end of validity.
fn facts(
    leaf: &CertificateDer<'_>,
) -> Result<(String, SystemTime, SystemTime), UnusableCertificate> {
    let (_, leaf) = parse_x509_certificate(leaf).map_err(|_| UnusableCertificate::Malformed)?;
    let serial = hexadecimal(leaf.raw_serial());
    let validity = leaf.validity();
    Ok((
        serial,
        time(validity.not_before.timestamp()),
        time(validity.not_after.timestamp()),
    ))
}

/// Bytes in lower-case hexadecimal, without separators.
pub(in crate::pki) fn hexadecimal(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// Seconds since 1970 as a time; what lies before counts as 1970.
pub(in crate::pki) fn time(seconds: i64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}
