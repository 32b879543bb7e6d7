//! What can go wrong between a node and a remote authority, each with what to do about it.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use tonic::{Code, Status};

/// Most characters of a server's words that are kept.
const WORDS: usize = 400;

/// Why a remote authority gave no certificate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The file with the bearer token cannot be read.
    #[error(
        "cannot read the token {path}: mount a service account token with the authority's \
         audience there, or name its file with --ca-token"
    )]
    Token {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The file has no token in it.
    #[error("{path} holds no token: mount a projected service account token there")]
    NoToken {
        /// The file.
        path: PathBuf,
    },
    /// The file with the roots of the authority's server cannot be read.
    #[error(
        "cannot read the authority's roots {path}: mount the ConfigMap that it publishes there \
         (adit-ca-root of adit control, istio-ca-root-cert of istiod), or name the file with \
         --ca-root"
    )]
    Root {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The file has no roots in it.
    #[error("{path} holds no certificate in PEM that can be a root: put the authority's there")]
    NoRoot {
        /// The file.
        path: PathBuf,
    },
    /// The host name has no address.
    #[error("cannot look up {host}: check the name in --ca, and the cluster's DNS")]
    Lookup {
        /// The name.
        host: String,
        /// What the resolver said.
        #[source]
        source: io::Error,
    },
    /// Nobody answers there.
    #[error(
        "cannot connect to the authority at {addr}: check that it runs and is ready, and that no \
         NetworkPolicy keeps this node from it"
    )]
    Connect {
        /// The last address that was tried.
        addr: SocketAddr,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It is not whom we trust, or does not speak TLS 1.3 and HTTP/2.
    #[error(
        "TLS with the authority at {addr} failed: check that {root} has its root, and that its \
         certificate names the host in --ca"
    )]
    Tls {
        /// The last address that was tried.
        addr: SocketAddr,
        /// The file with the roots.
        root: PathBuf,
        /// What TLS said.
        #[source]
        source: io::Error,
    },
    /// The connection broke before the answer.
    #[error("the connection to the authority broke before its answer")]
    Lost(#[source] Status),
    /// The authority took the request and was silent.
    #[error("the authority at {addr} did not answer within {after:?}")]
    Silent {
        /// Its address.
        addr: SocketAddr,
        /// How long it was waited for.
        after: Duration,
    },
    /// The authority does not believe the token, or the token's bearer may not ask for this.
    #[error(
        "the authority does not accept this node: check the audience of the token, and that the \
         authority trusts this daemon's service account; it says: {words}"
    )]
    Unauthenticated {
        /// The server's words.
        words: String,
    },
    /// The authority knows this node, and refuses this certificate.
    #[error("the authority refuses this certificate; it says: {words}")]
    Denied {
        /// The server's words.
        words: String,
    },
    /// The authority cannot serve at present.
    #[error("the authority cannot serve at present; it says: {words}")]
    Unavailable {
        /// The server's words.
        words: String,
    },
    /// Any other refusal.
    #[error("the authority answered {code:?}; it says: {words}")]
    Refused {
        /// The gRPC code.
        code: Code,
        /// The server's words.
        words: String,
    },
    /// The answer is not a chain with its roots.
    #[error("the authority's answer {0}: check which authority --ca names, and its version")]
    Answer(&'static str),
}

impl Error {
    /// A stable label for metrics and records.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Token { .. } | Self::NoToken { .. } => "ca_token",
            Self::Root { .. } | Self::NoRoot { .. } => "ca_root",
            Self::Lookup { .. } => "ca_lookup",
            Self::Connect { .. } => "ca_unreachable",
            Self::Tls { .. } => "ca_untrusted",
            Self::Lost(_) => "ca_lost",
            Self::Silent { .. } => "ca_silent",
            Self::Unauthenticated { .. } => "ca_unauthenticated",
            Self::Denied { .. } => "ca_denied",
            Self::Unavailable { .. } => "ca_unavailable",
            Self::Refused { .. } => "ca_refused",
            Self::Answer(_) => "ca_answer",
        }
    }

    /// A status as an error: one that the library made is a broken connection, one that came over
    /// the wire is the server's.
    pub(in crate::pki::remote) fn of(status: Status) -> Self {
        if std::error::Error::source(&status).is_some() {
            return Self::Lost(status);
        }
        let words = words(status.message());
        match status.code() {
            Code::Unauthenticated => Self::Unauthenticated { words },
            Code::PermissionDenied => Self::Denied { words },
            Code::Unavailable | Code::ResourceExhausted => Self::Unavailable { words },
            code => Self::Refused { code, words },
        }
    }

    /// Whether another replica, or the same one over a new connection, might do better.
    pub(in crate::pki::remote) fn is_the_connections(&self) -> bool {
        matches!(
            self,
            Self::Lost(_) | Self::Silent { .. } | Self::Unavailable { .. }
        )
    }
}

/// A server's words, fit for a log: bounded and on one line.
fn words(text: &str) -> String {
    let clean = text.chars().take(WORDS).map(|c| match c {
        c if c.is_control() => ' ',
        c => c,
    });
    let clean: String = clean.collect();
    if clean.trim().is_empty() {
        "(nothing)".to_owned()
    } else {
        clean
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_servers_words_are_told_and_bounded() {
        let check = |status: Status, reason: &str, told: &str| {
            let error = Error::of(status);
            assert_eq!(error.reason(), reason);
            assert!(error.to_string().ends_with(told), "{error}");
        };
        check(
            Status::unauthenticated("token expired"),
            "ca_unauthenticated",
            "says: token expired",
        );
        check(Status::permission_denied("a\nb"), "ca_denied", "says: a b");
        check(Status::internal(""), "ca_refused", "says: (nothing)");
        check(
            Status::unavailable("x".repeat(1_000_000)),
            "ca_unavailable",
            &"x".repeat(WORDS),
        );
    }
}
