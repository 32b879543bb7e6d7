//! The X.509 part of a CA directory: makes a root, reads an authority, signs leaves.
//!
//! A leaf follows the X.509-SVID standard: no subject, one critical URI name, digital signatures
//! only, for servers and clients alike.

use std::path::Path;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, PublicKeyData, SanType, SerialNumber,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::parse_x509_certificate;

use crate::mesh::{Identity, TrustDomain};
use crate::pki::certificate::time;
use crate::pki::crypto::random;
use crate::pki::directory::error::Error;
use crate::pki::directory::files;
use crate::pki::issue::uri;

const KEY: &str = "root.key";
const CERTIFICATE: &str = "root.pem";
const CHAIN: &str = "chain.pem";
const ROOTS: &str = "roots.pem";

/// How long a root made here is valid.
const ROOT_VALIDITY: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);
/// How far a start of validity is set back, for peers whose clocks are late.
const BACKDATED: Duration = Duration::from_secs(5 * 60);

/// Sees to it that the key and its certificate are there, whoever made them.
///
/// The certificate is made from the key in the file, never from one in memory: so two daemons that
/// come at once, or one that died in between, end with one pair.
pub(in crate::pki::directory) fn establish(
    directory: &Path,
    trust_domain: &TrustDomain,
    now: SystemTime,
) -> Result<(), Error> {
    let (key_path, certificate_path) = (directory.join(KEY), directory.join(CERTIFICATE));
    if files::read_certificates(&certificate_path)?.is_some() {
        // A certificate whose key is missing is for a person to look at: `load` says so.
        return Ok(());
    }
    let crypto = |source| Error::Crypto {
        path: directory.to_owned(),
        source,
    };
    if files::read_key(&key_path)?.is_none() {
        let key = KeyPair::generate().map_err(crypto)?;
        files::publish(&key_path, 0o600, key.serialize_pem().as_bytes())?;
    }
    let key = load_key(&key_path)?;
    let root = make_root(&key, trust_domain, now).map_err(crypto)?;
    files::publish(&certificate_path, 0o644, root.as_bytes())
}

fn make_root(
    key: &KeyPair,
    trust_domain: &TrustDomain,
    now: SystemTime,
) -> Result<String, rcgen::Error> {
    let mut params = params(now, now + ROOT_VALIDITY);
    // Two roots of one trust domain must differ in name, or path building takes one for the other.
    let name = format!("adit root {:016x}", u64::from_ne_bytes(random()));
    params.distinguished_name.push(DnType::CommonName, name);
    let domain = format!("spiffe://{trust_domain}");
    params.subject_alt_names = vec![SanType::URI(domain.try_into()?)];
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params.self_signed(key)?.pem())
}

/// What every certificate made here has: no name yet, a random serial, a start that is set back.
fn params(now: SystemTime, not_after: SystemTime) -> CertificateParams {
    let mut serial: [u8; 16] = random();
    // RFC 5280 §4.1.2.2: positive, which takes the first bit, and here always 16 bytes.
    serial[0] = serial[0] & 0x7f | 0x40;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.not_before = (now - BACKDATED).into();
    params.not_after = not_after.into();
    params
}

/// A key with its certificate, that signs leaves.
pub(in crate::pki::directory) struct Authority {
    issuer: rcgen::Issuer<'static, KeyPair>,
    intermediates: Vec<CertificateDer<'static>>,
    roots: Vec<CertificateDer<'static>>,
    ends: SystemTime,
}

impl Authority {
    /// Reads the authority and refuses one that peers would refuse, or that is somebody else's.
    pub(in crate::pki::directory) fn load(
        directory: &Path,
        trust_domain: &TrustDomain,
        now: SystemTime,
    ) -> Result<Self, Error> {
        let (key_path, path) = (directory.join(KEY), directory.join(CERTIFICATE));
        let own = read_bundle(&path)?.ok_or_else(|| Error::Missing { path: path.clone() })?;
        let chain_path = directory.join(CHAIN);
        let chain = read_bundle(&chain_path)?.unwrap_or_default();
        let more_path = directory.join(ROOTS);
        let more = read_bundle(&more_path)?.unwrap_or_default();
        let key = load_key(&key_path)?;

        let signing = own
            .first()
            .cloned()
            .ok_or_else(|| malformed(&path, EMPTY))?;
        let parsed = parse(&signing, &path)?;
        check_signing(&parsed, &path)?;
        check_domain(&parsed, &path, trust_domain)?;
        if parsed.public_key().subject_public_key.data.as_ref() != key.public_key_raw() {
            let (key, certificate) = (key_path, path);
            return Err(Error::Mismatch { key, certificate });
        }

        let mut authority = Self {
            ends: time(parsed.validity().not_after.timestamp()),
            issuer: rcgen::Issuer::from_ca_cert_der(&signing, key)
                .map_err(|_| malformed(&path, "is not a certificate that can be signed under"))?,
            intermediates: Vec::new(),
            roots: Vec::new(),
        };
        for certificate in own {
            authority.place(certificate, &path, now)?;
        }
        for certificate in chain {
            authority.place(certificate, &chain_path, now)?;
        }
        for certificate in more {
            authority.trust(certificate, &more_path, now)?;
        }
        if authority.roots.is_empty() {
            return Err(malformed(
                &path,
                "is not self-signed, and there is no root beside it",
            ));
        }
        Ok(authority)
    }

    /// A self-signed certificate is a root; any other is shown to peers on the way to one.
    fn place(
        &mut self,
        certificate: CertificateDer<'static>,
        path: &Path,
        now: SystemTime,
    ) -> Result<(), Error> {
        let parsed = parse(&certificate, path)?;
        check_validity(&parsed, path, now)?;
        self.ends = self.ends.min(time(parsed.validity().not_after.timestamp()));
        if parsed.subject().as_raw() == parsed.issuer().as_raw() {
            return self.trust(certificate, path, now);
        }
        self.intermediates.push(certificate);
        Ok(())
    }

    /// A root that is over is left out, because validating a path does not look at its root's dates.
    fn trust(
        &mut self,
        root: CertificateDer<'static>,
        path: &Path,
        now: SystemTime,
    ) -> Result<(), Error> {
        let over = time(parse(&root, path)?.validity().not_after.timestamp()) <= now;
        if !over && !self.roots.contains(&root) {
            self.roots.push(root);
        }
        Ok(())
    }

    /// The roots of the trust domain.
    pub(in crate::pki::directory) fn roots(&self) -> &[CertificateDer<'static>] {
        &self.roots
    }

    /// The time after which nothing that is signed here is valid.
    pub(in crate::pki::directory) fn ends(&self) -> SystemTime {
        self.ends
    }

    /// Signs a leaf for `identity` and `key`, and returns it with what leads to a root.
    pub(in crate::pki::directory) fn sign(
        &self,
        key: &impl PublicKeyData,
        identity: &Identity,
        validity: Duration,
        now: SystemTime,
    ) -> Result<Vec<CertificateDer<'static>>, rcgen::Error> {
        let mut params = params(now, (now + validity).min(self.ends));
        params.subject_alt_names = vec![uri(identity)?];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        params.is_ca = IsCa::ExplicitNoCa;
        params.use_authority_key_identifier_extension = true;
        let leaf = params.signed_by(key, &self.issuer)?.der().clone();
        let mut chain = vec![leaf];
        chain.extend(self.intermediates.iter().cloned());
        Ok(chain)
    }
}

const EMPTY: &str = "has no certificate in it";

fn malformed(path: &Path, fault: &'static str) -> Error {
    let path = path.to_owned();
    Error::Malformed { path, fault }
}

fn load_key(path: &Path) -> Result<KeyPair, Error> {
    let missing = || Error::Missing {
        path: path.to_owned(),
    };
    let text = files::read_key(path)?.ok_or_else(missing)?;
    let key = PrivateKeyDer::from_pem_slice(&text)
        .map_err(|_| malformed(path, "is not a private key in PEM"))?;
    KeyPair::try_from(&key).map_err(|_| malformed(path, "is not a key of a usable kind"))
}

fn read_bundle(path: &Path) -> Result<Option<Vec<CertificateDer<'static>>>, Error> {
    let Some(text) = files::read_certificates(path)? else {
        return Ok(None);
    };
    let bundle: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    let bundle = bundle.map_err(|_| malformed(path, "is not PEM"))?;
    Ok(Some(bundle))
}

fn parse<'a>(
    certificate: &'a CertificateDer<'_>,
    path: &Path,
) -> Result<X509Certificate<'a>, Error> {
    match parse_x509_certificate(certificate) {
        Ok(([], parsed)) => Ok(parsed),
        _ => Err(malformed(path, "has a certificate that cannot be read")),
    }
}

fn check_signing(parsed: &X509Certificate<'_>, path: &Path) -> Result<(), Error> {
    let usage = parsed
        .key_usage()
        .map_err(|_| malformed(path, "has a certificate that cannot be read"))?;
    let may_sign = usage.is_none_or(|usage| usage.value.key_cert_sign());
    if !parsed.is_ca() || !may_sign {
        return Err(malformed(path, "is not the certificate of an authority"));
    }
    Ok(())
}

fn check_validity(parsed: &X509Certificate<'_>, path: &Path, now: SystemTime) -> Result<(), Error> {
    let validity = parsed.validity();
    let (start, end) = (
        time(validity.not_before.timestamp()),
        time(validity.not_after.timestamp()),
    );
    if now < start || end <= now {
        return Err(Error::NotValid {
            path: path.to_owned(),
            not_before: validity.not_before.to_string(),
            not_after: validity.not_after.to_string(),
        });
    }
    Ok(())
}

/// An authority that names a trust domain must name ours; one that names none claims nothing.
fn check_domain(
    parsed: &X509Certificate<'_>,
    path: &Path,
    trust_domain: &TrustDomain,
) -> Result<(), Error> {
    let names = parsed
        .subject_alternative_name()
        .map_err(|_| malformed(path, "has a certificate that cannot be read"))?;
    let names = names.map_or(&[][..], |names| &names.value.general_names);
    for name in names {
        let GeneralName::URI(uri) = name else {
            continue;
        };
        let Some(rest) = uri.strip_prefix("spiffe://") else {
            continue;
        };
        let found = rest.split('/').next().unwrap_or(rest);
        if found != trust_domain.as_str() {
            return Err(Error::TrustDomain {
                path: path.to_owned(),
                found: found.to_owned(),
                ours: trust_domain.clone(),
            });
        }
    }
    Ok(())
}
