//! Who may have which certificate. Pure: what the API server and the caller said is an argument.
//!
//! A certificate is granted when each of these holds, asked in this order; the first that does not
//! is the refusal, and the caller is told which it was:
//!
//! 1. the token is genuine and made for this authority (TokenReview with our audience);
//! 2. its bearer is the service account of the node daemons;
//! 3. the token is bound to a pod on a node, which the token's own claim names;
//! 4. the request is signed by its own P-256 key, and names exactly one identity;
//! 5. whom the caller says that it asks for is that identity, and it is of our trust domain;
//! 6. a pod of that service account is on that node, neither ended nor in the host's network.
//!
//! How long the certificate is valid is the caller's wish within our bounds.

use std::time::Duration;

use k8s_openapi::api::authentication::v1::{TokenReviewStatus, UserInfo};
use tonic::Code;

use crate::causes::Causes;
use crate::mesh::{Identity, TrustDomain};
use crate::pki::csr::{CsrError, Requested};
use crate::pki::grpc::CertificateRequest;

/// Claims of a bound service account token, as TokenReview shows them (KEP-4193).
const NODE_CLAIM: &str = "authentication.kubernetes.io/node-name";
const POD_CLAIM: &str = "authentication.kubernetes.io/pod-name";
/// No certificate is shorter: it could not be renewed in time.
const SHORTEST: Duration = Duration::from_secs(10);

/// What this authority was told.
#[derive(Clone, Debug)]
pub(crate) struct Rules {
    /// The trust domain of every identity.
    pub(crate) trust_domain: TrustDomain,
    /// The audience that tokens must be made for.
    pub(crate) audience: String,
    /// The service accounts of node daemons, `NAMESPACE/NAME`.
    pub(crate) node_accounts: Vec<String>,
    /// No certificate is valid for longer.
    pub(crate) longest: Duration,
}

/// A node daemon that has proven who it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Caller {
    /// Its service account, `NAMESPACE/NAME`.
    pub(crate) account: String,
    /// The node that its token is bound to.
    pub(crate) node: String,
    /// The pod that its token is bound to, where the token says so.
    pub(crate) pod: String,
}

/// Why a certificate is not given. The text goes to the caller.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("no bearer token: send one in the header authorization")]
    NoToken,
    #[error("the API server does not believe the token: {0}")]
    Token(String),
    #[error("the token is not made for the audience {0:?}: project it with this audience")]
    Audience(String),
    #[error(
        "{user:?} is not the service account of a node daemon here ({trusted}): see --node-account \
         of adit control"
    )]
    Stranger { user: String, trusted: String },
    #[error(
        "the token is bound to no node: it must be projected into a pod, by Kubernetes 1.30 or \
         newer"
    )]
    NoNode,
    #[error("{}", Causes(.0))]
    Csr(CsrError),
    #[error("asked on behalf of {named:?}, with a request for {asked}")]
    Impersonation { named: String, asked: Identity },
    #[error("{asked} is not of the trust domain {ours}: give the node the same --trust-domain")]
    TrustDomain { asked: Identity, ours: TrustDomain },
    #[error(
        "no pod of service account {account} runs on node {node}: pods that have ended or use the \
         host's network do not count"
    )]
    NotOnNode { account: String, node: String },
    #[error("too many requests from {0}: ask again later")]
    TooFast(String),
    #[error("too many requests at once: ask again later")]
    Busy,
    #[error("the authority cannot sign: {0}")]
    NotReady(String),
    #[error("the Kubernetes API cannot be asked: {0}")]
    Api(String),
    #[error("signing failed")]
    Signing,
}

impl Refusal {
    /// The stable label for metrics and records.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::NoToken => "no_token",
            Self::Token(_) => "token",
            Self::Audience(_) => "audience",
            Self::Stranger { .. } => "account",
            Self::NoNode => "no_node",
            Self::Csr(error) => error.reason(),
            Self::Impersonation { .. } => "impersonation",
            Self::TrustDomain { .. } => "trust_domain",
            Self::NotOnNode { .. } => "not_on_node",
            Self::TooFast(_) => "too_fast",
            Self::Busy => "busy",
            Self::NotReady(_) => "not_ready",
            Self::Api(_) => "api",
            Self::Signing => "signing",
        }
    }

    /// The gRPC code: who has to act, and whether asking again can help.
    pub(crate) fn code(&self) -> Code {
        match self {
            Self::NoToken | Self::Token(_) | Self::Audience(_) => Code::Unauthenticated,
            Self::Stranger { .. }
            | Self::NoNode
            | Self::Impersonation { .. }
            | Self::TrustDomain { .. }
            | Self::NotOnNode { .. } => Code::PermissionDenied,
            Self::Csr(_) => Code::InvalidArgument,
            Self::TooFast(_) | Self::Busy => Code::ResourceExhausted,
            Self::NotReady(_) | Self::Api(_) => Code::Unavailable,
            Self::Signing => Code::Internal,
        }
    }
}

impl Rules {
    /// Rules 1 to 3: who it is that a reviewed token stands for.
    pub(crate) fn caller(&self, status: Option<&TokenReviewStatus>) -> Result<Caller, Refusal> {
        let not = |why: &str| Refusal::Token(why.to_owned());
        let status = status.ok_or_else(|| not("it gave no verdict"))?;
        if status.authenticated != Some(true) {
            let why = status.error.as_deref().filter(|why| !why.is_empty());
            return Err(not(why.unwrap_or("not authenticated")));
        }
        // A server that does not know audiences answers without any, and has not checked them.
        let audiences = status.audiences.as_deref().unwrap_or_default();
        if !audiences.contains(&self.audience) {
            return Err(Refusal::Audience(self.audience.clone()));
        }
        let user = status
            .user
            .as_ref()
            .ok_or_else(|| not("it names no user"))?;
        let username = user.username.as_deref().unwrap_or_default();
        let account = username
            .strip_prefix("system:serviceaccount:")
            .and_then(|account| account.split_once(':'))
            .map(|(namespace, name)| format!("{namespace}/{name}"))
            .filter(|account| self.node_accounts.contains(account))
            .ok_or_else(|| Refusal::Stranger {
                user: username.to_owned(),
                trusted: self.node_accounts.join(", "),
            })?;
        let node = claim(user, NODE_CLAIM).ok_or(Refusal::NoNode)?;
        let pod = claim(user, POD_CLAIM).unwrap_or_default();
        Ok(Caller { account, node, pod })
    }

    /// Rules 4 and 5: what is asked for.
    pub(crate) fn asked(&self, request: &CertificateRequest) -> Result<Requested, Refusal> {
        let requested = Requested::read(&request.csr).map_err(Refusal::Csr)?;
        let asked = || requested.identity.clone();
        let named = request.impersonated();
        if let Some(named) = named.filter(|named| *named != requested.identity.to_string()) {
            return Err(Refusal::Impersonation {
                named: named.chars().take(300).collect(),
                asked: asked(),
            });
        }
        if *requested.identity.trust_domain() != self.trust_domain {
            return Err(Refusal::TrustDomain {
                asked: asked(),
                ours: self.trust_domain.clone(),
            });
        }
        Ok(requested)
    }

    /// Rule 6, whose facts `on_node` are looked up elsewhere.
    pub(crate) fn placed(caller: &Caller, asked: &Identity, on_node: bool) -> Result<(), Refusal> {
        if on_node {
            return Ok(());
        }
        Err(Refusal::NotOnNode {
            account: format!("{}/{}", asked.namespace(), asked.service_account()),
            node: caller.node.clone(),
        })
    }

    /// How long the certificate is valid. No wish (0) is a wish for the longest.
    pub(crate) fn validity(&self, seconds: i64) -> Duration {
        match u64::try_from(seconds) {
            Ok(wish) if wish > 0 => Duration::from_secs(wish).max(SHORTEST).min(self.longest),
            _ => self.longest,
        }
    }
}

/// A claim that is there exactly once, and not empty.
fn claim(user: &UserInfo, key: &str) -> Option<String> {
    match user.extra.as_ref()?.get(key)?.as_slice() {
        [value] if !value.is_empty() => Some(value.clone()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::pki::Request;

    fn rules() -> Rules {
        Rules {
            trust_domain: TrustDomain::parse("cluster.local").unwrap(),
            audience: "adit-ca".to_owned(),
            node_accounts: vec!["adit-system/adit-node".to_owned()],
            longest: Duration::from_secs(86_400),
        }
    }

    fn good() -> Value {
        json!({
            "authenticated": true,
            "audiences": ["adit-ca"],
            "user": {
                "username": "system:serviceaccount:adit-system:adit-node",
                "extra": { NODE_CLAIM: ["worker-1"], POD_CLAIM: ["adit-node-x"] },
            },
        })
    }

    #[test]
    fn only_a_node_daemons_bound_token_makes_a_caller() {
        let check = |change: &dyn Fn(&mut Value), expect: Result<(), (&str, Code)>| {
            let mut status = good();
            change(&mut status);
            let status: TokenReviewStatus = serde_json::from_value(status.clone()).unwrap();
            let caller = rules().caller(Some(&status));
            let told = caller
                .as_ref()
                .map(drop)
                .map_err(|r| (r.reason(), r.code()));
            assert_eq!(told, expect, "{status:?}");
            if let Ok(caller) = caller {
                assert_eq!(
                    (
                        caller.account.as_str(),
                        caller.node.as_str(),
                        caller.pod.as_str()
                    ),
                    ("adit-system/adit-node", "worker-1", "adit-node-x")
                );
            }
        };
        check(&|_| (), Ok(()));
        let not = |code| move |reason| Err((reason, code));
        let unauthenticated = not(Code::Unauthenticated);
        let denied = not(Code::PermissionDenied);
        check(
            &|s| s["authenticated"] = json!(false),
            unauthenticated("token"),
        );
        check(
            &|s| drop(s.as_object_mut().unwrap().remove("authenticated")),
            unauthenticated("token"),
        );
        check(
            &|s| drop(s.as_object_mut().unwrap().remove("user")),
            unauthenticated("token"),
        );
        check(&|s| s["audiences"] = json!([]), unauthenticated("audience"));
        check(
            &|s| s["audiences"] = json!(["api", "istio-ca"]),
            unauthenticated("audience"),
        );
        check(
            &|s| drop(s.as_object_mut().unwrap().remove("audiences")),
            unauthenticated("audience"),
        );
        for user in [
            "",
            "admin",
            "system:node:worker-1",
            "system:serviceaccount:shop:cart",
            "system:serviceaccount:adit-system:adit-node:x",
            "system:serviceaccount:adit-system/adit-node",
        ] {
            check(&|s| s["user"]["username"] = json!(user), denied("account"));
        }
        check(&|s| s["user"]["extra"] = json!({}), denied("no_node"));
        check(
            &|s| s["user"]["extra"][NODE_CLAIM] = json!([]),
            denied("no_node"),
        );
        check(
            &|s| s["user"]["extra"][NODE_CLAIM] = json!([""]),
            denied("no_node"),
        );
        check(
            &|s| s["user"]["extra"][NODE_CLAIM] = json!(["a", "b"]),
            denied("no_node"),
        );
        assert_eq!(rules().caller(None).unwrap_err().reason(), "token");
    }

    #[test]
    fn the_api_servers_own_words_are_passed_on() {
        let mut status = good();
        status["authenticated"] = json!(false);
        status["error"] = json!("token has expired");
        let status: TokenReviewStatus = serde_json::from_value(status).unwrap();
        let refusal = rules().caller(Some(&status)).unwrap_err();
        assert!(
            refusal.to_string().ends_with("token has expired"),
            "{refusal}"
        );
    }

    #[test]
    fn the_request_is_for_whom_it_is_asked() {
        let cart = Identity::parse("spiffe://cluster.local/ns/shop/sa/cart").unwrap();
        let bank = Identity::parse("spiffe://cluster.local/ns/shop/sa/bank").unwrap();
        let far = Identity::parse("spiffe://elsewhere/ns/shop/sa/cart").unwrap();
        let check = |csr_for: &Identity, named: Option<&Identity>, expect: Option<&str>| {
            let csr = Request::new(csr_for).unwrap().csr().unwrap();
            let mut request = CertificateRequest::on_behalf_of(named.unwrap_or(csr_for), csr, 0);
            if named.is_none() {
                request.metadata = None;
            }
            let asked = rules().asked(&request);
            assert_eq!(asked.as_ref().err().map(Refusal::reason), expect);
            if let Ok(asked) = asked {
                assert_eq!(asked.identity, *csr_for);
            }
        };
        check(&cart, Some(&cart), None);
        check(&cart, None, None);
        check(&cart, Some(&bank), Some("impersonation"));
        check(&far, Some(&far), Some("trust_domain"));
        let garbage = CertificateRequest::default();
        let refusal = rules().asked(&garbage).err().unwrap();
        assert_eq!(
            (refusal.reason(), refusal.code()),
            ("csr_malformed", Code::InvalidArgument)
        );
    }

    #[test]
    fn a_pod_on_the_node_is_needed() {
        let caller = Caller {
            account: "adit-system/adit-node".to_owned(),
            node: "worker-1".to_owned(),
            pod: String::new(),
        };
        let cart = Identity::parse("spiffe://cluster.local/ns/shop/sa/cart").unwrap();
        assert_eq!(Rules::placed(&caller, &cart, true), Ok(()));
        let refusal = Rules::placed(&caller, &cart, false).unwrap_err();
        let told = refusal.to_string();
        assert!(
            told.contains("shop/cart") && told.contains("worker-1"),
            "{told}"
        );
    }

    #[test]
    fn wishes_are_kept_within_bounds() {
        let check = |wish: i64, expect: u64| {
            assert_eq!(
                rules().validity(wish),
                Duration::from_secs(expect),
                "{wish}"
            );
        };
        check(0, 86_400);
        check(-1, 86_400);
        check(i64::MIN, 86_400);
        check(i64::MAX, 86_400);
        check(86_401, 86_400);
        check(3_600, 3_600);
        check(10, 10);
        check(1, 10);
    }
}
