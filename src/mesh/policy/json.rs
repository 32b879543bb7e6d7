//! Strict reading of JSON objects: every field known, every type right, or a reason why not.
//!
//! `null` is an absent field, as the Kubernetes API has it. A reason begins with the path of the
//! field it is about, from `spec` down.

use std::sync::Arc;

use serde_json::{Map, Value};

use crate::mesh::policy::value::port;
use crate::mesh::{Labels, Selector};

static NOTHING: Value = Value::Null;

/// An object whose fields are all among the known ones.
pub(super) struct Fields<'v> {
    map: Option<&'v Map<String, Value>>,
    path: String,
}

impl<'v> Fields<'v> {
    /// Opens `value`, which stands at `path`.
    pub(super) fn open(value: &'v Value, path: String, known: &[&str]) -> Result<Self, String> {
        let map = match value {
            Value::Null => None,
            Value::Object(map) => Some(map),
            _ => return Err(format!("{path} is not an object")),
        };
        let mut keys = map.into_iter().flat_map(Map::keys);
        if let Some(key) = keys.find(|key| !known.contains(&key.as_str())) {
            return Err(format!("{path}.{key} is not a known field"));
        }
        Ok(Self { map, path })
    }

    /// The path of a field.
    pub(super) fn at(&self, field: &str) -> String {
        format!("{}.{field}", self.path)
    }

    /// A field's value; `null` when absent.
    pub(super) fn value(&self, field: &str) -> &'v Value {
        self.map.and_then(|map| map.get(field)).unwrap_or(&NOTHING)
    }

    /// A text, if present.
    pub(super) fn text(&self, field: &str) -> Result<Option<&'v str>, String> {
        match self.value(field) {
            Value::Null => Ok(None),
            Value::String(text) => Ok(Some(text)),
            _ => Err(format!("{} is not a string", self.at(field))),
        }
    }

    /// A list; empty when absent.
    pub(super) fn list(&self, field: &str) -> Result<&'v [Value], String> {
        match self.value(field) {
            Value::Null => Ok(&[]),
            Value::Array(items) => Ok(items),
            _ => Err(format!("{} is not a list", self.at(field))),
        }
    }

    /// A list of texts, each parsed.
    pub(super) fn parsed<T>(
        &self,
        field: &str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Result<Vec<T>, String> {
        self.each(field, |item| match item {
            Value::String(text) => parse(text),
            _ => Err("is not a string".to_owned()),
        })
    }

    /// A list of ports. They are texts by the API; a number is taken as well, since an unquoted
    /// port in a hand-written file leaves no doubt.
    pub(super) fn ports(&self, field: &str) -> Result<Vec<u16>, String> {
        self.each(field, |item| match item {
            Value::String(text) => port(text),
            Value::Number(number) => port(&number.to_string()),
            _ => Err("is not a string".to_owned()),
        })
    }

    fn each<T>(
        &self,
        field: &str,
        parse: impl Fn(&Value) -> Result<T, String>,
    ) -> Result<Vec<T>, String> {
        let items = self.list(field)?.iter().enumerate();
        items
            .map(|(at, item)| parse(item).map_err(|why| format!("{}[{at}] {why}", self.at(field))))
            .collect()
    }
}

/// Reads `spec.selector`. No selector and an empty one are the same: the whole namespace.
pub(super) fn selector(spec: &Value) -> Result<Option<Selector>, String> {
    let value = spec.get("selector").unwrap_or(&NOTHING);
    let fields = Fields::open(value, "spec.selector".to_owned(), &["matchLabels"])?;
    let path = fields.at("matchLabels");
    let labels = match fields.value("matchLabels") {
        Value::Null => return Ok(None),
        Value::Object(labels) => labels,
        _ => return Err(format!("{path} is not an object")),
    };
    let mut pairs: Vec<(Arc<str>, Arc<str>)> = Vec::with_capacity(labels.len());
    for (key, value) in labels {
        let Value::String(value) = value else {
            return Err(format!("{path}.{key} is not a string"));
        };
        if key.is_empty() || key.contains('*') || value.contains('*') {
            return Err(format!("{path}.{key} is not an exact label"));
        }
        pairs.push((key.as_str().into(), value.as_str().into()));
    }
    Ok((!pairs.is_empty()).then(|| Selector::new(Labels::new(pairs))))
}
