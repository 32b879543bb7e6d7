//! Which file of a CA directory holds what, and what a flaw in one is called.
//!
//! What an authority is, [`crate::pki::authority`] knows.

use std::path::Path;
use std::time::SystemTime;

use crate::mesh::TrustDomain;
use crate::pki::authority::{self, Authority, Flaw, Material, Part};
use crate::pki::directory::error::Error;
use crate::pki::directory::files;

const KEY: &str = "root.key";
const CERTIFICATE: &str = "root.pem";
const CHAIN: &str = "chain.pem";
const ROOTS: &str = "roots.pem";

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
        let key = authority::make_key().map_err(crypto)?;
        files::publish(&key_path, 0o600, key.as_bytes())?;
    }
    let text = files::read_key(&key_path)?.ok_or_else(|| missing(&key_path))?;
    let key = authority::read_key(&text).map_err(|flaw| named(directory, trust_domain, flaw))?;
    let root = authority::make_root(&key, trust_domain, now).map_err(crypto)?;
    files::publish(&certificate_path, 0o644, root.as_bytes())
}

/// Reads the authority and refuses one that peers would refuse, or that is somebody else's.
pub(in crate::pki::directory) fn load(
    directory: &Path,
    trust_domain: &TrustDomain,
    now: SystemTime,
) -> Result<Authority, Error> {
    let (key_path, path) = (directory.join(KEY), directory.join(CERTIFICATE));
    let certificate = files::read_certificates(&path)?.ok_or_else(|| missing(&path))?;
    let chain = files::read_certificates(&directory.join(CHAIN))?.unwrap_or_default();
    let roots = files::read_certificates(&directory.join(ROOTS))?.unwrap_or_default();
    let key = files::read_key(&key_path)?.ok_or_else(|| missing(&key_path))?;
    let material = Material {
        certificate: &certificate,
        key: &key,
        chain: &chain,
        roots: &roots,
    };
    Authority::read(material, trust_domain, now)
        .map_err(|flaw| named(directory, trust_domain, flaw))
}

fn missing(path: &Path) -> Error {
    let path = path.to_owned();
    Error::Missing { path }
}

/// A flaw with the file that it is in.
fn named(directory: &Path, ours: &TrustDomain, flaw: Flaw) -> Error {
    let file = |part| {
        directory.join(match part {
            Part::Certificate => CERTIFICATE,
            Part::Key => KEY,
            Part::Chain => CHAIN,
            Part::Roots => ROOTS,
        })
    };
    match flaw {
        Flaw::Malformed { part, fault } => Error::Malformed {
            path: file(part),
            fault,
        },
        Flaw::Mismatch => Error::Mismatch {
            key: file(Part::Key),
            certificate: file(Part::Certificate),
        },
        Flaw::TrustDomain { found } => Error::TrustDomain {
            path: file(Part::Certificate),
            found,
            ours: ours.clone(),
        },
        Flaw::NotValid {
            part,
            not_before,
            not_after,
        } => Error::NotValid {
            path: file(part),
            not_before,
            not_after,
        },
    }
}
