//! What a certificate request asks for, as an authority has to read it.
//!
//! Pure. The input may be hostile: it is whatever a caller sent. Only the identity and the public
//! key are taken from a request; whatever else it holds goes into no certificate. Who may have the
//! identity is decided by the control program.

use rcgen::SubjectPublicKeyInfo;
use rustls_pki_types::CertificateSigningRequestDer;
use rustls_pki_types::pem::PemObject;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::oid_registry::{OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY};
use x509_parser::prelude::FromDer;

use crate::mesh::Identity;
use crate::mesh::IdentityError;

/// Why a request cannot be granted to anybody.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CsrError {
    /// The text is not one PKCS #10 request in PEM.
    #[error("the certificate request cannot be read: send one PKCS #10 request in PEM")]
    Malformed,
    /// The key is of another kind: peers of the mesh are built for one.
    #[error("the request's key is not EC P-256")]
    Key,
    /// Whoever sent it does not have the key.
    #[error("the request is not signed by its own key")]
    Signature,
    /// There is no URI among the subject alternative names.
    #[error("the request has no URI name: name the identity as subject alternative name")]
    Absent,
    /// More than one URI: X.509-SVID §2 allows exactly one.
    #[error("the request has {0} URI names, not one")]
    Several(usize),
    /// DNS names or addresses stand beside the URI, and would be granted by nobody.
    #[error("the request has names beside its URI: ask for the identity alone")]
    OtherNames,
    /// The URI is not that of a workload.
    #[error("the request's URI name is not a workload's identity")]
    Form(#[source] IdentityError),
}

impl CsrError {
    /// A stable label for metrics and records.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Malformed => "csr_malformed",
            Self::Key => "csr_key",
            Self::Signature => "csr_signature",
            Self::Absent | Self::Several(_) | Self::OtherNames | Self::Form(_) => "csr_names",
        }
    }
}

/// A request that proves possession of its key and names exactly one identity.
pub struct Requested {
    /// Who the certificate is to be for.
    pub identity: Identity,
    /// What it is to certify.
    pub key: SubjectPublicKeyInfo,
}

impl Requested {
    /// Reads a request in PEM.
    ///
    /// # Errors
    ///
    /// [`CsrError`] for everything that is not exactly such a request.
    pub fn read(pem: &str) -> Result<Self, CsrError> {
        let mut requests = CertificateSigningRequestDer::pem_slice_iter(pem.as_bytes());
        let (Some(Ok(der)), None) = (requests.next(), requests.next()) else {
            return Err(CsrError::Malformed);
        };
        let Ok(([], request)) = X509CertificationRequest::from_der(&der) else {
            return Err(CsrError::Malformed);
        };
        let key = &request.certification_request_info.subject_pki;
        let curve = key.algorithm.parameters.as_ref();
        let curve = curve.and_then(|any| any.as_oid().ok());
        if key.algorithm.algorithm != OID_KEY_TYPE_EC_PUBLIC_KEY || curve != Some(OID_EC_P256) {
            return Err(CsrError::Key);
        }
        request
            .verify_signature()
            .map_err(|_| CsrError::Signature)?;
        let key = SubjectPublicKeyInfo::from_der(key.raw).map_err(|_| CsrError::Key)?;
        let identity = identity(&request)?;
        Ok(Self { identity, key })
    }
}

/// The only name of the request. More than one extension of alternative names counts as one.
fn identity(request: &X509CertificationRequest<'_>) -> Result<Identity, CsrError> {
    let mut uris = Vec::new();
    let mut others = false;
    for extension in request.requested_extensions().into_iter().flatten() {
        match extension {
            ParsedExtension::SubjectAlternativeName(names) => {
                for name in &names.general_names {
                    match name {
                        GeneralName::URI(uri) => uris.push(*uri),
                        // An unreadable name could be a second URI.
                        GeneralName::Invalid(..) => return Err(CsrError::Malformed),
                        _ => others = true,
                    }
                }
            }
            ParsedExtension::ParseError { .. } => return Err(CsrError::Malformed),
            _ => {}
        }
    }
    match uris[..] {
        [] => Err(CsrError::Absent),
        [_] if others => Err(CsrError::OtherNames),
        [uri] => Identity::parse(uri).map_err(CsrError::Form),
        _ => Err(CsrError::Several(uris.len())),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rcgen::{CertificateParams, DistinguishedName, KeyPair, PublicKeyData, SanType};

    use super::*;
    use crate::mesh::TrustDomain;
    use crate::pki::Request;

    fn request(key: &KeyPair, names: Vec<SanType>) -> String {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = names;
        params.serialize_request(key).unwrap().pem().unwrap()
    }

    fn uri(text: &str) -> SanType {
        SanType::URI(text.try_into().unwrap())
    }

    const CART: &str = "spiffe://cluster.local/ns/shop/sa/cart";

    #[test]
    fn our_own_requests_are_read() {
        let domain = TrustDomain::parse("cluster.local").unwrap();
        let identity = Identity::new(&domain, "shop", "cart").unwrap();
        let asked = Request::new(&identity).unwrap();
        let read = Requested::read(&asked.csr().unwrap()).unwrap();
        assert_eq!(read.identity, identity);
        assert_eq!(read.key.der_bytes(), asked.public_key().der_bytes());
    }

    #[test]
    fn exactly_one_identity_may_be_asked_for() {
        let key = KeyPair::generate().unwrap();
        let check = |names: Vec<SanType>, expect: Option<&str>| {
            let read = Requested::read(&request(&key, names.clone()));
            let reason = read.as_ref().err().map(CsrError::reason);
            assert_eq!(reason, expect, "{names:?}");
        };
        let dns = || SanType::DnsName("cart.shop".try_into().unwrap());
        check(vec![uri(CART)], None);
        check(vec![], Some("csr_names"));
        check(vec![dns()], Some("csr_names"));
        check(vec![uri(CART), dns()], Some("csr_names"));
        check(vec![uri(CART), uri(CART)], Some("csr_names"));
        check(vec![uri("https://cart.shop")], Some("csr_names"));
        check(vec![uri("spiffe://cluster.local")], Some("csr_names"));
    }

    #[test]
    fn only_p256_is_a_key() {
        for algorithm in [&rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519] {
            let key = KeyPair::generate_for(algorithm).unwrap();
            let read = Requested::read(&request(&key, vec![uri(CART)]));
            assert_eq!(read.err(), Some(CsrError::Key));
        }
    }

    #[test]
    fn a_request_without_its_key_is_refused() {
        let key = KeyPair::generate().unwrap();
        let good = request(&key, vec![uri(CART)]);
        let mut der = CertificateSigningRequestDer::from_pem_slice(good.as_bytes())
            .unwrap()
            .to_vec();
        // Another name of the same length, under the same signature.
        let at = der.windows(4).position(|w| w == b"cart").unwrap();
        der[at..at + 4].copy_from_slice(b"bank");
        let forged = pem::encode(&pem::Pem::new("CERTIFICATE REQUEST", der));
        assert_eq!(Requested::read(&forged).err(), Some(CsrError::Signature));
    }

    #[test]
    fn what_is_no_request_is_refused() {
        let key = KeyPair::generate().unwrap();
        let good = request(&key, vec![uri(CART)]);
        for text in ["", "x", &good[..good.len() / 2], &format!("{good}{good}")] {
            assert_eq!(Requested::read(text).err(), Some(CsrError::Malformed));
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8)) {
            let key = KeyPair::generate().unwrap();
            let good = request(&key, vec![uri(CART)]);
            let mut der = CertificateSigningRequestDer::from_pem_slice(good.as_bytes())
                .unwrap()
                .to_vec();
            let before = der.clone();
            for (at, byte) in flips {
                let at = at.index(der.len());
                der[at] = byte;
            }
            let changed = der != before;
            let text = pem::encode(&pem::Pem::new("CERTIFICATE REQUEST", der));
            let read = Requested::read(&text);
            prop_assert!(read.is_err() || !changed || read.is_ok_and(|r| r.identity.to_string() == CART));
        }
    }
}
