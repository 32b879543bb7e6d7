//! The values that fields of a policy compare with, each parsed once.
//!
//! A parser here answers `Err` with a phrase that follows the field's path in a notice.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net};

/// One attribute's two lists: `field` and its `notField`.
///
/// The attribute holds when it is among `any`, unless that list is empty, and not among `none`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Values<T> {
    /// One of these must match; an empty list asks for nothing.
    pub any: Vec<T>,
    /// None of these may match.
    pub none: Vec<T>,
}

impl<T> Default for Values<T> {
    fn default() -> Self {
        Self {
            any: Vec::new(),
            none: Vec::new(),
        }
    }
}

impl<T> Values<T> {
    /// Whether neither list asks for anything.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.any.is_empty() && self.none.is_empty()
    }
}

/// How a text is compared: `*`, `x*`, `*x` or exactly.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Pattern {
    /// `*`: any text, as long as there is one.
    Present,
    /// The text itself.
    Exact(Arc<str>),
    /// `x*`: a text that begins so.
    Prefix(Arc<str>),
    /// `*x`: a text that ends so.
    Suffix(Arc<str>),
}

impl Pattern {
    /// Parses a pattern. A `*` stands alone, first or last; the field knows no other glob, and a
    /// text that hopes for one would silently match nothing.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let (pattern, rest): (fn(Arc<str>) -> Self, &str) = if text == "*" {
            return Ok(Self::Present);
        } else if let Some(rest) = text.strip_prefix('*') {
            (Self::Suffix, rest)
        } else if let Some(rest) = text.strip_suffix('*') {
            (Self::Prefix, rest)
        } else {
            (Self::Exact, text)
        };
        if rest.is_empty() {
            return Err("is empty".to_owned());
        }
        if rest.contains('*') {
            return Err(format!(
                "{text:?} has a \"*\" that is neither its first nor its last character alone"
            ));
        }
        Ok(pattern(rest.into()))
    }

    /// Parses a pattern over identities, which are compared without `spiffe://`.
    pub(super) fn parse_principal(text: &str) -> Result<Self, String> {
        Self::parse(text.strip_prefix("spiffe://").unwrap_or(text))
    }

    /// Whether `text` matches; an absent text matches nothing.
    #[must_use]
    pub fn matches(&self, text: Option<&str>) -> bool {
        let Some(text) = text else { return false };
        match self {
            Self::Present => true,
            Self::Exact(whole) => text == &**whole,
            Self::Prefix(start) => text.starts_with(&**start),
            Self::Suffix(end) => text.ends_with(&**end),
        }
    }
}

/// A service account of the cluster, in any trust domain.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceAccount {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
}

impl ServiceAccount {
    /// Parses `namespace/name`, or `name` of the policy's own namespace. Istio knows no `*` here.
    pub(super) fn parse(text: &str, own_namespace: &str) -> Result<Self, String> {
        let (namespace, name) = text.split_once('/').unwrap_or((own_namespace, text));
        if namespace.is_empty() || name.is_empty() || name.contains('/') || text.contains('*') {
            return Err(format!("{text:?} is not a service account"));
        }
        Ok(Self {
            namespace: namespace.into(),
            name: name.into(),
        })
    }
}

/// Parses an address or a CIDR block; host bits are cut off, and a block within the IPv4-mapped
/// range of IPv6 is the IPv4 block it maps.
pub(super) fn block(text: &str) -> Result<IpNet, String> {
    let wrong = || format!("{text:?} is not an IP address or CIDR block");
    let net = if text.contains('/') {
        text.parse::<IpNet>().map_err(|_| wrong())?
    } else {
        IpNet::from(text.parse::<IpAddr>().map_err(|_| wrong())?)
    };
    let mapped = match net {
        IpNet::V6(v6) if v6.prefix_len() >= 96 => v6
            .addr()
            .to_ipv4_mapped()
            .and_then(|v4| Ipv4Net::new(v4, v6.prefix_len() - 96).ok()),
        _ => None,
    };
    Ok(mapped.map_or(net, IpNet::V4).trunc())
}

/// Parses a port, 0 to 65535 in decimal digits without leading zeros, so that no port has two
/// spellings.
pub(super) fn port(text: &str) -> Result<u16, String> {
    let plain = text.bytes().all(|b| b.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    plain
        .then(|| text.parse().ok())
        .flatten()
        .ok_or_else(|| format!("{text:?} is not a port"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_alone_first_or_last() {
        let check = |text: &str, expect: Option<Pattern>| {
            assert_eq!(Pattern::parse(text).ok(), expect, "{text:?}");
        };
        check("*", Some(Pattern::Present));
        check("a", Some(Pattern::Exact("a".into())));
        check("a*", Some(Pattern::Prefix("a".into())));
        check("*a", Some(Pattern::Suffix("a".into())));
        for bad in ["", "**", "*a*", "a*b", "a**"] {
            check(bad, None);
        }
    }

    #[test]
    fn blocks_are_cut_to_their_network() {
        let check = |text: &str, expect: Option<&str>| {
            let got = block(text).ok().map(|net| net.to_string());
            assert_eq!(got.as_deref(), expect, "{text:?}");
        };
        check("10.1.2.3", Some("10.1.2.3/32"));
        check("10.1.2.3/8", Some("10.0.0.0/8"));
        check("0.0.0.0/0", Some("0.0.0.0/0"));
        check("fd00::1", Some("fd00::1/128"));
        check("fd00::1/64", Some("fd00::/64"));
        check("::ffff:10.1.2.3", Some("10.1.2.3/32"));
        check("::ffff:10.1.2.3/104", Some("10.0.0.0/8"));
        check("::/0", Some("::/0"));
        for bad in [
            "",
            "10.1.2",
            "10.1.2.3/33",
            "10.1.2.3/",
            "a/8",
            "fe80::1%eth0",
            "010.1.2.3",
        ] {
            check(bad, None);
        }
    }

    #[test]
    fn ports_are_decimal() {
        let check = |text: &str, expect: Option<u16>| assert_eq!(port(text).ok(), expect, "{text}");
        check("80", Some(80));
        check("65535", Some(65535));
        check("0", Some(0));
        for bad in [
            "", "65536", "+80", "-1", "http", "80-90", "8 0", "0x50", "080",
        ] {
            check(bad, None);
        }
    }

    #[test]
    fn a_service_account_has_its_policys_namespace_by_default() {
        let check = |text: &str, expect: Option<(&str, &str)>| {
            let got = ServiceAccount::parse(text, "own").ok();
            let got = got.as_ref().map(|sa| (&*sa.namespace, &*sa.name));
            assert_eq!(got, expect, "{text:?}");
        };
        check("cart", Some(("own", "cart")));
        check("shop/cart", Some(("shop", "cart")));
        for bad in ["", "/", "shop/", "/cart", "a/b/c", "*", "shop/*"] {
            check(bad, None);
        }
    }
}
