//! TLS between nodes: configurations from our certificates, and who the peer is.
//!
//! TLS 1.3 alone, ALPN `h2` alone, both sides show a certificate, no server name is sent. A path to
//! the roots that came with our own certificate proves the peer genuine; its one URI name says who
//! it is. A server accepts its own trust domain, a client exactly the identity that it dialled.
//!
//! A session is never resumed. A resumed handshake does not look at the peer's certificate again, so
//! one that has ended, or whose root is gone, would live on; tunnels are pooled, so full handshakes
//! are rare anyway.
//!
//! Building a configuration parses nothing and costs less than a microsecond. Whoever keeps one does
//! so by [`Certificate::epoch`] and, for a client, the expected identity.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::verify_tls13_signature;
use rustls::server::NoServerSessionStorage;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::sign::SingleCertAndKey;
use rustls::version::TLS13;
use rustls::{
    CertificateError, ClientConfig, CommonState, DigitallySignedStruct, DistinguishedName,
    OtherError, PeerIncompatible, RootCertStore, ServerConfig, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use webpki::KeyUsage;

use crate::mesh::{Identity, TrustDomain};
use crate::pki::{Certificate, NameError, identity_of, provider, verify_path};

/// The only application protocol of a tunnel.
pub const ALPN: &[u8] = b"h2";

/// Why a peer is not welcome, beyond what TLS itself finds.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PeerError {
    /// The handshake is not done, or brought no certificate.
    #[error("the peer showed no certificate")]
    Anonymous,
    /// Its certificate names no identity.
    #[error("the peer's certificate names no identity")]
    Nameless(#[source] NameError),
    /// It is from another trust domain than ours.
    #[error("the peer {found} is not of trust domain {ours}")]
    TrustDomain {
        /// Who it is.
        found: Identity,
        /// Our trust domain.
        ours: TrustDomain,
    },
    /// The server is somebody else than whom we called.
    #[error("the peer is {found}, not {expected}")]
    Unexpected {
        /// Who answered.
        found: Identity,
        /// Whom we called.
        expected: Identity,
    },
    /// The peer does not speak HTTP/2.
    #[error("the peer did not agree on h2")]
    Protocol,
}

impl PeerError {
    /// A stable label for metrics and records.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Anonymous => "certificate_missing",
            Self::Nameless(error) => error.reason(),
            Self::TrustDomain { .. } => "trust_domain",
            Self::Unexpected { .. } => "identity_unexpected",
            Self::Protocol => "alpn",
        }
    }
}

/// The configuration of a tunnel's server side, for connections to pods of this identity.
#[must_use]
pub fn server_config(certificate: &Certificate) -> Arc<ServerConfig> {
    let verifier = AnyOf {
        trust_domain: certificate.identity().trust_domain().clone(),
        roots: certificate.trusted().clone(),
    };
    let key = SingleCertAndKey::from(certificate.key().clone());
    let mut config = ServerConfig::builder_with_provider(provider().clone())
        .with_protocol_versions(&[&TLS13])
        .expect("the provider has suites for TLS 1.3")
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(Arc::new(key));
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    // For `record`, which has them from rustls within this process.
    config.enable_secret_extraction = true;
    Arc::new(config)
}

/// The configuration of a tunnel's client side, for connections from pods of this certificate's
/// identity to `expected`.
#[must_use]
pub fn client_config(certificate: &Certificate, expected: &Identity) -> Arc<ClientConfig> {
    let verifier = Exactly {
        identity: expected.clone(),
        roots: certificate.trusted().clone(),
    };
    let key = SingleCertAndKey::from(certificate.key().clone());
    let mut config = ClientConfig::builder_with_provider(provider().clone())
        .with_protocol_versions(&[&TLS13])
        .expect("the provider has suites for TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_cert_resolver(Arc::new(key));
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.enable_sni = false;
    config.resumption = Resumption::disabled();
    config.enable_secret_extraction = true;
    Arc::new(config)
}

/// What `rustls` wants as a server's name. It is neither sent nor compared: the expected identity
/// is in the configuration.
#[must_use]
pub fn server_name() -> ServerName<'static> {
    ServerName::from(IpAddr::V4(Ipv4Addr::UNSPECIFIED))
}

/// Who is at the other end, after the handshake. Also checks that both sides agreed on `h2`, which
/// TLS leaves open for a peer that offers no protocol at all.
///
/// # Errors
///
/// [`PeerError`]: end the connection.
pub fn peer(connection: &CommonState) -> Result<Identity, PeerError> {
    if connection.alpn_protocol() != Some(ALPN) {
        return Err(PeerError::Protocol);
    }
    peer_identity(connection.peer_certificates().unwrap_or_default())
}

/// The identity that a chain names, leaf first. The chain must have been verified.
///
/// # Errors
///
/// [`PeerError`] if it names none.
pub fn peer_identity(chain: &[CertificateDer<'_>]) -> Result<Identity, PeerError> {
    let leaf = chain.first().ok_or(PeerError::Anonymous)?;
    identity_of(leaf).map_err(PeerError::Nameless)
}

/// A stable label for why a handshake failed on our side or was refused by the other.
#[must_use]
pub fn reason(error: &rustls::Error) -> &'static str {
    if let Some(peer) = peer_error(error) {
        return peer.reason();
    }
    match error {
        rustls::Error::InvalidCertificate(error) => certificate_reason(error),
        rustls::Error::NoCertificatesPresented => "certificate_missing",
        rustls::Error::AlertReceived(_) => "alert",
        rustls::Error::NoApplicationProtocol => "alpn",
        rustls::Error::PeerIncompatible(_) => "incompatible",
        _ => "protocol",
    }
}

/// Our own verifiers' finding inside of a handshake's error.
#[must_use]
pub fn peer_error(error: &rustls::Error) -> Option<&PeerError> {
    let rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(inner))) = error
    else {
        return None;
    };
    inner.downcast_ref()
}

fn certificate_reason(error: &CertificateError) -> &'static str {
    match error {
        CertificateError::Expired
        | CertificateError::ExpiredContext { .. }
        | CertificateError::NotValidYet
        | CertificateError::NotValidYetContext { .. } => "certificate_expired",
        CertificateError::UnknownIssuer => "certificate_issuer",
        CertificateError::InvalidPurpose => "certificate_purpose",
        CertificateError::BadEncoding => "certificate_malformed",
        _ => "certificate_invalid",
    }
}

/// Accepts every client of a trust domain.
#[derive(Debug)]
struct AnyOf {
    trust_domain: TrustDomain,
    roots: Arc<RootCertStore>,
}

impl ClientCertVerifier for AnyOf {
    /// No hints: peers have one certificate per identity, and nothing to choose by.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        verify_path(
            leaf,
            intermediates,
            &self.roots,
            now,
            KeyUsage::client_auth(),
        )
        .map_err(path_error)?;
        let found = identity_of(leaf).map_err(|error| refuse(PeerError::Nameless(error)))?;
        if *found.trust_domain() != self.trust_domain {
            let ours = self.trust_domain.clone();
            return Err(refuse(PeerError::TrustDomain { found, ours }));
        }
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &provider().signature_verification_algorithms;
        verify_tls13_signature(message, leaf, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// Accepts one identity as server. It may be of another trust domain than ours, if our roots vouch
/// for it.
#[derive(Debug)]
struct Exactly {
    identity: Identity,
    roots: Arc<RootCertStore>,
}

impl ServerCertVerifier for Exactly {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        verify_path(
            leaf,
            intermediates,
            &self.roots,
            now,
            KeyUsage::server_auth(),
        )
        .map_err(path_error)?;
        let found = identity_of(leaf).map_err(|error| refuse(PeerError::Nameless(error)))?;
        if found != self.identity {
            let expected = self.identity.clone();
            return Err(refuse(PeerError::Unexpected { found, expected }));
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &provider().signature_verification_algorithms;
        verify_tls13_signature(message, leaf, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// Version 1.2 is not enabled, so that no such signature comes here.
fn tls12() -> rustls::Error {
    rustls::Error::PeerIncompatible(PeerIncompatible::Tls12NotOffered)
}

fn refuse(error: PeerError) -> rustls::Error {
    CertificateError::Other(OtherError(Arc::new(error))).into()
}

/// Chooses the alert that tells the peer what is wrong with its certificate.
fn path_error(error: webpki::Error) -> rustls::Error {
    use webpki::Error as Path;
    let error = match error {
        Path::BadDer | Path::BadDerTime | Path::TrailingData(_) => CertificateError::BadEncoding,
        Path::CertExpired { .. } => CertificateError::Expired,
        Path::CertNotValidYet { .. } => CertificateError::NotValidYet,
        Path::UnknownIssuer => CertificateError::UnknownIssuer,
        Path::InvalidSignatureForPublicKey => CertificateError::BadSignature,
        Path::RequiredEkuNotFoundContext(_) => CertificateError::InvalidPurpose,
        other => CertificateError::Other(OtherError(Arc::new(other))),
    };
    error.into()
}

#[cfg(test)]
mod tests;
