//! The X.509 part of an authority: makes a root, reads an authority, signs.
//!
//! Pure: PEM texts in, certificates out; where the texts lie is known to
//! [`directory`](crate::pki::directory) and to the control program. A leaf follows the X.509-SVID
//! standard: no subject, one critical URI name, digital signatures only, for servers and clients
//! alike.

use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, PublicKeyData, SanType, SerialNumber,
};
use rustls::RootCertStore;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use webpki::KeyUsage;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::parse_x509_certificate;

use crate::mesh::{Identity, TrustDomain};
use crate::pki::certificate::{hexadecimal, time};
use crate::pki::crypto::{random, verify_path};
use crate::pki::issue::uri;

/// How long a root made here is valid.
const ROOT_VALIDITY: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);
/// How far a start of validity is set back at most, for peers whose clocks are late.
const BACKDATED: Duration = Duration::from_secs(5 * 60);
/// The part of a validity by which its start is set back at most. The middle, at which a client may
/// count the renewal from the two dates, is to lie ahead: ztunnel else asks without a pause.
const BACKDATED_PART: u32 = 4;

/// What an authority consists of, each a text in PEM.
#[derive(Clone, Copy, Default)]
pub struct Material<'a> {
    /// The certificate that signs; what leads from it up to a root may follow in the same text.
    pub certificate: &'a [u8],
    /// Its key.
    pub key: &'a [u8],
    /// What leads from the certificate up to a root; may be empty.
    pub chain: &'a [u8],
    /// Further roots to trust; may be empty.
    pub roots: &'a [u8],
}

/// Which of the texts of a [`Material`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The certificate that signs.
    Certificate,
    /// Its key.
    Key,
    /// The way up to a root.
    Chain,
    /// Further roots.
    Roots,
}

/// Why a [`Material`] is no authority.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// A text has something else than what belongs there.
    Malformed {
        /// Which text.
        part: Part,
        /// What is wrong, to follow the text's name in a sentence.
        fault: &'static str,
    },
    /// The key and the certificate are not a pair.
    Mismatch,
    /// The certificate was made for another trust domain.
    TrustDomain {
        /// The trust domain that it names, or the URI if that is none.
        found: String,
    },
    /// A certificate on the way to the root is not valid now.
    NotValid {
        /// In which text.
        part: Part,
        /// The start of validity.
        not_before: String,
        /// The end of validity.
        not_after: String,
    },
}

/// Makes the key of a root, in PEM (PKCS #8).
///
/// # Errors
///
/// The library's, when the machine cannot make keys.
pub fn make_key() -> Result<String, rcgen::Error> {
    Ok(KeyPair::generate()?.serialize_pem())
}

/// Reads a private key.
///
/// # Errors
///
/// [`Flaw::Malformed`] about [`Part::Key`].
pub fn read_key(text: &[u8]) -> Result<KeyPair, Flaw> {
    let flaw = |fault| malformed(Part::Key, fault);
    let key =
        PrivateKeyDer::from_pem_slice(text).map_err(|_| flaw("is not a private key in PEM"))?;
    KeyPair::try_from(&key).map_err(|_| flaw("is not a key of a usable kind"))
}

/// Makes the self-signed certificate of a root, in PEM.
///
/// # Errors
///
/// The library's, when signing fails.
pub fn make_root(
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
    let validity = not_after.duration_since(now).unwrap_or_default();
    params.not_before = (now - BACKDATED.min(validity / BACKDATED_PART)).into();
    params.not_after = not_after.into();
    params
}

/// A key with its certificate, that signs.
pub struct Authority {
    issuer: rcgen::Issuer<'static, KeyPair>,
    intermediates: Vec<CertificateDer<'static>>,
    roots: Vec<CertificateDer<'static>>,
    ends: SystemTime,
    serial: String,
}

impl Authority {
    /// Reads the authority and refuses one that peers would refuse, or that is somebody else's.
    ///
    /// # Errors
    ///
    /// [`Flaw`]: what is wrong, and in which text.
    pub fn read(
        material: Material<'_>,
        trust_domain: &TrustDomain,
        now: SystemTime,
    ) -> Result<Self, Flaw> {
        let own = read_bundle(material.certificate, Part::Certificate)?;
        let chain = read_bundle(material.chain, Part::Chain)?;
        let more = read_bundle(material.roots, Part::Roots)?;
        let key = read_key(material.key)?;

        let flaw = |fault| malformed(Part::Certificate, fault);
        let signing = own
            .first()
            .cloned()
            .ok_or_else(|| flaw("has no certificate in it"))?;
        let parsed = parse(&signing, Part::Certificate)?;
        check_signing(&parsed)?;
        check_domain(&parsed, trust_domain)?;
        if parsed.public_key().subject_public_key.data.as_ref() != key.public_key_raw() {
            return Err(Flaw::Mismatch);
        }

        let mut authority = Self {
            ends: time(parsed.validity().not_after.timestamp()),
            serial: hexadecimal(parsed.raw_serial()),
            issuer: rcgen::Issuer::from_ca_cert_der(&signing, key)
                .map_err(|_| flaw("is not a certificate that can be signed under"))?,
            intermediates: Vec::new(),
            roots: Vec::new(),
        };
        for certificate in own {
            authority.place(certificate, Part::Certificate, now)?;
        }
        for certificate in chain {
            authority.place(certificate, Part::Chain, now)?;
        }
        for certificate in more {
            authority.trust(certificate, Part::Roots, now)?;
        }
        if authority.roots.is_empty() {
            return Err(flaw("is not self-signed, and there is no root beside it"));
        }
        if !authority.leads_to_a_root(trust_domain, now) {
            let fault = "leads from its certificate to none of the roots beside it";
            return Err(malformed(Part::Chain, fault));
        }
        Ok(authority)
    }

    /// Whether peers take what is signed here: a leaf is made on trial, which nobody ever sees. Of
    /// files that are replaced one by one, a root may be of another authority than the rest.
    fn leads_to_a_root(&self, trust_domain: &TrustDomain, now: SystemTime) -> bool {
        let trial = || {
            let name = format!("spiffe://{trust_domain}/ns/trial/sa/trial");
            let name = SanType::URI(name.try_into()?);
            self.leaf(&KeyPair::generate()?, vec![name], peers(), BACKDATED, now)
        };
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(self.roots.iter().cloned());
        let since = now.duration_since(SystemTime::UNIX_EPOCH);
        let now = UnixTime::since_unix_epoch(since.unwrap_or_default());
        trial().is_ok_and(|chain: Vec<_>| {
            chain.split_first().is_some_and(|(leaf, between)| {
                [KeyUsage::server_auth(), KeyUsage::client_auth()]
                    .into_iter()
                    .all(|usage| verify_path(leaf, between, &roots, now, usage).is_ok())
            })
        })
    }

    /// A self-signed certificate is a root; any other is shown to peers on the way to one.
    fn place(
        &mut self,
        certificate: CertificateDer<'static>,
        part: Part,
        now: SystemTime,
    ) -> Result<(), Flaw> {
        let parsed = parse(&certificate, part)?;
        check_validity(&parsed, part, now)?;
        self.ends = self.ends.min(time(parsed.validity().not_after.timestamp()));
        if parsed.subject().as_raw() == parsed.issuer().as_raw() {
            return self.trust(certificate, part, now);
        }
        self.intermediates.push(certificate);
        Ok(())
    }

    /// A root that is over is left out, because validating a path does not look at its root's dates.
    fn trust(
        &mut self,
        root: CertificateDer<'static>,
        part: Part,
        now: SystemTime,
    ) -> Result<(), Flaw> {
        let over = time(parse(&root, part)?.validity().not_after.timestamp()) <= now;
        if !over && !self.roots.contains(&root) {
            self.roots.push(root);
        }
        Ok(())
    }

    /// The roots of the trust domain: the authority's own, and those that are trusted beside it.
    #[must_use]
    pub fn roots(&self) -> &[CertificateDer<'static>] {
        &self.roots
    }

    /// What leads from a leaf up to a root, the root not included.
    #[must_use]
    pub fn intermediates(&self) -> &[CertificateDer<'static>] {
        &self.intermediates
    }

    /// The time after which nothing that is signed here is valid.
    #[must_use]
    pub fn ends(&self) -> SystemTime {
        self.ends
    }

    /// The serial number of the certificate that signs, in lower-case hexadecimal.
    #[must_use]
    pub fn serial(&self) -> &str {
        &self.serial
    }

    /// Signs a leaf for `identity` and `key`, and returns it with what leads to a root.
    ///
    /// # Errors
    ///
    /// The library's, when signing fails.
    pub fn sign(
        &self,
        key: &impl PublicKeyData,
        identity: &Identity,
        validity: Duration,
        now: SystemTime,
    ) -> Result<Vec<CertificateDer<'static>>, rcgen::Error> {
        self.leaf(key, vec![uri(identity)?], peers(), validity, now)
    }

    /// Signs a leaf for a server that is reached by `names`, DNS names or addresses. It names no
    /// identity: no workload takes it for a peer.
    ///
    /// # Errors
    ///
    /// The library's, when a name is not one or signing fails.
    pub fn sign_server(
        &self,
        key: &impl PublicKeyData,
        names: &[String],
        validity: Duration,
        now: SystemTime,
    ) -> Result<Vec<CertificateDer<'static>>, rcgen::Error> {
        let name = |name: &String| match name.parse() {
            Ok(ip) => Ok(SanType::IpAddress(ip)),
            Err(_) => Ok(SanType::DnsName(name.clone().try_into()?)),
        };
        let names = names
            .iter()
            .map(name)
            .collect::<Result<_, rcgen::Error>>()?;
        let usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.leaf(key, names, usages, validity, now)
    }

    fn leaf(
        &self,
        key: &impl PublicKeyData,
        names: Vec<SanType>,
        usages: Vec<ExtendedKeyUsagePurpose>,
        validity: Duration,
        now: SystemTime,
    ) -> Result<Vec<CertificateDer<'static>>, rcgen::Error> {
        let mut params = params(now, (now + validity).min(self.ends));
        params.subject_alt_names = names;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = usages;
        params.is_ca = IsCa::ExplicitNoCa;
        params.use_authority_key_identifier_extension = true;
        let leaf = params.signed_by(key, &self.issuer)?.der().clone();
        let mut chain = vec![leaf];
        chain.extend(self.intermediates.iter().cloned());
        Ok(chain)
    }
}

/// A workload is server and client under the same certificate.
fn peers() -> Vec<ExtendedKeyUsagePurpose> {
    vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ]
}

/// Reads every certificate of a text in PEM.
///
/// # Errors
///
/// [`Flaw::Malformed`] about `part`.
pub fn read_bundle(text: &[u8], part: Part) -> Result<Vec<CertificateDer<'static>>, Flaw> {
    let bundle: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text).collect();
    bundle.map_err(|_| malformed(part, "is not PEM"))
}

/// Writes certificates as a text in PEM (RFC 7468 §5).
#[must_use]
pub fn write_bundle(certificates: &[CertificateDer<'_>]) -> String {
    let config = pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF);
    let block = |certificate: &CertificateDer<'_>| {
        pem::encode_config(&pem::Pem::new("CERTIFICATE", certificate.to_vec()), config)
    };
    certificates.iter().map(block).collect()
}

fn malformed(part: Part, fault: &'static str) -> Flaw {
    Flaw::Malformed { part, fault }
}

fn parse<'a>(certificate: &'a CertificateDer<'_>, part: Part) -> Result<X509Certificate<'a>, Flaw> {
    match parse_x509_certificate(certificate) {
        Ok(([], parsed)) => Ok(parsed),
        _ => Err(malformed(part, UNREADABLE)),
    }
}

const UNREADABLE: &str = "has a certificate that cannot be read";

fn check_signing(parsed: &X509Certificate<'_>) -> Result<(), Flaw> {
    let flaw = |fault| malformed(Part::Certificate, fault);
    let usage = parsed.key_usage().map_err(|_| flaw(UNREADABLE))?;
    let may_sign = usage.is_none_or(|usage| usage.value.key_cert_sign());
    if !parsed.is_ca() || !may_sign {
        return Err(flaw("is not the certificate of an authority"));
    }
    Ok(())
}

fn check_validity(parsed: &X509Certificate<'_>, part: Part, now: SystemTime) -> Result<(), Flaw> {
    let validity = parsed.validity();
    let (start, end) = (
        time(validity.not_before.timestamp()),
        time(validity.not_after.timestamp()),
    );
    if now < start || end <= now {
        return Err(Flaw::NotValid {
            part,
            not_before: validity.not_before.to_string(),
            not_after: validity.not_after.to_string(),
        });
    }
    Ok(())
}

/// An authority that names a trust domain must name ours; one that names none claims nothing.
fn check_domain(parsed: &X509Certificate<'_>, trust_domain: &TrustDomain) -> Result<(), Flaw> {
    let names = parsed
        .subject_alternative_name()
        .map_err(|_| malformed(Part::Certificate, UNREADABLE))?;
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
            let found = found.to_owned();
            return Err(Flaw::TrustDomain { found });
        }
    }
    Ok(())
}
