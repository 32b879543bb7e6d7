//! What an authority answers, taken apart: the leaf's chain, and whom its peers are checked against.
//!
//! Pure. istiod, istio-csr and `adit control` send the leaf first and the roots last; any element
//! may hold several certificates, and some authorities repeat a root in the middle.

use std::time::SystemTime;

use rustls_pki_types::CertificateDer;
use x509_parser::certificate::X509Certificate;
use x509_parser::parse_x509_certificate;

use crate::pki::authority::{Part, read_bundle};
use crate::pki::certificate::time;
use crate::pki::remote::error::Error;

/// An answer that has everything that belongs in it. Whether it is genuine is seen by
/// [`Certificate::new`](crate::pki::Certificate::new).
pub(in crate::pki::remote) struct Answer {
    /// The leaf, then intermediates; no root.
    pub(in crate::pki::remote) chain: Vec<CertificateDer<'static>>,
    /// The roots of the trust domain that are not over.
    pub(in crate::pki::remote) roots: Vec<CertificateDer<'static>>,
    /// The time after which the authority can issue nothing: the end of the first of its
    /// intermediates to end, or else of the last of its roots.
    pub(in crate::pki::remote) ends: Option<SystemTime>,
}

impl Answer {
    pub(in crate::pki::remote) fn read(
        elements: &[String],
        now: SystemTime,
    ) -> Result<Self, Error> {
        let (roots, chain) = match elements {
            [] => return Err(Error::Answer("is empty")),
            [_] => return Err(Error::Answer("has no root beside the certificate")),
            [chain @ .., roots] => (roots, chain),
        };
        let mut own = Vec::new();
        for element in chain {
            own.extend(certificates(element)?);
        }
        if own.is_empty() {
            return Err(Error::Answer("has no certificate in it"));
        }
        let roots = certificates(roots)?;
        let mut ends: Option<SystemTime> = None;
        // The leaf is looked at elsewhere; what is self-signed behind it is no way to a root.
        let mut chain: Vec<CertificateDer<'static>> = vec![own.remove(0)];
        for certificate in own {
            let parsed = parse(&certificate)?;
            if parsed.subject().as_raw() == parsed.issuer().as_raw() {
                continue;
            }
            let end = end(&parsed);
            ends = Some(ends.map_or(end, |ends| ends.min(end)));
            chain.push(certificate);
        }
        let mut trusted: Vec<CertificateDer<'static>> = Vec::new();
        let mut last = None;
        for root in roots {
            let end = end(&parse(&root)?);
            // Validating a path does not look at its root's dates.
            if end > now && !trusted.contains(&root) {
                last = last.max(Some(end));
                trusted.push(root);
            }
        }
        if trusted.is_empty() {
            return Err(Error::Answer("has no root that is still valid"));
        }
        Ok(Self {
            chain,
            roots: trusted,
            ends: ends.or(last),
        })
    }
}

fn certificates(element: &str) -> Result<Vec<CertificateDer<'static>>, Error> {
    read_bundle(element.as_bytes(), Part::Chain).map_err(|_| Error::Answer("is not PEM"))
}

fn parse<'a>(certificate: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, Error> {
    match parse_x509_certificate(certificate) {
        Ok(([], parsed)) => Ok(parsed),
        _ => Err(Error::Answer("has a certificate that cannot be read")),
    }
}

fn end(certificate: &X509Certificate<'_>) -> SystemTime {
    time(certificate.validity().not_after.timestamp())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};

    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

    fn params(name: &str, ends: SystemTime) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.not_after = ends.into();
        params
    }

    fn root(name: &str, ends: SystemTime) -> CertifiedIssuer<'static, KeyPair> {
        CertifiedIssuer::self_signed(params(name, ends), KeyPair::generate().unwrap()).unwrap()
    }

    #[test]
    fn leaf_first_roots_last() {
        let now = SystemTime::now();
        let (old, new) = (root("old", now + DAY), root("new", now + 3 * DAY));
        let over = root("over", now - DAY);
        let middle = CertifiedIssuer::signed_by(
            params("middle", now + 2 * DAY),
            KeyPair::generate().unwrap(),
            &new,
        );
        let middle = middle.unwrap().pem();
        let leaf = CertificateParams::default();
        let leaf = leaf.signed_by(&KeyPair::generate().unwrap(), &new).unwrap();
        let (leaf, old, new, over) = (leaf.pem(), old.pem(), new.pem(), over.pem());

        // How many in the chain and among the roots, and whose end is the authority's.
        let check = |elements: &[&str], expect: Result<(usize, usize, u32), &str>| {
            let elements: Vec<_> = elements.iter().map(|&e| e.to_owned()).collect();
            let read = Answer::read(&elements, now);
            let read = read.map(|a| {
                let days = a.ends.unwrap().duration_since(now).unwrap();
                let days = (days.as_secs_f64() / DAY.as_secs_f64()).round();
                (a.chain.len(), a.roots.len(), days as u32)
            });
            match (read, expect) {
                (Ok(read), Ok(expect)) => assert_eq!(read, expect),
                (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{error}"),
                (read, expect) => panic!("{read:?}, not {expect:?}"),
            }
        };
        check(&[&leaf, &new], Ok((1, 1, 3)));
        check(&[&leaf, &middle, &new], Ok((2, 1, 2)));
        check(&[&leaf, &format!("{middle}{new}"), &new], Ok((2, 1, 2)));
        check(&[&leaf, &format!("{old}\n{new}")], Ok((1, 2, 3)));
        check(&[&leaf, &format!("{new}{new}{over}")], Ok((1, 1, 3)));
        check(&[], Err("is empty"));
        check(&[&leaf], Err("no root beside"));
        check(&[&leaf, &over], Err("still valid"));
        check(&[&leaf, ""], Err("still valid"));
        check(&["", &new], Err("no certificate"));
        check(&["-----BEGIN CERTIFICATE-----\n!", &new], Err("PEM"));
        let garbled = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        check(&[&leaf, garbled], Err("cannot be read"));
        check(&[&leaf, garbled, &new], Err("cannot be read"));
    }
}
