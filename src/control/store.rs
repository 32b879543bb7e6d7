//! How the authority lies in the cluster: a Secret with its keys, a ConfigMap with its roots. Pure.
//!
//! | Secret | holds |
//! |---|---|
//! | `root.pem`, `root.key` | the root that signs |
//! | `staged.pem`, `staged.key` | during a rotation: the next one, trusted already |
//! | `retiring.pem` | during a rotation: the last one, trusted still; its key is gone |
//! | annotation `adit.mesh/staged-at`, `adit.mesh/promoted-at` | when that step was done |
//! | annotation `adit.mesh/longest-validity` | seconds that the longest certificate was given |
//!
//! | ConfigMap | holds |
//! |---|---|
//! | `root-cert.pem` | every root that is trusted; nodes mount it to know the authority |
//! | annotation `adit.mesh/published` | since when each of them has been in there |

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;
use rustls_pki_types::CertificateDer;

use crate::control::rotation::Standing;
use crate::mesh::TrustDomain;
use crate::pki::authority::{self, Authority, Flaw, Material, Part};
use crate::telemetry::timestamp;

/// The key of the bundle in the ConfigMap, as istiod calls it in its own.
pub(crate) const BUNDLE: &str = "root-cert.pem";

const STAGED_AT: &str = "adit.mesh/staged-at";
const PROMOTED_AT: &str = "adit.mesh/promoted-at";
const LONGEST: &str = "adit.mesh/longest-validity";
const PUBLISHED: &str = "adit.mesh/published";
/// No certificate is valid for longer: what `--max-validity` takes at most.
const AGES: Duration = Duration::from_hours(10 * 365 * 24);

/// Why an object cannot be understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unreadable {
    #[error("{0} is missing in it")]
    Missing(&'static str),
    #[error("its {0} is not a text in PEM with one certificate that can be read")]
    Root(&'static str),
    #[error("its annotation {0} is not a time such as 2026-01-31T12:00:00Z")]
    Time(&'static str),
    #[error("its annotation {0} is not a number of seconds up to ten years")]
    Seconds(&'static str),
}

/// A root with its key, both in PEM.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Root {
    pub(crate) certificate: String,
    pub(crate) key: String,
}

/// The content of the Secret.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Keys {
    /// The root that signs.
    pub(crate) active: Root,
    /// The next one, and since when it has been trusted.
    pub(crate) staged: Option<(Root, SystemTime)>,
    /// The certificate of the last one, and since when it has not signed.
    pub(crate) retiring: Option<(String, SystemTime)>,
    /// The longest life that any certificate was given.
    pub(crate) longest: Duration,
}

impl Root {
    /// A new root with a new key.
    pub(crate) fn make(trust_domain: &TrustDomain, now: SystemTime) -> Result<Self, rcgen::Error> {
        let key = authority::make_key()?;
        let pair =
            authority::read_key(key.as_bytes()).map_err(|_| rcgen::Error::CouldNotParseKeyPair)?;
        Ok(Self {
            certificate: authority::make_root(&pair, trust_domain, now)?,
            key,
        })
    }
}

impl Keys {
    /// A first root.
    pub(crate) fn first(active: Root, longest: Duration) -> Self {
        Self {
            active,
            staged: None,
            retiring: None,
            longest,
        }
    }

    /// Reads a Secret.
    pub(crate) fn read(secret: &Secret) -> Result<Self, Unreadable> {
        let text = |key: &'static str| {
            let bytes = secret.data.as_ref().and_then(|data| data.get(key));
            let text = bytes.map(|bytes| String::from_utf8_lossy(&bytes.0).into_owned());
            text.filter(|text| !text.trim().is_empty())
        };
        let root = |certificate, key| {
            Ok::<_, Unreadable>(Root {
                certificate: text(certificate).ok_or(Unreadable::Missing(certificate))?,
                key: text(key).ok_or(Unreadable::Missing(key))?,
            })
        };
        let note = |key| annotation(&secret.metadata, key);
        let staged = match text("staged.pem") {
            Some(_) => {
                let at = note(STAGED_AT).ok_or(Unreadable::Missing(STAGED_AT))?;
                Some((root("staged.pem", "staged.key")?, time(STAGED_AT, at)?))
            }
            None => None,
        };
        let retiring = match text("retiring.pem") {
            Some(old) => {
                let at = note(PROMOTED_AT).ok_or(Unreadable::Missing(PROMOTED_AT))?;
                Some((old, time(PROMOTED_AT, at)?))
            }
            None => None,
        };
        let longest = note(LONGEST).map_or(Ok(0), str::parse).ok();
        // Times are reckoned with it, which end somewhere.
        let longest = longest.filter(|seconds| *seconds <= AGES.as_secs());
        let longest = longest.ok_or(Unreadable::Seconds(LONGEST))?;
        let keys = Self {
            active: root("root.pem", "root.key")?,
            staged,
            retiring,
            longest: Duration::from_secs(longest),
        };
        for (name, certificate) in keys.certificates() {
            one(name, certificate)?;
        }
        Ok(keys)
    }

    /// Writes everything into a Secret; whatever else it has stays.
    pub(crate) fn write(&self, secret: &mut Secret) {
        let data = secret.data.get_or_insert_default();
        let mut put = |key: &str, text: Option<&str>| match text {
            Some(text) => {
                data.insert(key.to_owned(), ByteString(text.as_bytes().to_vec()));
            }
            None => {
                data.remove(key);
            }
        };
        let staged = self.staged.as_ref();
        put("root.pem", Some(&self.active.certificate));
        put("root.key", Some(&self.active.key));
        put(
            "staged.pem",
            staged.map(|(root, _)| root.certificate.as_str()),
        );
        put("staged.key", staged.map(|(root, _)| root.key.as_str()));
        put(
            "retiring.pem",
            self.retiring.as_ref().map(|(old, _)| old.as_str()),
        );
        let notes = secret.metadata.annotations.get_or_insert_default();
        let mut put = |key: &str, text: Option<String>| match text {
            Some(text) => drop(notes.insert(key.to_owned(), text)),
            None => drop(notes.remove(key)),
        };
        put(STAGED_AT, staged.map(|(_, at)| timestamp(*at)));
        put(
            PROMOTED_AT,
            self.retiring.as_ref().map(|(_, at)| timestamp(*at)),
        );
        put(LONGEST, Some(self.longest.as_secs().to_string()));
    }

    /// The authority: what signs, and everything that is trusted.
    pub(crate) fn authority(
        &self,
        trust_domain: &TrustDomain,
        now: SystemTime,
    ) -> Result<Authority, Flaw> {
        let beside: String = self
            .certificates()
            .skip(1)
            .map(|(_, certificate)| format!("{}\n", certificate.trim_end()))
            .collect();
        let material = Material {
            certificate: self.active.certificate.as_bytes(),
            key: self.active.key.as_bytes(),
            chain: b"",
            roots: beside.as_bytes(),
        };
        Authority::read(material, trust_domain, now)
    }

    /// How the rotation stands, with what the ConfigMap says.
    pub(crate) fn standing(&self, published: &Published) -> Standing {
        let staged = self.staged.as_ref();
        Standing {
            staged: staged.map(|(_, at)| *at),
            published: staged.and_then(|(root, _)| {
                let root = one("staged.pem", &root.certificate).ok()?;
                published.since.get(&fingerprint(&root)).copied()
            }),
            staged_ends: staged.and_then(|(root, _)| ends(&root.certificate)),
            retiring: self.retiring.as_ref().map(|(_, at)| *at),
            longest: self.longest,
        }
    }

    /// Every root that is trusted, the one that signs first.
    pub(crate) fn certificates(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let staged = self.staged.as_ref();
        let staged = staged.map(|(root, _)| ("staged.pem", root.certificate.as_str()));
        let retiring = self.retiring.as_ref();
        let retiring = retiring.map(|(old, _)| ("retiring.pem", old.as_str()));
        let active = Some(("root.pem", self.active.certificate.as_str()));
        [active, staged, retiring].into_iter().flatten()
    }
}

/// The content of the ConfigMap.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Published {
    /// Every root that is trusted, in PEM.
    pub(crate) bundle: String,
    /// Since when, by fingerprint.
    since: BTreeMap<String, SystemTime>,
}

impl Published {
    /// Reads a ConfigMap. What is not understood there is as if it were not: it is written anew.
    pub(crate) fn read(map: &ConfigMap) -> Self {
        let bundle = map.data.as_ref().and_then(|data| data.get(BUNDLE));
        let since = annotation(&map.metadata, PUBLISHED)
            .and_then(|text| serde_json::from_str::<BTreeMap<String, String>>(text).ok())
            .unwrap_or_default();
        let held: Vec<_> = bundle
            .and_then(|text| authority::read_bundle(text.as_bytes(), Part::Roots).ok())
            .unwrap_or_default()
            .iter()
            .map(|root| fingerprint(root))
            .collect();
        Self {
            bundle: bundle.cloned().unwrap_or_default(),
            // A root that somebody has taken out of the bundle is not published any more.
            since: since
                .into_iter()
                .filter(|(root, _)| held.contains(root))
                .filter_map(|(root, at)| Some((root, at.parse::<Timestamp>().ok()?.into())))
                .collect(),
        }
    }

    /// Whether roots are trusted, and none of these is among them.
    pub(crate) fn is_foreign(&self, roots: &[CertificateDer<'_>]) -> bool {
        let known = |root| self.since.contains_key(&fingerprint(root));
        !self.since.is_empty() && !roots.iter().any(known)
    }

    /// What is to be published for these roots, from `now` on if it was not before.
    pub(crate) fn renewed(&self, roots: &[CertificateDer<'_>], now: SystemTime) -> Self {
        let since = |root| (*self.since.get(&root).unwrap_or(&now), root);
        Self {
            bundle: authority::write_bundle(roots),
            since: roots
                .iter()
                .map(|root| since(fingerprint(root)))
                .map(|(at, root)| (root, at))
                .collect(),
        }
    }

    /// Writes everything into a ConfigMap; whatever else it has stays.
    pub(crate) fn write(&self, map: &mut ConfigMap) {
        let data = map.data.get_or_insert_default();
        data.insert(BUNDLE.to_owned(), self.bundle.clone());
        let since: BTreeMap<_, _> = self
            .since
            .iter()
            .map(|(root, at)| (root, timestamp(*at)))
            .collect();
        let since = serde_json::to_string(&since).unwrap_or_default();
        let notes = map.metadata.annotations.get_or_insert_default();
        notes.insert(PUBLISHED.to_owned(), since);
    }
}

/// The end of the first certificate of a text.
pub(crate) fn ends(certificate: &str) -> Option<SystemTime> {
    let root = one("", certificate).ok()?;
    let (_, parsed) = x509_parser::parse_x509_certificate(&root).ok()?;
    let seconds = u64::try_from(parsed.validity().not_after.timestamp()).ok()?;
    Some(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds))
}

/// A short name of a root, for people and annotations: the start of its SHA-256.
pub(crate) fn fingerprint(root: &CertificateDer<'_>) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, root);
    let hex = |byte: &u8| format!("{byte:02x}");
    digest.as_ref().iter().take(16).map(hex).collect()
}

/// The one certificate of a text.
pub(crate) fn one(name: &'static str, text: &str) -> Result<CertificateDer<'static>, Unreadable> {
    let mut all = authority::read_bundle(text.as_bytes(), Part::Certificate)
        .map_err(|_| Unreadable::Root(name))?;
    match (all.pop(), all.is_empty()) {
        (Some(root), true) if x509_parser::parse_x509_certificate(&root).is_ok() => Ok(root),
        _ => Err(Unreadable::Root(name)),
    }
}

fn annotation<'a>(metadata: &'a ObjectMeta, key: &str) -> Option<&'a str> {
    let value = metadata.annotations.as_ref()?.get(key)?;
    Some(value.trim())
}

fn time(name: &'static str, text: &str) -> Result<SystemTime, Unreadable> {
    let at = text.parse::<Timestamp>();
    at.map(Into::into).map_err(|_| Unreadable::Time(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

    fn domain() -> TrustDomain {
        TrustDomain::parse("cluster.local").unwrap()
    }

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
    }

    fn keys() -> Keys {
        let root = || Root::make(&domain(), now()).unwrap();
        Keys {
            active: root(),
            staged: Some((root(), now())),
            retiring: Some((root().certificate, now() - DAY)),
            longest: DAY,
        }
    }

    fn write(keys: &Keys) -> Secret {
        let mut secret = Secret::default();
        keys.write(&mut secret);
        secret
    }

    #[test]
    fn a_secret_holds_all_of_it() {
        let all = keys();
        assert!(Keys::read(&write(&all)).unwrap() == all);
        let steady = Keys::first(all.active.clone(), DAY);
        let mut secret = write(&all);
        secret
            .data
            .as_mut()
            .unwrap()
            .insert("mine".to_owned(), ByteString(vec![1]));
        steady.write(&mut secret);
        assert!(
            Keys::read(&secret).unwrap() == steady,
            "what is over is taken out"
        );
        assert!(secret.data.as_ref().unwrap().contains_key("mine"));
        let keys: Vec<_> = secret.data.unwrap().into_keys().collect();
        assert_eq!(keys, ["mine", "root.key", "root.pem"]);
    }

    #[test]
    fn a_secret_that_was_damaged_is_named() {
        let check = |change: &dyn Fn(&mut Secret), expect: &str| {
            let mut secret = write(&keys());
            change(&mut secret);
            let error = Keys::read(&secret)
                .err()
                .expect("it is damaged")
                .to_string();
            assert!(error.contains(expect), "{error}");
        };
        let put = |key: &'static str, text: &'static str| {
            move |secret: &mut Secret| {
                let data = secret.data.as_mut().unwrap();
                data.insert(key.to_owned(), ByteString(text.as_bytes().to_vec()));
            }
        };
        let note = |key: &'static str, text: &'static str| {
            move |secret: &mut Secret| {
                let notes = secret.metadata.annotations.as_mut().unwrap();
                notes.insert(key.to_owned(), text.to_owned());
            }
        };
        check(&put("root.pem", ""), "root.pem is missing");
        check(&put("root.key", "  "), "root.key is missing");
        check(&put("staged.key", ""), "staged.key is missing");
        check(&put("root.pem", "x"), "its root.pem");
        check(&put("retiring.pem", "x"), "its retiring.pem");
        check(&note(STAGED_AT, "yesterday"), STAGED_AT);
        check(&note(PROMOTED_AT, ""), PROMOTED_AT);
        check(&note(LONGEST, "1d"), "number of seconds");
        check(&note(LONGEST, "18446744073709551615"), "number of seconds");
        check(&|s| s.data = None, "root.pem is missing");
    }

    #[test]
    fn the_authority_trusts_all_and_signs_with_one() {
        let keys = keys();
        let authority = keys.authority(&domain(), now()).unwrap();
        assert_eq!(authority.roots().len(), 3);
        assert_eq!(
            authority.roots()[0],
            one("", &keys.active.certificate).unwrap()
        );
        assert!(authority.intermediates().is_empty());
        let elsewhere = TrustDomain::parse("elsewhere").unwrap();
        let flaw = keys.authority(&elsewhere, now()).err().unwrap();
        assert!(matches!(flaw, Flaw::TrustDomain { .. }));
        let mixed = Keys {
            active: Root {
                key: keys.staged.as_ref().unwrap().0.key.clone(),
                ..keys.active.clone()
            },
            ..keys
        };
        assert_eq!(
            mixed.authority(&domain(), now()).err(),
            Some(Flaw::Mismatch)
        );
    }

    #[test]
    fn a_root_is_published_since_it_first_was() {
        let all = keys();
        let roots = all.authority(&domain(), now()).unwrap().roots().to_vec();
        let first = Published::default().renewed(&roots[..1], now() - DAY);
        let both = first.renewed(&roots, now());
        let mut map = ConfigMap::default();
        both.write(&mut map);
        let read = Published::read(&map);
        assert_eq!(read, both);
        let standing = all.standing(&read);
        assert_eq!(standing.published, Some(now()));
        assert_eq!(read.since[&fingerprint(&roots[0])], now() - DAY);
        assert_eq!(read.renewed(&roots, now() + DAY), read, "nothing changes");

        // Somebody takes it out of the bundle.
        let bundle = authority::write_bundle(&roots[..1]);
        map.data.as_mut().unwrap().insert(BUNDLE.to_owned(), bundle);
        assert_eq!(all.standing(&Published::read(&map)).published, None);
        assert_eq!(Published::read(&ConfigMap::default()), Published::default());
    }
}
