//! What the program is told about certificates: events as they happen, and the state on request.
//!
//! Values only. [`Certificates`](crate::pki::Certificates) makes them; programs log, count and show
//! them.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::mesh::Identity;
use crate::pki::certificate::Certificate;
use crate::pki::issue::IssueError;

/// Something that happened to a certificate.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event {
    /// A certificate is in force.
    Issued {
        /// The new one.
        certificate: Arc<Certificate>,
        /// Whether it replaced one that was still in force.
        renewal: bool,
        /// How long the issuer took.
        took: Duration,
    },
    /// An attempt failed. Worth an error if nothing is in force, else a warning.
    Failed {
        /// Whose certificate it would have been.
        identity: Identity,
        /// Why there is none.
        error: Arc<IssueError>,
        /// Failures in a row, this one included.
        failures: u32,
        /// When the next attempt is made.
        retry: SystemTime,
        /// The end of the certificate that stays in force, if there is one.
        kept_until: Option<SystemTime>,
    },
    /// A certificate ended before another came: connections of this identity fail from now on.
    Expired {
        /// Whose it was.
        identity: Identity,
    },
    /// The authority itself ends within 30 days. Told once a day.
    AuthorityEnding {
        /// The time after which it can issue nothing.
        ends: SystemTime,
    },
}

/// How an identity stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// The first attempt has not ended yet.
    Pending,
    /// A certificate is in force.
    Valid,
    /// A certificate is in force, and its renewal fails.
    Failing,
    /// There is none, and getting one fails.
    Unavailable,
}

impl Standing {
    /// A stable label.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Valid => "valid",
            Self::Failing => "failing",
            Self::Unavailable => "unavailable",
        }
    }
}

/// One line of the report.
#[derive(Clone, Debug)]
pub struct CertificateStatus {
    /// Whose certificate this is about.
    pub identity: Identity,
    /// The state in a word.
    pub standing: Standing,
    /// What is in force, with its serial number, validity and epoch.
    pub certificate: Option<Arc<Certificate>>,
    /// The failures since the last success, and the last of them.
    pub failures: u32,
    /// Why the last attempt failed, unless one has succeeded since.
    pub last_error: Option<Arc<IssueError>>,
    /// When the next attempt is made.
    pub next: SystemTime,
}

/// Why a certificate that was waited for is not there.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WaitError {
    /// No pod of this node has the identity.
    #[error("no certificate is kept for {0}")]
    Unwanted(Identity),
    /// Attempts fail.
    #[error("there is no certificate for {identity}")]
    Failing {
        /// Who waited.
        identity: Identity,
        /// The last attempt's failure.
        #[source]
        error: Arc<IssueError>,
    },
    /// No attempt has ended yet.
    #[error("the certificate for {0} has not come yet")]
    Pending(Identity),
}

impl WaitError {
    /// A stable label for metrics and records.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Unwanted(_) => "certificate_unwanted",
            Self::Failing { error, .. } => error.reason(),
            Self::Pending(_) => "certificate_pending",
        }
    }
}
