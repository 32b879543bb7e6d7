//! The one cryptography provider, and path validation with it.
//!
//! Everything that signs, verifies or draws randomness in Adit takes it from [`provider`], so that
//! there is one list of what is accepted.

use std::sync::Arc;
use std::sync::LazyLock;

use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs;
use rustls::crypto::aws_lc_rs::cipher_suite::{TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384};
use rustls_pki_types::{CertificateDer, UnixTime};
use webpki::{EndEntityCert, KeyUsage};

/// aws-lc-rs with the two AES-GCM suites of TLS 1.3 and nothing else.
///
/// ztunnel accepts exactly these two. The order is that of rustls: AES-256 first, unless the other
/// side prefers otherwise.
#[must_use]
pub fn provider() -> &'static Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
        Arc::new(CryptoProvider {
            cipher_suites: vec![TLS13_AES_256_GCM_SHA384, TLS13_AES_128_GCM_SHA256],
            ..aws_lc_rs::default_provider()
        })
    });
    &PROVIDER
}

/// Checks that `leaf` leads through `intermediates` to one of `roots`, at `now`, for `usage`.
///
/// RFC 5280 §6 without revocation. Names are not looked at: see [`identity_of`](crate::pki::identity_of).
/// The validity of a root itself is not part of a path; who trusts an expired root decides that
/// when it loads it.
///
/// # Errors
///
/// What `webpki` found to be wrong.
pub fn verify_path(
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    roots: &RootCertStore,
    now: UnixTime,
    usage: KeyUsage,
) -> Result<(), webpki::Error> {
    EndEntityCert::try_from(leaf)?.verify_for_usage(
        provider().signature_verification_algorithms.all,
        &roots.roots,
        intermediates,
        now,
        usage,
        None,
        None,
    )?;
    Ok(())
}

/// Fills `N` bytes with randomness fit for keys and serial numbers.
pub(in crate::pki) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    provider()
        .secure_random
        .fill(&mut bytes)
        .expect("the kernel's random source cannot fail once it is seeded");
    bytes
}
