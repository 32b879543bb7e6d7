//! The messages of `istio.v1.auth.IstioCertificateService`, which istiod, istio-csr and
//! `adit control` answer alike, and the name of its one call.
//!
//! Written by hand from the public definition: field numbers are the contract, names are ours.
//! [`remote`](crate::pki::remote) asks, the control program answers.

use std::collections::BTreeMap;

use http::uri::PathAndQuery;
use prost_types::Struct;
use prost_types::value::Kind;

use crate::mesh::Identity;

/// The path of the one call.
pub const PATH: &str = "/istio.v1.auth.IstioCertificateService/CreateCertificate";
/// Most bytes of a request: a P-256 request in PEM has about 500.
pub const LARGEST_REQUEST: usize = 64 * 1024;
/// Most bytes of an answer: a chain, and the roots of the trust domain.
pub const LARGEST_ANSWER: usize = 4 * 1024 * 1024;

/// The field of [`CertificateRequest::metadata`] by which a node says for whom it asks.
const IMPERSONATED: &str = "ImpersonatedIdentity";

/// Asks for a certificate.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CertificateRequest {
    /// The request (PKCS #10) in PEM.
    #[prost(string, tag = "1")]
    pub csr: String,
    /// How long the certificate is to be valid, in seconds; 0 leaves it to the authority.
    #[prost(int64, tag = "3")]
    pub validity_duration: i64,
    /// What else the authority may want to know.
    #[prost(message, optional, tag = "4")]
    pub metadata: Option<Struct>,
}

/// A certificate.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CertificateResponse {
    /// The leaf first, then what leads to a root, then the roots of the trust domain, all in PEM.
    /// An element may hold several certificates.
    #[prost(string, repeated, tag = "1")]
    pub cert_chain: Vec<String>,
}

impl CertificateRequest {
    /// A request on behalf of `identity`.
    #[must_use]
    pub fn on_behalf_of(identity: &Identity, csr: String, validity_duration: i64) -> Self {
        let value = prost_types::Value {
            kind: Some(Kind::StringValue(identity.to_string())),
        };
        Self {
            csr,
            validity_duration,
            metadata: Some(Struct {
                fields: BTreeMap::from([(IMPERSONATED.to_owned(), value)]),
            }),
        }
    }

    /// The identity on whose behalf this is asked, if the caller says so; what is no text counts as
    /// an empty one.
    #[must_use]
    pub fn impersonated(&self) -> Option<&str> {
        let fields = &self.metadata.as_ref()?.fields;
        match &fields.get(IMPERSONATED)?.kind {
            Some(Kind::StringValue(text)) => Some(text),
            _ => Some(""),
        }
    }
}

/// [`PATH`], as a request has it.
#[must_use]
pub fn path() -> PathAndQuery {
    PathAndQuery::from_static(PATH)
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;

    #[test]
    fn the_bytes_are_those_of_the_definition() {
        let identity = Identity::parse("spiffe://d/ns/n/sa/s").unwrap();
        let request = CertificateRequest::on_behalf_of(&identity, "csr".to_owned(), 300);
        let bytes = request.encode_to_vec();
        // Field 1, a text; field 3, a varint; field 4, a message.
        assert!(bytes.starts_with(b"\x0a\x03csr\x18\xac\x02\x22"));
        let told: Vec<_> = bytes
            .windows(20)
            .filter(|w| w == b"ImpersonatedIdentity")
            .collect();
        assert_eq!(told.len(), 1);
        let read = CertificateRequest::decode(&bytes[..]).unwrap();
        assert_eq!(read.impersonated(), Some("spiffe://d/ns/n/sa/s"));
        let answer = CertificateResponse::decode(&b"\x0a\x01a\x0a\x01b"[..]).unwrap();
        assert_eq!(answer.cert_chain, ["a", "b"]);
    }

    #[test]
    fn unknown_fields_are_borne_with() {
        // Field 2 was once a subject's name.
        let read = CertificateRequest::decode(&b"\x0a\x01c\x12\x01s\x18\x01"[..]).unwrap();
        assert_eq!((read.csr.as_str(), read.validity_duration), ("c", 1));
        assert_eq!(read.impersonated(), None);
    }
}
