//! The identity that a certificate names.
//!
//! Pure. The input may be hostile: it is whatever a peer sent. Which identity is welcome is decided
//! by the caller; that the certificate is genuine, by [`verify_path`](crate::pki::verify_path).

use rustls_pki_types::CertificateDer;
use x509_parser::extensions::GeneralName;
use x509_parser::parse_x509_certificate;

use crate::mesh::Identity;
use crate::mesh::IdentityError;

/// Why a certificate names no identity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NameError {
    /// The bytes are not one X.509 certificate, or its alternative names cannot be read.
    #[error("the certificate cannot be read")]
    Malformed,
    /// There is no URI among the subject alternative names; DNS names and addresses do not count.
    #[error("the certificate has no URI name")]
    Absent,
    /// More than one URI: the X.509-SVID standard §2 allows exactly one, and choosing one of them
    /// would let a certificate be two workloads.
    #[error("the certificate has {0} URI names, not one")]
    Several(usize),
    /// The URI is not that of a workload.
    #[error("the certificate's URI name is not a workload's identity")]
    Form(#[source] IdentityError),
}

impl NameError {
    /// A stable label for metrics and records.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Malformed => "certificate_malformed",
            Self::Absent => "identity_absent",
            Self::Several(_) => "identity_ambiguous",
            Self::Form(_) => "identity_malformed",
        }
    }
}

/// Reads the identity from the only URI among the subject alternative names (X.509-SVID §2).
///
/// # Errors
///
/// [`NameError`] for every other certificate, and for bytes that are none.
pub fn identity_of(certificate: &CertificateDer<'_>) -> Result<Identity, NameError> {
    let (rest, certificate) =
        parse_x509_certificate(certificate).map_err(|_| NameError::Malformed)?;
    if !rest.is_empty() {
        return Err(NameError::Malformed);
    }
    let names = certificate
        .subject_alternative_name()
        .map_err(|_| NameError::Malformed)?
        .ok_or(NameError::Absent)?;
    let mut uris = Vec::new();
    for name in &names.value.general_names {
        match name {
            GeneralName::URI(uri) => uris.push(*uri),
            // An unreadable name could be a second URI.
            GeneralName::Invalid(..) => return Err(NameError::Malformed),
            _ => {}
        }
    }
    match uris[..] {
        [] => Err(NameError::Absent),
        [uri] => Identity::parse(uri).map_err(NameError::Form),
        _ => Err(NameError::Several(uris.len())),
    }
}
