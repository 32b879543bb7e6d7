//! What accounts must be allowed, and asking whether they are.

use futures_util::future::try_join_all;
use serde_json::json;

use crate::check::Error;
use crate::check::facts::Rights;
use crate::check::gather::api::Api;

/// Whose rights are asked for.
pub(super) enum Whose<'a> {
    /// Those of whoever runs this.
    Own,
    /// Those of a service account.
    Account { namespace: &'a str, name: &'a str },
}

/// A right: verbs, group, resource (with its subresource behind a slash), whether in our namespace
/// alone.
type Right = (&'static [&'static str], &'static str, &'static str, bool);

const WATCH: &[&str] = &["list", "watch"];
const ISTIO: &str = "security.istio.io";
const RBAC: &str = "rbac.authorization.k8s.io";
const ADMISSION: &str = "admissionregistration.k8s.io";

/// What a daemon does.
pub(super) const DAEMON: &[Right] = &[
    (WATCH, "", "namespaces", false),
    (WATCH, "", "nodes", false),
    (WATCH, "", "pods", false),
    (WATCH, "", "services", false),
    (WATCH, "discovery.k8s.io", "endpointslices", false),
    (WATCH, ISTIO, "authorizationpolicies", false),
    (WATCH, ISTIO, "peerauthentications", false),
    (
        &["get"],
        "apiextensions.k8s.io",
        "customresourcedefinitions",
        false,
    ),
    (&["patch"], "", "pods/status", false),
    (&["create"], "", "events", false),
];
/// What the authority does.
pub(super) const CONTROL: &[Right] = &[
    (&["create"], "authentication.k8s.io", "tokenreviews", false),
    (WATCH, "", "pods", false),
    (&["get", "create", "update"], "", "secrets", true),
    (&["get", "create", "update"], "", "configmaps", true),
];
/// What an installation makes.
pub(super) const INSTALL: &[Right] = &[
    (&["create"], "", "namespaces", false),
    (
        &["create"],
        "apiextensions.k8s.io",
        "customresourcedefinitions",
        false,
    ),
    (&["create"], RBAC, "clusterroles", false),
    (&["create"], RBAC, "clusterrolebindings", false),
    (&["create"], ADMISSION, "validatingadmissionpolicies", false),
    (
        &["create"],
        ADMISSION,
        "validatingadmissionpolicybindings",
        false,
    ),
    (&["create"], RBAC, "roles", true),
    (&["create"], RBAC, "rolebindings", true),
    (&["create"], "", "serviceaccounts", true),
    (&["create"], "", "services", true),
    (&["create"], "apps", "daemonsets", true),
    (&["create"], "apps", "deployments", true),
    (&["create"], "policy", "poddisruptionbudgets", true),
    (&["create"], "networking.k8s.io", "networkpolicies", true),
];

/// Asks for each right; `ours` is Adit's namespace.
pub(super) async fn ask(
    api: &Api,
    whose: Whose<'_>,
    purpose: &'static str,
    rights: &[Right],
    ours: &str,
) -> Result<Rights, Error> {
    let each = rights.iter().flat_map(|(verbs, group, resource, at_home)| {
        let names = |verb: &&'static str| (*verb, *group, *resource, *at_home);
        verbs.iter().map(names).collect::<Vec<_>>()
    });
    let answers = each.map(|(verb, group, resource, at_home)| {
        let (path, body) = review(&whose, verb, group, resource, at_home.then_some(ours));
        let place = if at_home {
            format!(" in {ours}")
        } else {
            String::new()
        };
        let label = match group {
            "" => format!("{verb} {resource}{place}"),
            group => format!("{verb} {resource}.{group}{place}"),
        };
        async move {
            let answer = api.review(path, &body).await?;
            Ok::<_, Error>(answer.map(|answer| (label, answer["status"]["allowed"] == true)))
        }
    });
    Ok(Rights {
        who: match whose {
            Whose::Own => "this account".to_owned(),
            Whose::Account { namespace, name } => format!("service account {namespace}/{name}"),
        },
        purpose,
        granted: try_join_all(answers).await?.into_iter().collect(),
    })
}

fn review(
    whose: &Whose<'_>,
    verb: &str,
    group: &str,
    resource: &str,
    namespace: Option<&str>,
) -> (&'static str, serde_json::Value) {
    let (resource, sub) = resource.split_once('/').unwrap_or((resource, ""));
    let about = json!({
        "verb": verb, "group": group, "resource": resource, "subresource": sub,
        "namespace": namespace.unwrap_or_default(),
    });
    let (kind, path, spec) = match whose {
        Whose::Own => (
            "SelfSubjectAccessReview",
            "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews",
            json!({ "resourceAttributes": about }),
        ),
        Whose::Account { namespace, name } => (
            "SubjectAccessReview",
            "/apis/authorization.k8s.io/v1/subjectaccessreviews",
            json!({
                "user": format!("system:serviceaccount:{namespace}:{name}"),
                "groups": [
                    "system:serviceaccounts",
                    format!("system:serviceaccounts:{namespace}"),
                    "system:authenticated",
                ],
                "resourceAttributes": about,
            }),
        ),
    };
    let body = json!({ "apiVersion": "authorization.k8s.io/v1", "kind": kind, "spec": spec });
    (path, body)
}
