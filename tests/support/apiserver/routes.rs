//! What the server answers: paths, verbs, and the faults that come before an answer.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http::HeaderValue;
use http::header::DATE;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::{Method, Request, Response};
use serde_json::{Value, json};

use super::server::{self, Call, Fault, Shared, State, hangup};
use super::store::{Entry, Name, Refusal, Resource, Selector};
use super::watch::{Asked, Watch};

type Body = UnsyncBoxBody<Bytes, io::Error>;

/// How long a watch goes on when it does not say.
const WATCH: Duration = Duration::from_secs(300);

/// What a path is about.
struct Target {
    resource: Resource,
    version: String,
    namespace: Option<String>,
    name: Option<String>,
    sub: Option<String>,
}

/// One request, taken apart.
struct Asking {
    method: Method,
    uri: String,
    query: HashMap<String, String>,
    partial: bool,
    token: Option<String>,
    body: Value,
}

/// Answers a request; an error ends the connection.
pub(super) async fn answer(
    request: Request<Incoming>,
    shared: Arc<Shared>,
) -> io::Result<Response<Body>> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
    let header = |name: &str| parts.headers.get(name).and_then(|v| v.to_str().ok());
    let accept = header("accept").unwrap_or_default();
    let query = parts.uri.query().unwrap_or_default();
    let asking = Asking {
        partial: accept.contains("as=PartialObjectMetadata"),
        token: header("authorization")
            .and_then(|v| v.strip_prefix("Bearer "))
            .map(|token| token.trim().to_owned()),
        query: query.split('&').filter_map(pair).collect(),
        uri: parts.uri.to_string(),
        body: serde_json::from_slice(&body).unwrap_or(Value::Null),
        method: parts.method,
    };
    let path = parts.uri.path().to_owned();
    let target = find(&path, &mut shared.lock());
    let call = asking.call(target.as_ref());
    let plural = target
        .as_ref()
        .map_or_else(String::new, |t| t.resource.plural.clone());
    let fault = fault(&mut shared.lock(), &plural, call);
    let mut answer = match fault {
        Some(Fault::Silence) => return std::future::pending().await,
        Some(Fault::Hangup) => return Err(hangup()),
        Some(Fault::Status(code, after)) => refuse_for(code, after),
        Some(Fault::Half) => half(respond(&asking, &path, target, call, &shared)).await,
        None => respond(&asking, &path, target, call, &shared),
    };
    let mut state = shared.lock();
    if let Some(date) = state.options.date {
        let date = HeaderValue::from_static(date);
        answer.headers_mut().insert(DATE, date);
    }
    state.requests.push(server::Request {
        method: asking.method.to_string(),
        resource: plural,
        call,
        partial: asking.partial,
        uri: asking.uri,
        status: answer.status().as_u16(),
    });
    drop(state);
    Ok(answer)
}

impl Asking {
    fn query(&self, name: &str) -> &str {
        self.query.get(name).map_or("", String::as_str)
    }

    fn says(&self, name: &str) -> bool {
        matches!(self.query(name), "true" | "1")
    }

    fn call(&self, target: Option<&Target>) -> Call {
        match target {
            _ if self.method != Method::GET => Call::Write,
            Some(Target { name: None, .. }) if self.says("watch") => {
                if self.says("sendInitialEvents") {
                    Call::Stream
                } else {
                    Call::Watch
                }
            }
            Some(Target { name: None, .. }) => Call::List,
            _ => Call::Any,
        }
    }
}

fn fault(state: &mut State, resource: &str, call: Call) -> Option<Fault> {
    let fits = |planned: &&mut server::Planned| {
        let right = match planned.call {
            Call::Any => true,
            Call::Watch => matches!(call, Call::Watch | Call::Stream),
            other => other == call,
        };
        planned.times > 0 && right && (planned.resource.is_empty() || planned.resource == resource)
    };
    let planned = state.faults.iter_mut().find(fits)?;
    if planned.skip > 0 {
        planned.skip -= 1;
        return None;
    }
    planned.times -= 1;
    Some(planned.fault)
}

fn respond(
    asking: &Asking,
    path: &str,
    target: Option<Target>,
    call: Call,
    shared: &Arc<Shared>,
) -> Response<Body> {
    let mut state = shared.lock();
    let tokens = &state.options.tokens;
    if !tokens.is_empty() && !asking.token.as_ref().is_some_and(|t| tokens.contains(t)) {
        return refuse(401, "Unauthorized");
    }
    let Some(target) = target else {
        return elsewhere(asking, path, &mut state);
    };
    match (call, &target.name) {
        (Call::List, _) => list(asking, &target, &mut state),
        (Call::Watch | Call::Stream, _) => {
            let asked = match watch_of(asking, target, call == Call::Stream, &mut state) {
                Ok(asked) => asked,
                Err(refusal) => return refusal,
            };
            drop(state);
            let watch = Watch::new(shared.clone(), asked);
            let frames = stream::unfold(watch, Watch::next);
            json_response(200, StreamBody::new(frames).boxed_unsync())
        }
        (Call::Any, Some(name)) => {
            let id = target.id(name);
            match state.store.shelf(&target.resource).objects.get(&id) {
                Some(entry) if asking.partial => text(200, entry.metadata()),
                Some(entry) => text(200, entry.full(&target.resource, &target.version)),
                None => refuse(
                    404,
                    &format!("{} {name:?} not found", target.resource.plural),
                ),
            }
        }
        _ => {
            let answer = write(asking, &target, &mut state);
            drop(state);
            shared.changed.send_modify(|version| *version += 1);
            answer
        }
    }
}

impl Target {
    fn id(&self, name: &str) -> Name {
        (self.namespace.clone().unwrap_or_default(), name.to_owned())
    }
}

fn list(asking: &Asking, target: &Target, state: &mut State) -> Response<Body> {
    let selector = Selector::parse(asking.query("labelSelector"), asking.query("fieldSelector"));
    let selector = match selector {
        Ok(selector) => selector,
        Err(message) => return refuse(400, &message),
    };
    let store = &mut state.store;
    if asking
        .query("resourceVersion")
        .parse()
        .is_ok_and(|v: u64| v > store.version)
    {
        return refuse(504, "Too large resource version");
    }
    let limit: usize = asking.query("limit").parse().unwrap_or(0);
    let (page, start, version, objects) = match asking.query("continue").split_once('-') {
        Some((page, start)) => {
            let page: u64 = page.parse().unwrap_or(0);
            let Some(kept) = store.pages.get(&page) else {
                return refuse(410, "The provided continue parameter is too old");
            };
            let start = start.parse().unwrap_or(0);
            (page, start, kept.version, kept.objects.clone())
        }
        None => {
            let in_it = |e: &&Arc<Entry>| {
                target.namespace.as_ref().is_none_or(|n| *n == e.name.0) && selector.fits(e)
            };
            let objects = store.shelf(&target.resource).objects.values();
            let objects: Vec<_> = objects.filter(in_it).cloned().collect();
            (0, 0, store.version, objects)
        }
    };
    let end = match limit {
        0 => objects.len(),
        limit => objects.len().min(start + limit),
    };
    let mut metadata = json!({ "resourceVersion": version.to_string() });
    if end < objects.len() {
        let page = if page == 0 {
            store.keep_pages(objects.clone())
        } else {
            page
        };
        metadata["continue"] = json!(format!("{page}-{end}"));
        metadata["remainingItemCount"] = json!(objects.len() - end);
    }
    let resource = &target.resource;
    let (kind, api_version) = if asking.partial {
        (
            "PartialObjectMetadataList".to_owned(),
            "meta.k8s.io/v1".to_owned(),
        )
    } else {
        (
            format!("{}List", resource.kind),
            resource.api_version(&target.version),
        )
    };
    // Items of what is built in do not name their kind, custom resources do.
    let custom = resource.group.matches('.').count() > 1 && !resource.group.ends_with(".k8s.io");
    let items: Vec<String> = objects[start..end]
        .iter()
        .map(|entry| match (asking.partial, custom) {
            (true, _) => entry.metadata(),
            (_, true) => entry.full(resource, &target.version),
            (_, false) => entry.text.clone(),
        })
        .collect();
    text(
        200,
        format!(
            r#"{{"kind":"{kind}","apiVersion":"{api_version}","metadata":{metadata},"items":[{}]}}"#,
            items.join(",")
        ),
    )
}

#[expect(clippy::result_large_err, reason = "a response is as large as it is")]
fn watch_of(
    asking: &Asking,
    target: Target,
    stream: bool,
    state: &mut State,
) -> Result<Asked, Response<Body>> {
    let selector = Selector::parse(asking.query("labelSelector"), asking.query("fieldSelector"));
    let selector = selector.map_err(|message| refuse(400, &message))?;
    if stream && !state.options.streaming {
        let message = "sendInitialEvents: Forbidden: sendInitialEvents is forbidden for watch \
                       unless the WatchList feature gate is enabled";
        return Err(refuse(422, message));
    }
    if stream && asking.query("resourceVersionMatch") != "NotOlderThan" {
        return Err(refuse(
            422,
            "resourceVersionMatch: Forbidden: it must be NotOlderThan",
        ));
    }
    let version: u64 = match asking.query("resourceVersion") {
        "" => 0,
        text => text
            .parse()
            .map_err(|_| refuse(500, "resourceVersion: Invalid value"))?,
    };
    let from = (version != 0 && !stream).then_some(version);
    if state.options.gone_as_status && from.is_some_and(|v| v < state.store.compacted) {
        return Err(refuse(410, "too old resource version"));
    }
    // The real one looks at the oldest version it has of anything.
    let shelf = state.store.shelf(&target.resource);
    let from = match from {
        Some(v) if v < shelf.dropped => Some(0),
        other => other,
    };
    let timeout = asking.query("timeoutSeconds").parse();
    Ok(Asked {
        resource: target.resource,
        version: target.version,
        namespace: target.namespace,
        selector,
        partial: asking.partial,
        bookmarks: asking.says("allowWatchBookmarks"),
        from,
        tell_end: stream,
        timeout: timeout.map_or(WATCH, Duration::from_secs),
    })
}

fn write(asking: &Asking, target: &Target, state: &mut State) -> Response<Body> {
    let (resource, store) = (&target.resource, &mut state.store);
    if let (Some(name), Some("token")) = (&target.name, target.sub.as_deref()) {
        let given = state.tokens.give(store, target.id(name), &asking.body);
        return match given {
            Ok(answer) => text(201, answer.to_string()),
            Err((code, message)) => refuse(code, &message),
        };
    }
    let mut object = asking.body.clone();
    if let Some(namespace) = &target.namespace
        && object.is_object()
        && asking.method != Method::PATCH
    {
        object["metadata"]["namespace"] = json!(namespace);
    }
    let sub = target.sub.as_deref();
    let written = match (&asking.method, &target.name) {
        (&Method::POST, None) => store.create(resource, object),
        (&Method::PUT, Some(name)) => store.replace(resource, &target.id(name), sub, object),
        (&Method::PATCH, Some(name)) => store.patch(resource, &target.id(name), sub, &object),
        (&Method::DELETE, Some(name)) => store.delete(resource, &target.id(name)),
        _ => {
            return refuse(
                405,
                "the server does not allow this method on the requested resource",
            );
        }
    };
    let code = if asking.method == Method::POST {
        201
    } else {
        200
    };
    match written {
        Ok(entry) => text(code, entry.full(resource, &target.version)),
        Err(Refusal::NotFound) => refuse(404, &format!("{} not found", resource.plural)),
        Err(Refusal::AlreadyExists) => refuse_as(409, "AlreadyExists", "it already exists"),
        Err(Refusal::Conflict) => refuse_as(
            409,
            "Conflict",
            "the object has been modified; please apply your changes to the latest version",
        ),
        Err(Refusal::Invalid(message)) => refuse(422, &message),
        Err(Refusal::Immutable(field)) => {
            let mut status = status(422, &format!("{field}: field is immutable"));
            status["details"] = json!({ "causes": [
                { "reason": "FieldValueInvalid", "message": "field is immutable", "field": field },
            ] });
            text(422, status.to_string())
        }
    }
}

/// What is about no object that is kept.
fn elsewhere(asking: &Asking, path: &str, state: &mut State) -> Response<Body> {
    match path {
        "/version" => text(
            200,
            json!({ "major": "1", "minor": "34", "gitVersion": "v1.34.0+fake" }).to_string(),
        ),
        "/readyz" | "/livez" | "/healthz" => text(200, "ok".to_owned()),
        "/apis/authentication.k8s.io/v1/tokenreviews" => {
            let spec = &asking.body["spec"];
            let audiences = spec["audiences"].as_array().into_iter().flatten();
            let audiences: Vec<String> = audiences
                .filter_map(|a| a.as_str().map(str::to_owned))
                .collect();
            let token = spec["token"].as_str().unwrap_or_default();
            let mut review = asking.body.clone();
            let known = state.tokens.review(&mut state.store, token, &audiences);
            review["status"] = known.unwrap_or_else(|| (state.review)(token, &audiences));
            text(201, review.to_string())
        }
        "/apis/authorization.k8s.io/v1/subjectaccessreviews"
        | "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews" => {
            let mut review = asking.body.clone();
            let about = &review["spec"]["resourceAttributes"];
            let word = |field: &str| about[field].as_str().unwrap_or_default();
            let right = format!("{} {}", word("verb"), word("resource"));
            let allowed = !state.options.denied.contains(&right);
            review["status"] = json!({ "allowed": allowed });
            text(201, review.to_string())
        }
        "/api" => text(
            200,
            json!({ "kind": "APIVersions", "versions": ["v1"] }).to_string(),
        ),
        "/apis" => text(200, groups(state).to_string()),
        path => match discovery(path, state) {
            Some(list) => text(200, list.to_string()),
            None => {
                let page = Full::new(Bytes::from_static(b"404 page not found\n"));
                let mut response =
                    json_response(404, page.map_err(io::Error::other).boxed_unsync());
                let plain = "text/plain; charset=utf-8".parse().expect("a header");
                response.headers_mut().insert("content-type", plain);
                response
            }
        },
    }
}

fn groups(state: &State) -> Value {
    let mut groups: Vec<Value> = Vec::new();
    for resource in state.store.resources.iter().filter(|r| !r.group.is_empty()) {
        if !groups.iter().any(|g| g["name"] == resource.group) {
            let version =
                |v: &String| json!({ "groupVersion": resource.api_version(v), "version": v });
            let versions: Vec<Value> = resource.versions.iter().map(version).collect();
            groups.push(json!({
                "name": resource.group,
                "preferredVersion": versions[0],
                "versions": versions,
            }));
        }
    }
    json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": groups })
}

/// `/api/v1` or `/apis/GROUP/VERSION`.
fn discovery(path: &str, state: &State) -> Option<Value> {
    let group_version = path.strip_prefix("/apis/").or(path.strip_prefix("/api/"))?;
    let (group, version) = group_version.split_once('/').unwrap_or(("", group_version));
    let served = |r: &&Resource| r.group == group && r.versions.iter().any(|v| v == version);
    let resources: Vec<Value> = state
        .store
        .resources
        .iter()
        .filter(served)
        .map(|r| {
            json!({
                "name": r.plural, "singularName": "", "kind": r.kind, "namespaced": r.namespaced,
                "verbs": ["create", "delete", "get", "list", "patch", "update", "watch"],
            })
        })
        .collect();
    (!resources.is_empty()).then(|| {
        json!({
            "kind": "APIResourceList", "apiVersion": "v1",
            "groupVersion": group_version, "resources": resources,
        })
    })
}

fn find(path: &str, state: &mut State) -> Option<Target> {
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let (group, version, rest) = match &parts[..] {
        ["api", version, rest @ ..] => ("", *version, rest),
        ["apis", group, version, rest @ ..] => (*group, *version, rest),
        _ => return None,
    };
    let known = |plural: &str| {
        let served = |r: &&Resource| {
            r.group == group && r.plural == plural && r.versions.iter().any(|v| v == version)
        };
        state.store.resources.iter().find(served).cloned()
    };
    let text = |part: &&str| Some((*part).to_owned());
    let (resource, namespace, rest) = match rest {
        ["namespaces", namespace, plural, rest @ ..]
            if *plural != "status" && *plural != "finalize" =>
        {
            (known(plural)?, text(namespace), rest)
        }
        [plural, rest @ ..] => (known(plural)?, None, rest),
        [] => return None,
    };
    Some(Target {
        resource,
        version: version.to_owned(),
        namespace,
        name: rest.first().and_then(text),
        sub: rest.get(1).and_then(text),
    })
}

fn pair(text: &str) -> Option<(String, String)> {
    let (key, value) = text.split_once('=')?;
    Some((decode(key), decode(value)))
}

/// Percent-decoding of a query's part.
fn decode(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, more @ ..] = rest {
        rest = more;
        let hex = |at: usize| more.get(at).and_then(|b| char::from(*b).to_digit(16));
        match (first, hex(0), hex(1)) {
            (b'%', Some(high), Some(low)) => {
                bytes.push(u8::try_from(high * 16 + low).expect("two digits"));
                rest = &more[2..];
            }
            (b'+', ..) => bytes.push(b' '),
            _ => bytes.push(*first),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A `Status` object.
pub(super) fn status(code: u16, message: &str) -> Value {
    status_as(code, reason(code), message)
}

fn status_as(code: u16, reason: &str, message: &str) -> Value {
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code,
    })
}

fn reason(code: u16) -> &'static str {
    match code {
        400 => "BadRequest",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "NotFound",
        405 => "MethodNotAllowed",
        409 => "Conflict",
        410 => "Expired",
        422 => "Invalid",
        429 => "TooManyRequests",
        500 => "InternalError",
        503 => "ServiceUnavailable",
        504 => "Timeout",
        _ => "Unknown",
    }
}

fn refuse(code: u16, message: &str) -> Response<Body> {
    text(code, status(code, message).to_string())
}

fn refuse_as(code: u16, reason: &str, message: &str) -> Response<Body> {
    text(code, status_as(code, reason, message).to_string())
}

fn refuse_for(code: u16, after: Option<u32>) -> Response<Body> {
    let mut response = refuse(code, "on command");
    if let Some(after) = after {
        response.headers_mut().insert("retry-after", after.into());
    }
    response
}

fn text(code: u16, text: String) -> Response<Body> {
    json_response(
        code,
        Full::new(Bytes::from(text))
            .map_err(io::Error::other)
            .boxed_unsync(),
    )
}

fn json_response(code: u16, body: Body) -> Response<Body> {
    Response::builder()
        .status(code)
        .header("content-type", "application/json")
        .body(body)
        .expect("the parts are well formed")
}

/// The first half of an answer, then the end of the connection.
async fn half(response: Response<Body>) -> Response<Body> {
    let (parts, body) = response.into_parts();
    let whole = body
        .collect()
        .await
        .map_or_else(|_| Bytes::new(), |body| body.to_bytes());
    let half = whole.slice(..whole.len() / 2);
    let frames = stream::iter([Ok(Frame::data(half)), Err(hangup())]);
    Response::from_parts(parts, StreamBody::new(frames).boxed_unsync())
}
