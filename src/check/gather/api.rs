//! Asking the API server: pages, patience, and what no answer means.

use std::time::Duration;

use http::Request;
use http::header::ACCEPT;
use kube::Client;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::check::Error;
use crate::check::facts::Got;
use crate::check::gather::rights::label;
use crate::check::shape::List;
use crate::cluster::encoded;

/// How long one request may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often a request is made again that the server puts off, and how long it waits for that.
const AGAIN: (u32, Duration) = (5, Duration::from_secs(1));
/// Objects in one page of a list.
const PAGE: usize = 500;
/// Asks for the metadata of an object alone.
const METADATA: &str = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1";
/// The same, of a list.
const LIST_OF_METADATA: &str = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1";

/// What an object is asked for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    Whole,
    Metadata,
}

/// Why something was not read.
pub(super) enum Unread {
    /// There is no such thing.
    Absent,
    /// It may be there, and is not shown to us.
    Refused(String),
}

pub(super) struct Api(pub(super) Client);

impl Api {
    /// Everything of a kind, page by page.
    pub(super) async fn list<T: DeserializeOwned>(
        &self,
        path: &str,
        form: Form,
    ) -> Result<Result<Vec<T>, Unread>, Error> {
        let accept = match form {
            Form::Whole => "application/json",
            Form::Metadata => LIST_OF_METADATA,
        };
        let (mut all, mut next) = (Vec::new(), String::new());
        loop {
            let more = match next.as_str() {
                "" => String::new(),
                next => format!("&continue={}", encoded(next)),
            };
            let uri = format!("{path}?limit={PAGE}{more}");
            let page: List<T> = match self.ask(&uri, accept, None).await? {
                Ok(page) => page,
                Err(why) => return Ok(Err(why)),
            };
            all.extend(page.items.unwrap_or_default());
            next = page.metadata.next;
            if next.is_empty() {
                return Ok(Ok(all));
            }
        }
    }

    /// One object.
    pub(super) async fn get<T: DeserializeOwned>(
        &self,
        path: &str,
        form: Form,
    ) -> Result<Got<Option<T>>, Error> {
        let accept = match form {
            Form::Whole => "application/json",
            Form::Metadata => METADATA,
        };
        Ok(match self.ask(path, accept, None).await? {
            Ok(object) => Ok(Some(object)),
            Err(Unread::Absent) => Ok(None),
            Err(Unread::Refused(why)) => Err(why),
        })
    }

    /// Has something reviewed.
    pub(super) async fn review(&self, path: &str, body: &Value) -> Result<Got<Value>, Error> {
        Ok(
            match self.ask(path, "application/json", Some(body)).await? {
                Ok(answer) => Ok(answer),
                Err(Unread::Absent) => {
                    Err("the API server does not know of such reviews".to_owned())
                }
                Err(Unread::Refused(why)) => Err(why),
            },
        )
    }

    /// Asks. What concerns this one thing is within; what ends all asking is without.
    async fn ask<T: DeserializeOwned>(
        &self,
        uri: &str,
        accept: &str,
        body: Option<&Value>,
    ) -> Result<Result<T, Unread>, Error> {
        let (mut tries, wait) = AGAIN;
        loop {
            let request = match body {
                None => Request::get(uri),
                Some(_) => Request::post(uri).header("content-type", "application/json"),
            };
            let bytes = body.map(serde_json::to_vec).transpose();
            let bytes = bytes.map_err(|cause| Error::Answer(kube::Error::SerdeError(cause)))?;
            let request = request
                .header(ACCEPT, accept)
                .body(bytes.unwrap_or_default());
            let request = request.map_err(|cause| Error::Answer(kube::Error::HttpError(cause)))?;
            let answer = tokio::time::timeout(PATIENCE, self.0.request(request)).await;
            let cause = match answer {
                Err(_) => return Err(Error::Silent(PATIENCE)),
                Ok(Ok(answer)) => return Ok(Ok(answer)),
                Ok(Err(cause)) => cause,
            };
            match cause {
                kube::Error::Api(status) => match status.code {
                    401 => return Err(Error::Credentials(status.message.clone())),
                    404 => return Ok(Err(Unread::Absent)),
                    429 if tries > 0 => {}
                    code => {
                        let message = status.message.trim();
                        let mut why = format!("{message} ({code})");
                        if code == 403 {
                            let verb = if body.is_some() { "create" } else { "read" };
                            why = format!("{} is not granted: {why}", right(verb, uri));
                        }
                        return Ok(Err(Unread::Refused(why)));
                    }
                },
                kube::Error::SerdeError(cause) => {
                    let path = uri.split('?').next().unwrap_or(uri);
                    let why = format!("the answer to {path} is not understood: {cause}");
                    return Ok(Err(Unread::Refused(why)));
                }
                cause => return Err(Error::Answer(cause)),
            }
            tries -= 1;
            tokio::time::sleep(wait).await;
        }
    }
}

/// The right that a request needs, as `adit check` writes rights: `list daemonsets.apps`.
fn right(verb: &str, uri: &str) -> String {
    let path = uri.split('?').next().unwrap_or(uri);
    let parts: Vec<_> = path.trim_start_matches('/').split('/').collect();
    let (group, rest) = match &parts[..] {
        ["api", _, rest @ ..] => ("", rest),
        ["apis", group, _, rest @ ..] => (*group, rest),
        _ => return format!("get {path}"),
    };
    let (namespace, rest) = match rest {
        ["namespaces", namespace, rest @ ..] if !rest.is_empty() => (*namespace, rest),
        rest => ("", rest),
    };
    let (resource, name) = (
        rest.first().copied().unwrap_or_default(),
        rest.get(1).copied().unwrap_or_default(),
    );
    let verb = match (verb, name) {
        ("read", "") => "list",
        ("read", _) => "get",
        (verb, _) => verb,
    };
    label(verb, group, resource, name, namespace)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_tells_the_right_that_it_needs() {
        let check = |verb, uri, expect: &str| assert_eq!(right(verb, uri), expect);
        check("read", "/api/v1/nodes?limit=500", "list nodes");
        check("read", "/api/v1/namespaces", "list namespaces");
        check(
            "read",
            "/apis/apps/v1/daemonsets?limit=500",
            "list daemonsets.apps",
        );
        check(
            "read",
            "/apis/apps/v1/namespaces/adit-system/deployments?limit=5&continue=a/b",
            "list deployments.apps in adit-system",
        );
        check(
            "read",
            "/api/v1/namespaces/adit-system/secrets/adit-ca",
            "get secrets adit-ca in adit-system",
        );
        check(
            "create",
            "/apis/authorization.k8s.io/v1/subjectaccessreviews",
            "create subjectaccessreviews.authorization.k8s.io",
        );
        check("read", "/version", "get /version");
    }
}
