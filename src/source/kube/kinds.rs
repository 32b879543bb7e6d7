//! Which kinds are watched, and how the API is asked for them.

use crate::source::Kind;

/// How a kind is asked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked {
    pub(super) kind: Kind,
    /// The paths of its collection, by version, the preferred one first.
    pub(super) paths: &'static [&'static str],
    /// Whether its metadata says all that is read of it.
    pub(super) metadata: bool,
    /// The definition that makes it, for a kind that a cluster need not have.
    pub(super) definition: Option<&'static str>,
}

/// Policies come first: what they refuse must not wait for the pods.
pub(super) const WATCHED: [Asked; 7] = [
    Asked {
        kind: Kind::AuthorizationPolicy,
        paths: &[
            "/apis/security.istio.io/v1/authorizationpolicies",
            "/apis/security.istio.io/v1beta1/authorizationpolicies",
        ],
        metadata: false,
        definition: Some("authorizationpolicies.security.istio.io"),
    },
    Asked {
        kind: Kind::PeerAuthentication,
        paths: &[
            "/apis/security.istio.io/v1/peerauthentications",
            "/apis/security.istio.io/v1beta1/peerauthentications",
        ],
        metadata: false,
        definition: Some("peerauthentications.security.istio.io"),
    },
    built_in(Kind::Namespace, &["/api/v1/namespaces"], true),
    // A node's status is large and changes all the time; its labels are all that is read.
    built_in(Kind::Node, &["/api/v1/nodes"], true),
    built_in(Kind::Pod, &["/api/v1/pods"], false),
    built_in(Kind::Service, &["/api/v1/services"], false),
    built_in(
        Kind::EndpointSlice,
        &["/apis/discovery.k8s.io/v1/endpointslices"],
        false,
    ),
];

const fn built_in(kind: Kind, paths: &'static [&'static str], metadata: bool) -> Asked {
    Asked {
        kind,
        paths,
        metadata,
        definition: None,
    }
}
