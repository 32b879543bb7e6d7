//! What accounts must be allowed, and asking whether they are.

use futures_util::future::try_join_all;
use serde_json::json;

use crate::check::Error;
use crate::check::facts::{Place, Rights};
use crate::check::gather::api::Api;

/// Whose rights are asked for.
pub(super) enum Whose<'a> {
    /// Those of whoever runs this.
    Own,
    /// Those of a service account.
    Account { namespace: &'a str, name: &'a str },
}

/// Verbs on a resource (with its subresource behind a slash).
#[derive(Clone, Copy)]
pub(super) struct Right<'a> {
    verbs: &'static [&'static str],
    group: &'static str,
    resource: &'static str,
    /// In this namespace alone; empty for all.
    namespace: &'a str,
    /// Of this object alone; empty for all. Roles may name objects.
    name: &'a str,
}

/// Everywhere.
const fn on(
    verbs: &'static [&'static str],
    group: &'static str,
    resource: &'static str,
) -> Right<'static> {
    Right {
        verbs,
        group,
        resource,
        namespace: "",
        name: "",
    }
}

impl<'a> Right<'a> {
    /// In that namespace alone.
    const fn within(self, namespace: &'a str) -> Self {
        Self { namespace, ..self }
    }

    /// Of that object alone.
    const fn named(self, name: &'a str) -> Self {
        Self { name, ..self }
    }
}

const WATCH: &[&str] = &["list", "watch"];
const CREATE: &[&str] = &["create"];
const GET: &[&str] = &["get"];
const KEEP: &[&str] = &["get", "update"];
const ISTIO: &str = "security.istio.io";
const RBAC: &str = "rbac.authorization.k8s.io";
const ADMISSION: &str = "admissionregistration.k8s.io";
const EXTENSIONS: &str = "apiextensions.k8s.io";
const DEFINITIONS: &str = "customresourcedefinitions";

/// What a daemon does.
pub(super) fn daemon() -> Vec<Right<'static>> {
    vec![
        on(WATCH, "", "namespaces"),
        on(WATCH, "", "nodes"),
        on(GET, "", "nodes"),
        on(WATCH, "", "pods"),
        on(WATCH, "", "services"),
        on(WATCH, "discovery.k8s.io", "endpointslices"),
        on(WATCH, ISTIO, "authorizationpolicies"),
        on(WATCH, ISTIO, "peerauthentications"),
        on(GET, EXTENSIONS, DEFINITIONS).named("authorizationpolicies.security.istio.io"),
        on(GET, EXTENSIONS, DEFINITIONS).named("peerauthentications.security.istio.io"),
        on(&["patch"], "", "pods/status"),
        on(CREATE, "", "events"),
    ]
}

/// What the authority does.
pub(super) fn control(place: &Place) -> Vec<Right<'_>> {
    let home = place.namespace.as_str();
    vec![
        on(CREATE, "authentication.k8s.io", "tokenreviews"),
        on(WATCH, "", "pods"),
        on(KEEP, "", "secrets").within(home).named(&place.secret),
        on(KEEP, "", "configmaps").within(home).named(&place.bundle),
        on(CREATE, "", "secrets").within(home),
        on(CREATE, "", "configmaps").within(home),
    ]
}

/// What an installation makes.
pub(super) fn install(place: &Place) -> Vec<Right<'_>> {
    let home = [
        (RBAC, "roles"),
        (RBAC, "rolebindings"),
        ("", "serviceaccounts"),
        ("", "services"),
        ("apps", "daemonsets"),
        ("apps", "deployments"),
        ("policy", "poddisruptionbudgets"),
        ("networking.k8s.io", "networkpolicies"),
    ];
    let all = [
        ("", "namespaces"),
        (EXTENSIONS, DEFINITIONS),
        (RBAC, "clusterroles"),
        (RBAC, "clusterrolebindings"),
        (ADMISSION, "validatingadmissionpolicies"),
        (ADMISSION, "validatingadmissionpolicybindings"),
    ];
    let home = home.map(|(group, what)| on(CREATE, group, what).within(&place.namespace));
    let all = all.map(|(group, what)| on(CREATE, group, what));
    all.into_iter().chain(home).collect()
}

/// Asks for each right.
pub(super) async fn ask(
    api: &Api,
    whose: Whose<'_>,
    purpose: &'static str,
    rights: &[Right<'_>],
) -> Result<Rights, Error> {
    let each = rights
        .iter()
        .flat_map(|right| right.verbs.iter().map(move |verb| (*verb, right)));
    let answers = each.map(|(verb, right)| {
        let (path, body) = review(&whose, verb, right);
        let label = labelled(verb, right);
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

/// One verb of a right as people read it.
fn labelled(verb: &str, right: &Right<'_>) -> String {
    label(
        verb,
        right.group,
        right.resource,
        right.name,
        right.namespace,
    )
}

/// A right as people read it; what is empty stands for all.
pub(super) fn label(
    verb: &str,
    group: &str,
    resource: &str,
    name: &str,
    namespace: &str,
) -> String {
    let mut label = format!("{verb} {resource}");
    for (before, text) in [(".", group), (" ", name), (" in ", namespace)] {
        if !text.is_empty() {
            label.push_str(before);
            label.push_str(text);
        }
    }
    label
}

fn review(whose: &Whose<'_>, verb: &str, right: &Right<'_>) -> (&'static str, serde_json::Value) {
    let (resource, sub) = right
        .resource
        .split_once('/')
        .unwrap_or((right.resource, ""));
    let about = json!({
        "verb": verb, "group": right.group, "resource": resource, "subresource": sub,
        "namespace": right.namespace, "name": right.name,
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::*;

    /// The rights that a manifest grants, as [`label`] tells them.
    fn granted(manifest: &str) -> BTreeSet<String> {
        let mut all = BTreeSet::new();
        for document in manifest.split("\n---\n") {
            let role: Value = serde_saphyr::from_str(document).unwrap();
            let texts = |value: &Value| -> Vec<String> {
                let all = value.as_array().into_iter().flatten();
                all.map(|one| one.as_str().unwrap().to_owned()).collect()
            };
            let home = role["metadata"]["namespace"].as_str().unwrap_or_default();
            for rule in role["rules"].as_array().into_iter().flatten() {
                let mut names = texts(&rule["resourceNames"]);
                if names.is_empty() {
                    names.push(String::new());
                }
                for resource in texts(&rule["resources"]) {
                    for (verb, name) in texts(&rule["verbs"])
                        .iter()
                        .flat_map(|verb| names.iter().map(move |name| (verb, name)))
                    {
                        let [group] = &texts(&rule["apiGroups"])[..] else {
                            panic!("one group: {rule}");
                        };
                        all.insert(label(verb, group, &resource, name, home));
                    }
                }
            }
        }
        all
    }

    #[test]
    fn what_is_asked_for_is_what_the_manifests_grant() {
        let check = |rights: &[Right<'_>], manifest: &str| {
            let each = rights.iter();
            let asked =
                each.flat_map(|right| right.verbs.iter().map(move |verb| labelled(verb, right)));
            assert_eq!(asked.collect::<BTreeSet<_>>(), granted(manifest));
        };
        check(
            &daemon(),
            include_str!("../../../daemonset/base/node-access.yaml"),
        );
        let place = Place {
            namespace: "adit-system".to_owned(),
            secret: "adit-ca".to_owned(),
            bundle: "adit-ca-root".to_owned(),
        };
        check(
            &control(&place),
            include_str!("../../../daemonset/base/control-access.yaml"),
        );
    }
}
