//! SPIFFE identities of workloads.
//!
//! An identity is made from a trust domain, a namespace and a service account, and from nothing
//! else: never from labels or addresses. Its text form is
//! `spiffe://<trust domain>/ns/<namespace>/sa/<service account>` (the SPIFFE-ID standard §2, with
//! the path that Kubernetes meshes share).

use std::fmt;
use std::sync::Arc;

/// Why a text is not an identity or a trust domain.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// The trust domain is empty, longer than 255 bytes or has a character outside `[a-z0-9._-]`.
    #[error("{0:?} is not a trust domain: use 1 to 255 of a-z 0-9 . _ -")]
    TrustDomain(String),
    /// The namespace or service account is empty or has a character outside `[a-zA-Z0-9._-]`.
    #[error("{0:?} is not a path segment of a SPIFFE identity: use a-z A-Z 0-9 . _ -")]
    Segment(String),
    /// The text is not `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`.
    #[error("{0:?} is not of the form spiffe://<trust domain>/ns/<namespace>/sa/<service account>")]
    Form(String),
}

/// The administrative domain whose roots vouch for an identity.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TrustDomain(Arc<str>);

impl TrustDomain {
    /// Parses a trust domain by the SPIFFE-ID standard §2.1.
    ///
    /// # Errors
    ///
    /// [`IdentityError::TrustDomain`] when a character or the length is not allowed.
    pub fn parse(text: &str) -> Result<Self, IdentityError> {
        let legal = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b);
        if text.is_empty() || text.len() > 255 || !text.bytes().all(legal) {
            return Err(IdentityError::TrustDomain(text.to_owned()));
        }
        Ok(Self(text.into()))
    }

    /// The domain's name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// Who a workload is: its service account, in a trust domain. A clone costs one counter.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Identity(Arc<Parts>);

#[derive(PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Parts {
    trust_domain: TrustDomain,
    namespace: Arc<str>,
    service_account: Arc<str>,
}

impl Identity {
    /// The identity of a service account.
    ///
    /// # Errors
    ///
    /// [`IdentityError::Segment`] when a name could not stand in a SPIFFE path.
    pub fn new(
        trust_domain: &TrustDomain,
        namespace: &str,
        service_account: &str,
    ) -> Result<Self, IdentityError> {
        Ok(Self(Arc::new(Parts {
            trust_domain: trust_domain.clone(),
            namespace: segment(namespace)?.into(),
            service_account: segment(service_account)?.into(),
        })))
    }

    /// Parses the text form. Anything but exactly that form is not an identity.
    ///
    /// # Errors
    ///
    /// [`IdentityError`] naming the part that is wrong.
    pub fn parse(uri: &str) -> Result<Self, IdentityError> {
        let form = || IdentityError::Form(uri.to_owned());
        let mut parts = uri.strip_prefix("spiffe://").ok_or_else(form)?.split('/');
        let mut next = || parts.next().ok_or_else(form);
        let (domain, ns, namespace, sa, service_account) =
            (next()?, next()?, next()?, next()?, next()?);
        if ns != "ns" || sa != "sa" || parts.next().is_some() {
            return Err(form());
        }
        Self::new(&TrustDomain::parse(domain)?, namespace, service_account)
    }

    /// The trust domain.
    #[must_use]
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.0.trust_domain
    }

    /// The namespace of the service account.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.0.namespace
    }

    /// The service account's name.
    #[must_use]
    pub fn service_account(&self) -> &str {
        &self.0.service_account
    }
}

fn segment(text: &str) -> Result<&str, IdentityError> {
    let legal = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    if text.is_empty() || text == "." || text == ".." || !text.bytes().all(legal) {
        return Err(IdentityError::Segment(text.to_owned()));
    }
    Ok(text)
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Parts {
            trust_domain,
            namespace,
            service_account,
        } = &*self.0;
        write!(
            f,
            "spiffe://{trust_domain}/ns/{namespace}/sa/{service_account}"
        )
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, valid: bool) {
        let parsed = Identity::parse(text);
        assert_eq!(parsed.is_ok(), valid, "{text:?} gave {parsed:?}");
        if let Ok(identity) = parsed {
            assert_eq!(identity.to_string(), text, "the text form round-trips");
        }
    }

    #[test]
    fn only_the_exact_form_is_an_identity() {
        check("spiffe://cluster.local/ns/shop/sa/cart", true);
        check("spiffe://td-1_2.example/ns/a/sa/b.c", true);
        check("spiffe://cluster.local/ns/shop/sa/cart/", false);
        check("spiffe://cluster.local/ns/shop/sa", false);
        check("spiffe://cluster.local/ns//sa/cart", false);
        check("spiffe://cluster.local/sa/shop/ns/cart", false);
        check("spiffe://Cluster.local/ns/shop/sa/cart", false);
        check("spiffe:///ns/shop/sa/cart", false);
        check("https://cluster.local/ns/shop/sa/cart", false);
        check("spiffe://cluster.local/ns/sh%20op/sa/cart", false);
        check("spiffe://cluster.local/ns/../sa/cart", false);
        check("", false);
    }
}
