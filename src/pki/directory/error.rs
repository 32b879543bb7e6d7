//! What can be wrong with a CA directory, each with what to do about it.

use std::io;
use std::path::PathBuf;

use crate::mesh::TrustDomain;

/// Why a CA directory cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The file system refused.
    #[error(
        "cannot {attempt} {path}: let the user that runs adit read and write it, or name another \
         directory with --ca dir:PATH"
    )]
    Access {
        /// What was tried: read, write, create …
        attempt: &'static str,
        /// Where.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Other users could read the key or replace files.
    #[error("{path} is open to other users (mode {mode:04o}): run `chmod {mend} {path}`")]
    Exposed {
        /// The file or directory.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
        /// The argument for chmod that mends it.
        mend: &'static str,
    },
    /// A file was put there by somebody who is neither root nor the user that runs this.
    #[error("{path} belongs to user {owner}: run `chown {user} {path}` if it is meant to be here")]
    Owner {
        /// The file or directory.
        path: PathBuf,
        /// Its owner's number.
        owner: u32,
        /// The number of the user that runs this.
        user: u32,
    },
    /// One of the two files that belong together is gone.
    #[error(
        "{path} is missing: restore it, or, to start with a new root, remove root.key and root.pem \
         and restart adit on every node"
    )]
    Missing {
        /// What is missing.
        path: PathBuf,
    },
    /// A file has something else than what belongs there.
    #[error("{path} {fault}: replace it, or name another directory with --ca dir:PATH")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, to follow its name in a sentence.
        fault: &'static str,
    },
    /// The key and the certificate are not a pair, as in the middle of a replacement.
    #[error("{key} is not the key of {certificate}: put the two files of one authority there")]
    Mismatch {
        /// The key's file.
        key: PathBuf,
        /// The certificate's file.
        certificate: PathBuf,
    },
    /// The root was made for another trust domain.
    #[error(
        "{path} is the root of trust domain {found}, and this node is in {ours}: start it with \
         --trust-domain {found}, or name another directory with --ca dir:PATH"
    )]
    TrustDomain {
        /// The certificate's file.
        path: PathBuf,
        /// The trust domain that it names, or the URI if that is none.
        found: String,
        /// The trust domain of this node.
        ours: TrustDomain,
    },
    /// The authority's own certificate is not valid now.
    #[error(
        "{path} is valid from {not_before} to {not_after} only: check this machine's clock, or \
         replace root.key and root.pem"
    )]
    NotValid {
        /// The certificate's file.
        path: PathBuf,
        /// The start of validity.
        not_before: String,
        /// The end of validity.
        not_after: String,
    },
    /// A root could not be made on this machine.
    #[error("making a root for {path} failed")]
    Crypto {
        /// The directory.
        path: PathBuf,
        /// What the library said.
        #[source]
        source: rcgen::Error,
    },
}

impl Error {
    /// A stable label for metrics and records.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Access { .. } => "ca_access",
            Self::Exposed { .. } | Self::Owner { .. } => "ca_permissions",
            Self::Missing { .. } => "ca_missing",
            Self::Malformed { .. } => "ca_malformed",
            Self::Mismatch { .. } => "ca_mismatch",
            Self::TrustDomain { .. } => "ca_trust_domain",
            Self::NotValid { .. } => "ca_not_valid",
            Self::Crypto { .. } => "crypto",
        }
    }
}
