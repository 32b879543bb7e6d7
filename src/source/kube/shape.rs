//! From the API's JSON to slim objects, by the shapes and checks that files go through, too.
//!
//! Each answer is read in one pass that skips what nobody asks for. Where a single object is not of
//! its kind's shape, the answer is read again the slow way, so that it alone is held back. Of a
//! pod, the annotation with a path of its namespace is dropped: it is for files, and here whoever
//! may annotate a pod would lead the daemon anywhere.

use serde::Deserialize;
use serde_json::Value;

use crate::source::chunk;
use crate::source::raw::{self, Text};
use crate::source::read::{self, Invalid};
use crate::source::{Interner, Key, Kind, Object};

/// One object as it was read.
#[derive(Debug)]
pub(super) struct Item {
    /// What it is called; `None` where even that cannot be told.
    pub(super) key: Option<Key>,
    /// Its resource version as a number that changes with it; 0 when there is none.
    pub(super) version: u64,
    /// `None` for one that means nothing here, like an `ExternalName` service.
    pub(super) object: Result<Option<Object>, Invalid>,
}

/// One page of a list.
#[derive(Debug)]
pub(super) struct Page {
    pub(super) items: Vec<Item>,
    /// The version that the whole list shows; empty when not said.
    pub(super) version: String,
    /// Where the next page begins, when there is one.
    pub(super) next: Option<String>,
}

/// One line of a watch.
#[derive(Debug)]
pub(super) enum Line {
    /// An object is new or has changed, and the watch is at that version.
    Upsert(Item, String),
    /// One is gone.
    Gone(Item, String),
    /// The watch is at that version; whether that ends the initial events.
    Bookmark { version: String, end: bool },
    /// The server has something to say, and will end the watch.
    Error { code: u16, message: String },
}

/// Reads a page of a list.
pub(super) fn page(kind: Kind, text: &str, interner: &mut Interner) -> Result<Page, String> {
    match kind {
        Kind::Namespace | Kind::Node => page_of::<Bares>(kind, text, interner),
        Kind::Pod => page_of::<Pods>(kind, text, interner),
        Kind::Service => page_of::<Services>(kind, text, interner),
        Kind::EndpointSlice => page_of::<Slices>(kind, text, interner),
        Kind::AuthorizationPolicy | Kind::PeerAuthentication => {
            page_of::<Policies>(kind, text, interner)
        }
    }
}

/// Reads a line of a watch.
pub(super) fn line(kind: Kind, text: &str, interner: &mut Interner) -> Result<Line, String> {
    match kind {
        Kind::Namespace | Kind::Node => line_of::<Bares>(kind, text, interner),
        Kind::Pod => line_of::<Pods>(kind, text, interner),
        Kind::Service => line_of::<Services>(kind, text, interner),
        Kind::EndpointSlice => line_of::<Slices>(kind, text, interner),
        Kind::AuthorizationPolicy | Kind::PeerAuthentication => {
            line_of::<Policies>(kind, text, interner)
        }
    }
}

/// A serde shape and how it becomes an object.
trait Shape {
    type Raw<'a>: Deserialize<'a>;

    fn item(raw: &Self::Raw<'_>, kind: Kind, interner: &mut Interner) -> Item;

    /// The resource version as it was written.
    fn version<'r>(raw: &'r Self::Raw<'_>) -> &'r str;
}

struct Bares;
struct Pods;
struct Services;
struct Slices;
struct Policies;

impl Shape for Bares {
    type Raw<'a> = raw::Bare<'a>;

    fn item(raw: &raw::Bare<'_>, kind: Kind, interner: &mut Interner) -> Item {
        item(&raw.metadata, kind, interner, |key, interner| {
            Ok(Some(match kind {
                Kind::Node => read::node(raw, key, interner),
                _ => read::namespace(raw, key, interner),
            }))
        })
    }

    fn version<'r>(raw: &'r raw::Bare<'_>) -> &'r str {
        raw.metadata.resource_version.as_deref().unwrap_or_default()
    }
}

impl Shape for Pods {
    type Raw<'a> = raw::Pod<'a>;

    fn item(raw: &raw::Pod<'_>, kind: Kind, interner: &mut Interner) -> Item {
        item(&raw.metadata, kind, interner, |key, interner| {
            let mut object = read::pod(raw, key, interner)?;
            if let Object::Pod(pod) = &mut object {
                pod.netns = None;
            }
            Ok(Some(object))
        })
    }

    fn version<'r>(raw: &'r raw::Pod<'_>) -> &'r str {
        raw.metadata.resource_version.as_deref().unwrap_or_default()
    }
}

impl Shape for Services {
    type Raw<'a> = raw::Service<'a>;

    fn item(raw: &raw::Service<'_>, kind: Kind, interner: &mut Interner) -> Item {
        item(&raw.metadata, kind, interner, |key, interner| {
            read::service(raw, key, interner)
        })
    }

    fn version<'r>(raw: &'r raw::Service<'_>) -> &'r str {
        raw.metadata.resource_version.as_deref().unwrap_or_default()
    }
}

impl Shape for Slices {
    type Raw<'a> = raw::Slice<'a>;

    fn item(raw: &raw::Slice<'_>, kind: Kind, interner: &mut Interner) -> Item {
        item(&raw.metadata, kind, interner, |key, interner| {
            read::slice(raw, key, interner)
        })
    }

    fn version<'r>(raw: &'r raw::Slice<'_>) -> &'r str {
        raw.metadata.resource_version.as_deref().unwrap_or_default()
    }
}

impl Shape for Policies {
    type Raw<'a> = Value;

    fn item(raw: &Value, kind: Kind, interner: &mut Interner) -> Item {
        let key = chunk::named(kind, raw, interner);
        Item {
            version: number(Self::version(raw)),
            object: match &key {
                Ok(key) => Ok(Some(chunk::policy(kind, key, raw))),
                Err(message) => Err(message.clone()),
            },
            key: key.ok(),
        }
    }

    fn version(raw: &Value) -> &str {
        version_of(raw)
    }
}

fn version_of(object: &Value) -> &str {
    let version = object.pointer("/metadata/resourceVersion");
    version.and_then(Value::as_str).unwrap_or_default()
}

fn item(
    meta: &raw::Meta<'_>,
    kind: Kind,
    interner: &mut Interner,
    read: impl FnOnce(Key, &mut Interner) -> Result<Option<Object>, Invalid>,
) -> Item {
    let version = number(meta.resource_version.as_deref().unwrap_or_default());
    let (key, object) = match read::key(kind, meta, interner) {
        Ok(key) => (Some(key.clone()), read(key, interner)),
        Err(message) => (None, Err(message)),
    };
    Item {
        key,
        version,
        object,
    }
}

/// An object that is not of its kind's shape.
fn misshapen(
    kind: Kind,
    object: &Value,
    error: &serde_json::Error,
    interner: &mut Interner,
) -> Item {
    Item {
        key: chunk::named(kind, object, interner).ok(),
        version: number(version_of(object)),
        object: Err(error.to_string()),
    }
}

/// Resource versions are numbers wherever they were seen; another word would do as well, since it
/// is only asked whether it is the same.
fn number(version: &str) -> u64 {
    version.parse().unwrap_or_else(|_| {
        let step = |hash: u64, b: u8| (hash ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3);
        version.bytes().fold(0xcbf2_9ce4_8422_2325, step)
    })
}

#[derive(Deserialize)]
struct List<'a, T> {
    #[serde(borrow, default)]
    metadata: ListMeta<'a>,
    #[serde(default = "Option::default")]
    items: Option<Vec<T>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ListMeta<'a> {
    #[serde(borrow)]
    resource_version: Option<Text<'a>>,
    #[serde(borrow, rename = "continue")]
    next: Option<Text<'a>>,
}

fn page_of<S: Shape>(kind: Kind, text: &str, interner: &mut Interner) -> Result<Page, String> {
    if let Ok(list) = serde_json::from_str::<List<'_, S::Raw<'_>>>(text) {
        let raws = list.items.unwrap_or_default();
        let items = raws.iter().map(|raw| S::item(raw, kind, interner));
        return Ok(finish(items.collect(), &list.metadata));
    }
    let list: List<'_, Value> = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let values = list.items.unwrap_or_default();
    let items = values
        .iter()
        .map(|value| match S::Raw::deserialize(value) {
            Ok(raw) => S::item(&raw, kind, interner),
            Err(error) => misshapen(kind, value, &error, interner),
        })
        .collect();
    Ok(finish(items, &list.metadata))
}

fn finish(items: Vec<Item>, metadata: &ListMeta<'_>) -> Page {
    let text = |text: &Option<Text<'_>>| text.as_deref().unwrap_or_default().to_owned();
    Page {
        items,
        version: text(&metadata.resource_version),
        next: Some(text(&metadata.next)).filter(|next| !next.is_empty()),
    }
}

#[derive(Deserialize)]
struct Event<'a, T> {
    #[serde(borrow, rename = "type")]
    verb: Text<'a>,
    object: T,
}

fn line_of<S: Shape>(kind: Kind, text: &str, interner: &mut Interner) -> Result<Line, String> {
    if let Ok(event) = serde_json::from_str::<Event<'_, S::Raw<'_>>>(text) {
        let version = S::version(&event.object).to_owned();
        match &*event.verb {
            "ADDED" | "MODIFIED" => {
                return Ok(Line::Upsert(
                    S::item(&event.object, kind, interner),
                    version,
                ));
            }
            "DELETED" => return Ok(Line::Gone(S::item(&event.object, kind, interner), version)),
            _ => {}
        }
    }
    let event: Event<'_, Value> = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let object = &event.object;
    let version = version_of(object).to_owned();
    let read = |interner: &mut Interner| match S::Raw::deserialize(object) {
        Ok(raw) => S::item(&raw, kind, interner),
        Err(error) => misshapen(kind, object, &error, interner),
    };
    match &*event.verb {
        "ADDED" | "MODIFIED" => Ok(Line::Upsert(read(interner), version)),
        "DELETED" => Ok(Line::Gone(read(interner), version)),
        "BOOKMARK" => {
            let annotations = object.pointer("/metadata/annotations");
            let end = annotations.and_then(|all| all.get("k8s.io/initial-events-end"));
            let end = end.and_then(Value::as_str) == Some("true");
            Ok(Line::Bookmark { version, end })
        }
        "ERROR" => {
            let code = object.get("code").and_then(Value::as_u64);
            let message = object.get("message").and_then(Value::as_str);
            Ok(Line::Error {
                code: code.and_then(|code| u16::try_from(code).ok()).unwrap_or(0),
                message: message.unwrap_or("without a message").to_owned(),
            })
        }
        verb => Err(format!("an event of an unknown type {verb:?}")),
    }
}

#[cfg(test)]
mod tests;
