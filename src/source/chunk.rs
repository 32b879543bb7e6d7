//! From the text of one object to the object.
//!
//! A chunk is tried with the quick reader of its format first. What that cannot take goes through
//! the general parser twice: typed, which tells on which line a wrong value stands, and untyped,
//! which tells whether the text is wrong (then the whole file is held back) or the object is
//! (then that object alone is).

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use crate::mesh::policy::{AuthorizationPolicy, PeerAuthentication};
use crate::source::raw;
use crate::source::read::Invalid;
use crate::source::{Interner, Key, Kind, Object};
use crate::source::{block, read};

/// How a chunk is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Yaml,
    Json,
}

/// The text of one object.
#[derive(Clone, Copy, Debug)]
pub(super) struct Chunk<'a> {
    pub(super) text: &'a str,
    pub(super) format: Format,
    /// The kind of list it is an item of, if that was written ahead of it.
    pub(super) list: Option<&'a str>,
}

/// What a chunk held.
#[derive(Debug)]
pub(super) enum Parsed {
    /// An object that counts.
    Object(Key, Object),
    /// One that is known and means nothing here, like an `ExternalName` service.
    Nothing,
    /// An object of a kind that is not read.
    Foreign(String),
    /// An object that is wrong; its key where that much could be read.
    Invalid {
        key: Option<Key>,
        /// The object in words, as far as it could be read.
        object: String,
        /// From 0, within the chunk.
        line: u32,
        message: String,
    },
}

/// The text is not YAML or not JSON: the line from 0 within the chunk, and what is wrong.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Malformed {
    pub(super) line: u32,
    pub(super) message: String,
}

/// Reads a chunk, into one result or, for a list in flow style, several.
pub(super) fn parse(
    chunk: Chunk<'_>,
    interner: &mut Interner,
    sink: &mut dyn FnMut(Parsed),
) -> Result<(), Malformed> {
    let quick = match chunk.format {
        Format::Yaml => quick_yaml(chunk, interner),
        Format::Json => quick_json(chunk, interner),
    };
    match quick {
        Some(parsed) => sink(parsed),
        None => thorough(chunk, interner, sink)?,
    }
    Ok(())
}

/// Checks text that holds no object, such as the head of a list, and says what kind it names.
pub(super) fn head(text: &str) -> Result<Option<String>, Malformed> {
    let value = untyped(Chunk {
        text,
        format: Format::Yaml,
        list: None,
    })?;
    Ok(text_at(&value, "kind").map(str::to_owned))
}

/// `None` whenever anything is out of the ordinary.
fn quick_yaml(chunk: Chunk<'_>, interner: &mut Interner) -> Option<Parsed> {
    let (api_version, kind) = top_words(chunk.text)?;
    let (kind, api_version) = said(kind, api_version, chunk.list)?;
    let Some(known) = Kind::of(api_version, kind) else {
        block::from_str::<serde::de::IgnoredAny>(chunk.text).ok()?;
        return Some(foreign(api_version, kind));
    };
    let text = chunk.text;
    match known {
        Kind::Namespace | Kind::Node => bare(known, &block::from_str(text).ok()?, interner),
        Kind::Pod => pod(&block::from_str(text).ok()?, interner),
        Kind::Service => service(&block::from_str(text).ok()?, interner),
        Kind::EndpointSlice => slice(&block::from_str(text).ok()?, interner),
        Kind::AuthorizationPolicy | Kind::PeerAuthentication => return None,
    }
    .ok()
}

/// `None` whenever anything is out of the ordinary.
fn quick_json(chunk: Chunk<'_>, interner: &mut Interner) -> Option<Parsed> {
    #[derive(Default, Deserialize)]
    #[serde(rename_all = "camelCase", default)]
    struct Words<'a> {
        #[serde(borrow)]
        api_version: Option<raw::Text<'a>>,
        #[serde(borrow)]
        kind: Option<raw::Text<'a>>,
    }
    let words: Words<'_> = serde_json::from_str(chunk.text).ok()?;
    let (kind, api_version) = said(
        words.kind.as_deref(),
        words.api_version.as_deref(),
        chunk.list,
    )?;
    let Some(known) = Kind::of(api_version, kind) else {
        return Some(foreign(api_version, kind));
    };
    let text = chunk.text;
    match known {
        Kind::Namespace | Kind::Node => bare(known, &serde_json::from_str(text).ok()?, interner),
        Kind::Pod => pod(&serde_json::from_str(text).ok()?, interner),
        Kind::Service => service(&serde_json::from_str(text).ok()?, interner),
        Kind::EndpointSlice => slice(&serde_json::from_str(text).ok()?, interner),
        Kind::AuthorizationPolicy | Kind::PeerAuthentication => return None,
    }
    .ok()
}

/// The kind an object has: its own, or that of the items of the list it stands in.
fn said<'a>(
    kind: Option<&'a str>,
    api_version: Option<&'a str>,
    list: Option<&'a str>,
) -> Option<(&'a str, Option<&'a str>)> {
    match (kind, list) {
        (Some(kind), _) if kind == "List" || kind.ends_with("List") => None,
        (Some(kind), _) => Some((kind, api_version)),
        (None, Some(list)) => Some((list.strip_suffix("List")?, api_version)),
        (None, None) => None,
    }
}

fn foreign(api_version: Option<&str>, kind: &str) -> Parsed {
    Parsed::Foreign(format!("{} {kind}", api_version.unwrap_or("v1")))
}

/// `apiVersion` and `kind` of a block-style document, found without reading the rest: both stand
/// at the document's own indentation.
fn top_words(text: &str) -> Option<(Option<&str>, Option<&str>)> {
    let (mut api_version, mut kind) = (None, None);
    let mut indent = None;
    for line in text.lines() {
        let body = line.trim_start_matches(' ');
        if body.is_empty() || body.starts_with('#') {
            continue;
        }
        if line.len() - body.len() != *indent.get_or_insert(line.len() - body.len()) {
            continue;
        }
        if let Some(word) = body.strip_prefix("apiVersion: ") {
            api_version = Some(simple(word)?);
        } else if let Some(word) = body.strip_prefix("kind: ") {
            kind = Some(simple(word)?);
        }
        if api_version.is_some() && kind.is_some() {
            break;
        }
    }
    Some((api_version, kind))
}

fn simple(word: &str) -> Option<&str> {
    let word = word.trim();
    let legal = |b: u8| b.is_ascii_alphanumeric() || b"./-".contains(&b);
    (!word.is_empty() && word.bytes().all(legal)).then_some(word)
}

fn bare(
    kind: Kind,
    raw: &raw::Bare<'_>,
    interner: &mut Interner,
) -> Result<Parsed, (Option<Key>, Invalid)> {
    let key = read::key(kind, &raw.metadata, interner).map_err(|message| (None, message))?;
    let object = match kind {
        Kind::Node => read::node(raw, key.clone(), interner),
        _ => read::namespace(raw, key.clone(), interner),
    };
    Ok(Parsed::Object(key, object))
}

fn pod(raw: &raw::Pod<'_>, interner: &mut Interner) -> Result<Parsed, (Option<Key>, Invalid)> {
    let key = read::key(Kind::Pod, &raw.metadata, interner).map_err(|message| (None, message))?;
    finish(key.clone(), read::pod(raw, key, interner).map(Some))
}

fn service(
    raw: &raw::Service<'_>,
    interner: &mut Interner,
) -> Result<Parsed, (Option<Key>, Invalid)> {
    let key = read::key(Kind::Service, &raw.metadata, interner).map_err(|m| (None, m))?;
    finish(key.clone(), read::service(raw, key, interner))
}

fn slice(raw: &raw::Slice<'_>, interner: &mut Interner) -> Result<Parsed, (Option<Key>, Invalid)> {
    let key = read::key(Kind::EndpointSlice, &raw.metadata, interner).map_err(|m| (None, m))?;
    finish(key.clone(), read::slice(raw, key, interner))
}

fn finish(
    key: Key,
    read: Result<Option<Object>, Invalid>,
) -> Result<Parsed, (Option<Key>, Invalid)> {
    match read {
        Ok(Some(object)) => Ok(Parsed::Object(key, object)),
        Ok(None) => Ok(Parsed::Nothing),
        Err(message) => Err((Some(key), message)),
    }
}

/// Reads what the quick readers would not: all of it, with an explanation for what is wrong.
fn thorough(
    chunk: Chunk<'_>,
    interner: &mut Interner,
    sink: &mut dyn FnMut(Parsed),
) -> Result<(), Malformed> {
    let value = untyped(chunk)?;
    let list = text_at(&value, "kind").filter(|kind| kind.ends_with("List"));
    if let (Some(list), Some(Value::Array(items))) = (list, value.get("items")) {
        for item in items {
            sink(from_value(item, Some(list), None, interner));
        }
        return Ok(());
    }
    match &value {
        // A document of nothing but comments.
        Value::Null => {}
        value => sink(from_value(value, chunk.list, Some(chunk), interner)),
    }
    Ok(())
}

fn from_value(
    value: &Value,
    list: Option<&str>,
    chunk: Option<Chunk<'_>>,
    interner: &mut Interner,
) -> Parsed {
    let (kind, api_version) = (text_at(value, "kind"), text_at(value, "apiVersion"));
    let Some((kind, api_version)) = said(kind, api_version, list) else {
        return invalid(None, value, 0, "it has no kind");
    };
    let Some(known) = Kind::of(api_version, kind) else {
        return foreign(api_version, kind);
    };
    let key = match named(known, value, interner) {
        Ok(key) => key,
        Err(message) => return invalid(None, value, 0, &message),
    };
    let wrong = |line: u32, message: &str| Parsed::Invalid {
        object: key.to_string(),
        key: Some(key.clone()),
        line,
        message: message.to_owned(),
    };
    let read = match known {
        Kind::Namespace | Kind::Node => {
            typed::<raw::Bare<'_>, _>(value, chunk, |raw| bare(known, &raw, interner))
        }
        Kind::Pod => typed::<raw::Pod<'_>, _>(value, chunk, |raw| pod(&raw, interner)),
        Kind::Service => typed::<raw::Service<'_>, _>(value, chunk, |raw| service(&raw, interner)),
        Kind::EndpointSlice => {
            typed::<raw::Slice<'_>, _>(value, chunk, |raw| slice(&raw, interner))
        }
        Kind::AuthorizationPolicy | Kind::PeerAuthentication => {
            return Parsed::Object(key.clone(), policy(known, &key, value));
        }
    };
    match read {
        Ok(Ok(parsed)) => parsed,
        Ok(Err((_, message))) => wrong(0, &message),
        Err(Malformed { line, message }) => wrong(line, &message),
    }
}

/// Reads `value` as a `T`; where that fails, asks the text which line is to blame.
fn typed<'a, T: Deserialize<'a>, R>(
    value: &'a Value,
    chunk: Option<Chunk<'a>>,
    then: impl FnOnce(T) -> R,
) -> Result<R, Malformed> {
    let error = match T::deserialize(value) {
        Ok(raw) => return Ok(then(raw)),
        Err(error) => error,
    };
    let Some(chunk) = chunk else {
        return Err(Malformed {
            line: 0,
            message: error.to_string(),
        });
    };
    let located = match chunk.format {
        Format::Yaml => yaml::<T>(chunk.text),
        Format::Json => json::<T>(chunk.text),
    };
    match located {
        // YAML is more lenient with text when it knows that text is wanted: `name: 1` is "1".
        Ok(raw) => Ok(then(raw)),
        Err(malformed) => Err(malformed),
    }
}

fn untyped(chunk: Chunk<'_>) -> Result<Value, Malformed> {
    match chunk.format {
        Format::Json => json(chunk.text),
        Format::Yaml => yaml(chunk.text),
    }
}

fn json<'a, T: Deserialize<'a>>(text: &'a str) -> Result<T, Malformed> {
    serde_json::from_str(text).map_err(|error| Malformed {
        line: u32::try_from(error.line().saturating_sub(1)).unwrap_or(0),
        message: short(&error.to_string()),
    })
}

pub(super) fn yaml<'a, T: Deserialize<'a>>(text: &'a str) -> Result<T, Malformed> {
    // `on` and `yes` are what they look like to whoever writes them today: text.
    let options = serde_saphyr::options! { strict_booleans: true };
    serde_saphyr::from_str_with_options(text, options).map_err(|error| {
        let error = error.without_snippet();
        let line = error.location().map_or(1, |at| at.line());
        Malformed {
            line: u32::try_from(line.saturating_sub(1)).unwrap_or(0),
            message: short(&error.to_string()),
        }
    })
}

/// An error's first line, without the position that the parser counts from the chunk's start.
fn short(message: &str) -> String {
    let line = message.lines().next().unwrap_or_default();
    line.split(" at line ").next().unwrap_or(line).to_owned()
}

fn text_at<'v>(value: &'v Value, field: &str) -> Option<&'v str> {
    value.get(field)?.as_str()
}

/// The key of an object of which only the metadata's names need be right.
pub(super) fn named(kind: Kind, value: &Value, interner: &mut Interner) -> Result<Key, Invalid> {
    let meta = value.get("metadata");
    let text = |field: &str| {
        match meta?.get(field)? {
            Value::String(text) => Some(raw::Text(text.as_str().into())),
            // A bare number or word is text to whoever wrote it.
            other @ (Value::Number(_) | Value::Bool(_)) => {
                Some(raw::Text(other.to_string().into()))
            }
            _ => None,
        }
    };
    let meta = raw::Meta {
        name: text("name"),
        namespace: text("namespace"),
        ..raw::Meta::default()
    };
    read::key(kind, &meta, interner)
}

fn invalid(key: Option<Key>, value: &Value, line: u32, message: &str) -> Parsed {
    let name = value.get("metadata").and_then(|meta| text_at(meta, "name"));
    let object = [text_at(value, "kind"), name];
    let object: Vec<_> = object.into_iter().flatten().collect();
    Parsed::Invalid {
        key,
        object: object.join(" "),
        line,
        message: message.to_owned(),
    }
}

/// A policy never fails to be read: what cannot be understood must refuse, not vanish.
pub(super) fn policy(kind: Kind, key: &Key, value: &Value) -> Object {
    let mut annotations = BTreeMap::new();
    if let Some(Value::Object(all)) = value.pointer("/metadata/annotations") {
        for (name, text) in all {
            let text = text
                .as_str()
                .map_or_else(|| text.to_string(), str::to_owned);
            annotations.insert(name.clone(), text);
        }
    }
    let spec = value.get("spec").unwrap_or(&Value::Null);
    if kind == Kind::AuthorizationPolicy {
        Object::AuthorizationPolicy(Box::new(AuthorizationPolicy::read(
            &key.name,
            &key.namespace,
            &annotations,
            spec,
        )))
    } else {
        Object::PeerAuthentication(Box::new(PeerAuthentication::read(
            &key.name,
            &key.namespace,
            &annotations,
            spec,
        )))
    }
}
