//! Policies as they were written: AuthorizationPolicy and PeerAuthentication of
//! `security.istio.io/v1`, as values.
//!
//! `source` reads them from objects, [`authorize`](crate::authorize) compiles and decides,
//! `explain` shows them. Nothing here decides; what HTTP fields mean on layer 4, for example, is
//! the evaluator's reading of the value.
//!
//! Reading never fails. What cannot be understood becomes a body that refuses, so that a policy
//! is never weaker than it was written:
//!
//! - an AuthorizationPolicy with anything unreadable in it (an action other than ALLOW and DENY,
//!   a field that does not exist, a wrong type, a bad port or CIDR, a `*` inside a word,
//!   `targetRefs`) refuses every flow to the workloads it binds ([`Body::Refuse`]);
//! - a PeerAuthentication with anything unreadable in it demands STRICT on every port of the
//!   workloads it binds, whatever other PeerAuthentications say ([`Requirement::Unreadable`]);
//! - an unreadable selector binds the policy's whole namespace, or the whole mesh where the
//!   namespace is the root namespace. So does `targetRefs`, which only waypoints serve.
//!
//! Why it was not understood is in the policy's notices, beside remarks about readable parts.

mod authorization;
mod json;
mod peer;
mod rules;
mod value;

use std::fmt;
use std::sync::Arc;

pub use authorization::{Action, AuthorizationPolicy, Body};
pub use peer::{Mode, PeerAuthentication, Requirement};
pub use rules::{Condition, Operation, Rule, Source};
pub use value::{Pattern, ServiceAccount, Values};

/// Namespace and name of a policy. A clone costs one counter.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PolicyName(Arc<(Box<str>, Box<str>)>);

impl PolicyName {
    /// Names a policy.
    #[must_use]
    pub fn new(namespace: &str, name: &str) -> Self {
        Self(Arc::new((namespace.into(), name.into())))
    }

    /// `metadata.namespace`.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.0.0
    }

    /// `metadata.name`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.1
    }
}

impl fmt::Display for PolicyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace(), self.name())
    }
}

impl fmt::Debug for PolicyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Something about a policy that its author should know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// What sort of thing.
    pub kind: NoticeKind,
    /// The whole remark, for people, with the path of the field it is about.
    pub text: String,
}

/// The sorts of [`Notice`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum NoticeKind {
    /// The policy could not be understood, and refuses.
    NotUnderstood,
    /// A rule has parts that need HTTP and follows Istio's layer 4 reading.
    NeedsHttp,
    /// A part can never match anything.
    NeverMatches,
    /// Something is understood but has another effect than its author may expect.
    OtherEffect,
}

impl NoticeKind {
    /// A stable word for logs, metrics and dumps.
    #[must_use]
    pub fn reason(self) -> &'static str {
        match self {
            Self::NotUnderstood => "not_understood",
            Self::NeedsHttp => "needs_http",
            Self::NeverMatches => "never_matches",
            Self::OtherEffect => "other_effect",
        }
    }
}

/// The annotation that makes a policy a dry run.
const DRY_RUN: &str = "istio.io/dry-run";

/// Reads the dry-run annotation as Istio does (Go's `strconv.ParseBool`).
///
/// `Err` holds a value that is no boolean; such a policy is enforced.
fn dry_run<K: AsRef<str>, V: AsRef<str>>(
    annotations: impl IntoIterator<Item = (K, V)>,
) -> Result<bool, String> {
    let mut annotations = annotations.into_iter();
    let Some((_, value)) = annotations.find(|(key, _)| key.as_ref() == DRY_RUN) else {
        return Ok(false);
    };
    match value.as_ref() {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "" | "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        other => Err(other.to_owned()),
    }
}
