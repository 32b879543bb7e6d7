//! Tokens of service accounts: who gets one, and what a TokenReview says of it.
//!
//! As the real server does it: a token may be bound to a pod of its account, names that pod and its
//! node then, and is nobody's once the pod is gone.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::store::{Name, Resource, Store};

/// Why there is no token: status code and words.
pub(super) type Refused = (u16, String);

/// What was given out: each token, with what it was made for.
#[derive(Debug, Default)]
pub(super) struct Tokens {
    given: BTreeMap<String, Given>,
}

#[derive(Debug)]
struct Given {
    account: Name,
    audiences: Vec<String>,
    /// The pod that it is bound to, its UID and its node.
    pod: Option<(Name, String, String)>,
}

impl Tokens {
    /// Answers a TokenRequest for a service account.
    pub(super) fn give(
        &mut self,
        store: &mut Store,
        account: Name,
        request: &Value,
    ) -> Result<Value, Refused> {
        object(store, "ServiceAccount", &account).ok_or_else(|| {
            let name = &account.1;
            (404, format!("serviceaccounts {name:?} not found"))
        })?;
        let spec = &request["spec"];
        let audiences = spec["audiences"].as_array().into_iter().flatten();
        let bound = &spec["boundObjectRef"];
        let pod = match bound["name"].as_str() {
            None => None,
            Some(name) => Some(pod_of(store, &account, name, bound)?),
        };
        let token = format!("token-{}-of-{}", self.given.len() + 1, account.1);
        let given = Given {
            account,
            audiences: audiences
                .filter_map(|audience| audience.as_str().map(str::to_owned))
                .collect(),
            pod,
        };
        self.given.insert(token.clone(), given);
        let mut answer = request.clone();
        answer["kind"] = json!("TokenRequest");
        answer["apiVersion"] = json!("authentication.k8s.io/v1");
        answer["status"] = json!({ "token": token, "expirationTimestamp": "2036-01-01T00:00:00Z" });
        Ok(answer)
    }

    /// The status of a TokenReview, of a token that was given out here.
    pub(super) fn review(&self, store: &mut Store, token: &str, asked: &[String]) -> Option<Value> {
        let given = self.given.get(token)?;
        let no =
            |why: String| json!({ "user": {}, "error": format!("[invalid bearer token, {why}]") });
        let both: Vec<_> = given
            .audiences
            .iter()
            .filter(|audience| asked.contains(audience))
            .collect();
        if both.is_empty() {
            return Some(no(format!(
                "token audiences {:?} is invalid for the target audiences {asked:?}",
                given.audiences
            )));
        }
        let (namespace, name) = &given.account;
        let mut extra =
            json!({ "authentication.kubernetes.io/credential-id": [format!("JTI={token}")] });
        if let Some((pod, uid, node)) = &given.pod {
            let there = object(store, "Pod", pod);
            if there.is_none_or(|pod| pod["metadata"]["uid"] != **uid) {
                return Some(no("service account token has been invalidated".to_owned()));
            }
            extra["authentication.kubernetes.io/pod-name"] = json!([pod.1]);
            extra["authentication.kubernetes.io/pod-uid"] = json!([uid]);
            extra["authentication.kubernetes.io/node-name"] = json!([node]);
        }
        Some(json!({
            "authenticated": true,
            "audiences": both,
            "user": {
                "username": format!("system:serviceaccount:{namespace}:{name}"),
                "groups": ["system:serviceaccounts", format!("system:serviceaccounts:{namespace}"),
                           "system:authenticated"],
                "extra": extra,
            },
        }))
    }
}

/// The pod that a token is to be bound to, which must be one of the account.
fn pod_of(
    store: &mut Store,
    account: &Name,
    name: &str,
    bound: &Value,
) -> Result<(Name, String, String), Refused> {
    let id = (account.0.clone(), name.to_owned());
    let pod = object(store, "Pod", &id).ok_or((404, format!("pods {name:?} not found")))?;
    if pod["spec"]["serviceAccountName"] != *account.1 {
        let why = "cannot bind token to pod running with different service account name";
        return Err((400, why.to_owned()));
    }
    let uid = pod["metadata"]["uid"].clone();
    if !bound["uid"].is_null() && bound["uid"] != uid {
        return Err((
            409,
            "the UID in the bound object reference differs".to_owned(),
        ));
    }
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    Ok((id, text(&uid), text(&pod["spec"]["nodeName"])))
}

fn object(store: &mut Store, kind: &str, name: &Name) -> Option<Value> {
    let about = json!({ "apiVersion": "v1", "kind": kind });
    let resource: Resource = store.resource_of(&about)?;
    Some(store.shelf(&resource).objects.get(name)?.value())
}
