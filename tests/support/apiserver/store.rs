//! What the fake API server holds: objects as text, one counter of versions, and a history.
//!
//! An object is kept as the JSON it is served as. Every write takes the next resource version and
//! is remembered in its resource's history until that is compacted: watches read the history, and
//! one that starts before its beginning is told that it is gone. Lists in pages read a snapshot of
//! the moment of their first page, as etcd's are.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use serde_json::{Map, Value, json};

/// A resource that is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Resource {
    /// Empty for the core group.
    pub(crate) group: String,
    /// The versions under which it is served.
    pub(crate) versions: Vec<String>,
    /// As paths have it.
    pub(crate) plural: String,
    pub(crate) kind: String,
    pub(crate) namespaced: bool,
    /// Whether its status can only be written through the subresource.
    pub(crate) status: bool,
}

impl Resource {
    /// A resource of one version.
    pub(crate) fn new(group: &str, version: &str, plural: &str, kind: &str) -> Self {
        Self {
            group: group.to_owned(),
            versions: vec![version.to_owned()],
            plural: plural.to_owned(),
            kind: kind.to_owned(),
            namespaced: true,
            status: false,
        }
    }

    fn cluster(mut self) -> Self {
        self.namespaced = false;
        self
    }

    fn with_status(mut self) -> Self {
        self.status = true;
        self
    }

    /// `v1`, `discovery.k8s.io/v1`.
    pub(crate) fn api_version(&self, version: &str) -> String {
        match &*self.group {
            "" => version.to_owned(),
            group => format!("{group}/{version}"),
        }
    }

    /// How the store calls it: `pods`, `authorizationpolicies.security.istio.io`.
    pub(crate) fn id(&self) -> String {
        match &*self.group {
            "" => self.plural.clone(),
            group => format!("{}.{group}", self.plural),
        }
    }

    /// What is built in.
    pub(crate) fn built_in() -> Vec<Self> {
        let events = Self::new("", "v1", "events", "Event");
        vec![
            Self::new("", "v1", "namespaces", "Namespace").cluster(),
            Self::new("", "v1", "nodes", "Node").cluster().with_status(),
            Self::new("", "v1", "pods", "Pod").with_status(),
            Self::new("", "v1", "services", "Service").with_status(),
            Self::new("", "v1", "secrets", "Secret"),
            Self::new("", "v1", "configmaps", "ConfigMap"),
            Self::new("", "v1", "serviceaccounts", "ServiceAccount"),
            events.clone(),
            Self {
                group: "events.k8s.io".to_owned(),
                ..events
            },
            Self::new("discovery.k8s.io", "v1", "endpointslices", "EndpointSlice"),
            Self::new("coordination.k8s.io", "v1", "leases", "Lease"),
            Self::new("apps", "v1", "daemonsets", "DaemonSet").with_status(),
            Self::new("apps", "v1", "deployments", "Deployment").with_status(),
            Self::new(
                "networking.k8s.io",
                "v1",
                "networkpolicies",
                "NetworkPolicy",
            ),
            Self::new("node.k8s.io", "v1", "runtimeclasses", "RuntimeClass").cluster(),
            Self::new(
                "admissionregistration.k8s.io",
                "v1",
                "validatingadmissionpolicies",
                "ValidatingAdmissionPolicy",
            )
            .cluster(),
            Self::new(
                "apiextensions.k8s.io",
                "v1",
                "customresourcedefinitions",
                "CustomResourceDefinition",
            )
            .cluster(),
        ]
    }
}

/// Namespace (empty for a cluster's own) and name.
pub(crate) type Name = (String, String);

/// One version of one object.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) version: u64,
    pub(crate) name: Name,
    /// The object as JSON, on one line, without `apiVersion` and `kind`: those are the view's.
    pub(crate) text: String,
    pub(crate) labels: BTreeMap<String, String>,
    /// What field selectors may ask, beside the metadata.
    pub(crate) fields: BTreeMap<&'static str, String>,
}

impl Entry {
    /// The object without `apiVersion` and `kind`.
    pub(crate) fn value(&self) -> Value {
        serde_json::from_str(&self.text).expect("it was made from a value")
    }

    /// The whole object as JSON, as this version of its resource shows it.
    pub(crate) fn full(&self, resource: &Resource, version: &str) -> String {
        let api_version = resource.api_version(version);
        let rest = &self.text[1..];
        format!(
            r#"{{"kind":"{}","apiVersion":"{api_version}",{rest}"#,
            resource.kind
        )
    }

    /// Its metadata alone, as JSON.
    pub(crate) fn metadata(&self) -> String {
        let object = json!({
            "kind": "PartialObjectMetadata",
            "apiVersion": "meta.k8s.io/v1",
            "metadata": self.value()["metadata"],
        });
        object.to_string()
    }
}

/// What was done to an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verb {
    Added,
    Modified,
    Deleted,
}

/// A step of a resource's history.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    pub(crate) version: u64,
    pub(crate) verb: Verb,
    pub(crate) entry: Arc<Entry>,
    /// What it replaced.
    pub(crate) before: Option<Arc<Entry>>,
}

/// One resource's objects.
#[derive(Clone, Debug, Default)]
pub(crate) struct Shelf {
    pub(crate) objects: BTreeMap<Name, Arc<Entry>>,
    pub(crate) history: Vec<Step>,
    /// The last step that was compacted away.
    pub(crate) dropped: u64,
}

/// The objects of a list's first page, for its later pages.
#[derive(Clone, Debug)]
pub(crate) struct Pages {
    pub(crate) version: u64,
    pub(crate) objects: Vec<Arc<Entry>>,
}

/// Why a write was refused.
#[derive(Debug)]
pub(crate) enum Refusal {
    NotFound,
    AlreadyExists,
    /// Another resource version than the one that was written against.
    Conflict,
    Invalid(String),
    /// A field of that path cannot be changed.
    Immutable(&'static str),
}

/// Everything.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    pub(crate) resources: Vec<Resource>,
    shelves: HashMap<String, Shelf>,
    pub(crate) version: u64,
    /// Watches from before this are gone.
    pub(crate) compacted: u64,
    pub(crate) pages: HashMap<u64, Pages>,
    next_page: u64,
    next_uid: u64,
}

impl Store {
    pub(crate) fn new() -> Self {
        Self {
            resources: Resource::built_in(),
            shelves: HashMap::new(),
            version: 1000,
            compacted: 0,
            pages: HashMap::new(),
            next_page: 0,
            next_uid: 0,
        }
    }

    pub(crate) fn shelf(&mut self, resource: &Resource) -> &mut Shelf {
        self.shelves.entry(resource.id()).or_default()
    }

    /// The resource of an object's `apiVersion` and `kind`.
    pub(crate) fn resource_of(&self, object: &Value) -> Option<Resource> {
        let api_version = object["apiVersion"].as_str().unwrap_or("v1");
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        let kind = object["kind"].as_str().unwrap_or_default();
        let mut all = self.resources.iter();
        let found = all.find(|r| {
            r.group == group && r.kind == kind && r.versions.iter().any(|v| v == version)
        });
        found.cloned()
    }

    /// Serves a new resource, and shows it as a CustomResourceDefinition.
    pub(crate) fn install(&mut self, resource: Resource) {
        let versions: Vec<Value> = resource
            .versions
            .iter()
            .map(|v| json!({ "name": v, "served": true, "storage": *v == resource.versions[0] }))
            .collect();
        let crd = json!({
            "apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition",
            "metadata": { "name": resource.id() },
            "spec": {
                "group": resource.group,
                "scope": if resource.namespaced { "Namespaced" } else { "Cluster" },
                "names": { "plural": resource.plural, "kind": resource.kind },
                "versions": versions,
            },
        });
        self.put(crd).expect("definitions are built in");
        self.serve(resource);
    }

    /// Serves a resource, in whatever way it was defined.
    pub(crate) fn serve(&mut self, resource: Resource) {
        self.resources.retain(|known| known.id() != resource.id());
        self.resources.push(resource);
    }

    /// Serves the resource of a definition that was created through the API.
    pub(crate) fn define(&mut self, definition: &Value) {
        let spec = &definition["spec"];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let versions = spec["versions"].as_array().into_iter().flatten();
        self.serve(Resource {
            group: text(&spec["group"]),
            versions: versions.map(|v| text(&v["name"])).collect(),
            plural: text(&spec["names"]["plural"]),
            kind: text(&spec["names"]["kind"]),
            namespaced: spec["scope"] == "Namespaced",
            status: false,
        });
    }

    /// Ends a resource: its objects first, then the definition.
    pub(crate) fn uninstall(&mut self, id: &str) {
        let Some(resource) = self.resources.iter().find(|r| r.id() == id).cloned() else {
            return;
        };
        let names: Vec<Name> = self.shelf(&resource).objects.keys().cloned().collect();
        for name in names {
            let _ = self.delete(&resource, &name);
        }
        let mut all = self.resources.iter();
        if let Some(definitions) = all
            .find(|r| r.plural == "customresourcedefinitions")
            .cloned()
        {
            let _ = self.delete(&definitions, &(String::new(), id.to_owned()));
        }
        self.resources.retain(|r| r.id() != id);
    }

    /// Creates or replaces an object as it stands, status and all.
    pub(crate) fn put(&mut self, object: Value) -> Result<Arc<Entry>, Refusal> {
        let resource = self.resource_of(&object).ok_or(Refusal::NotFound)?;
        self.write(&resource, object)
    }

    /// Creates an object through the API: it must be new, and its status is the server's.
    pub(crate) fn create(
        &mut self,
        resource: &Resource,
        mut object: Value,
    ) -> Result<Arc<Entry>, Refusal> {
        let name = name_of(resource, &mut object, &mut self.next_uid)?;
        if self.shelf(resource).objects.contains_key(&name) {
            return Err(Refusal::AlreadyExists);
        }
        if resource.status {
            let mut status = Map::new();
            if resource.kind == "Pod" {
                status.insert("phase".to_owned(), json!("Pending"));
            }
            object["status"] = Value::Object(status);
        }
        self.write(resource, object)
    }

    /// Replaces an object through the API; `sub` is the subresource that is written.
    pub(crate) fn replace(
        &mut self,
        resource: &Resource,
        name: &Name,
        sub: Option<&str>,
        mut object: Value,
    ) -> Result<Arc<Entry>, Refusal> {
        let known = self.shelf(resource).objects.get(name).cloned();
        let known = known.ok_or(Refusal::NotFound)?;
        let against = object["metadata"]["resourceVersion"].as_str();
        if against.is_some_and(|v| !v.is_empty() && v != known.version.to_string()) {
            return Err(Refusal::Conflict);
        }
        let old = known.value();
        // Who names a UID means that object and no other of its name.
        let meant = &object["metadata"]["uid"];
        if !meant.is_null() && *meant != old["metadata"]["uid"] {
            return Err(Refusal::Conflict);
        }
        if resource.kind == "Secret" && old["immutable"] == true && old["data"] != object["data"] {
            return Err(Refusal::Invalid("the secret is immutable".to_owned()));
        }
        if resource.status {
            // The one may not write what is the other's; of the metadata, both may.
            let others = if sub == Some("status") {
                "spec"
            } else {
                "status"
            };
            match old.get(others) {
                Some(value) => object[others] = value.clone(),
                None => drop(object.as_object_mut().and_then(|o| o.remove(others))),
            }
        }
        object["metadata"]["uid"] = old["metadata"]["uid"].clone();
        object["metadata"]["creationTimestamp"] = old["metadata"]["creationTimestamp"].clone();
        let without_version = |value: &Value| {
            let mut value = value.clone();
            value["metadata"]["resourceVersion"] = Value::Null;
            for own in ["apiVersion", "kind"] {
                value.as_object_mut().map(|o| o.remove(own));
            }
            value
        };
        if without_version(&old) == without_version(&object) {
            return Ok(known); // As the real one, which writes nothing where nothing changes.
        }
        self.write(resource, object)
    }

    /// Patches an object by JSON merge patch, which strategic merge is for what is asked here.
    pub(crate) fn patch(
        &mut self,
        resource: &Resource,
        name: &Name,
        sub: Option<&str>,
        patch: &Value,
    ) -> Result<Arc<Entry>, Refusal> {
        let known = self.shelf(resource).objects.get(name).cloned();
        let mut object = known.ok_or(Refusal::NotFound)?.value();
        let meant = &patch["metadata"]["uid"];
        if !meant.is_null() && *meant != object["metadata"]["uid"] {
            return Err(Refusal::Immutable("metadata.uid"));
        }
        merge(&mut object, patch);
        self.replace(resource, name, sub, object)
    }

    fn write(&mut self, resource: &Resource, mut object: Value) -> Result<Arc<Entry>, Refusal> {
        let name = name_of(resource, &mut object, &mut self.next_uid)?;
        self.version += 1;
        let version = self.version;
        let meta = &mut object["metadata"];
        meta["resourceVersion"] = json!(version.to_string());
        if meta["uid"].is_null() {
            self.next_uid += 1;
            meta["uid"] = json!(format!("00000000-0000-4000-8000-{:012x}", self.next_uid));
        }
        if meta["creationTimestamp"].is_null() {
            meta["creationTimestamp"] = json!("2026-01-05T10:00:00Z");
        }
        let entry = Arc::new(entry(version, name.clone(), &object));
        let shelf = self.shelf(resource);
        let before = shelf.objects.insert(name, entry.clone());
        shelf.history.push(Step {
            version,
            verb: if before.is_some() {
                Verb::Modified
            } else {
                Verb::Added
            },
            entry: entry.clone(),
            before,
        });
        if resource.plural == "customresourcedefinitions" {
            self.define(&object);
        }
        Ok(entry)
    }

    /// Deletes an object.
    pub(crate) fn delete(
        &mut self,
        resource: &Resource,
        name: &Name,
    ) -> Result<Arc<Entry>, Refusal> {
        let shelf = self.shelf(resource);
        let before = shelf.objects.remove(name).ok_or(Refusal::NotFound)?;
        self.version += 1;
        let version = self.version;
        // The deleted object carries the version of its deletion.
        let mut object = before.value();
        object["metadata"]["resourceVersion"] = json!(version.to_string());
        let entry = Arc::new(entry(version, name.clone(), &object));
        self.shelf(resource).history.push(Step {
            version,
            verb: Verb::Deleted,
            entry,
            before: Some(before.clone()),
        });
        Ok(before)
    }

    /// Puts in many objects that were made elsewhere, without a history: they were always there.
    pub(crate) fn load(&mut self, objects: impl IntoIterator<Item = Value>) {
        for mut object in objects {
            let resource = self
                .resource_of(&object)
                .expect("a resource that is served");
            self.version += 1;
            let version = self.version;
            object["metadata"]["resourceVersion"] = json!(version.to_string());
            let name = name_of(&resource, &mut object, &mut self.next_uid).expect("it has a name");
            let entry = Arc::new(entry(version, name.clone(), &object));
            self.shelf(&resource).objects.insert(name, entry);
        }
    }

    /// Forgets the history and every list that is under way.
    pub(crate) fn compact(&mut self) {
        self.compacted = self.version;
        self.pages.clear();
        for shelf in self.shelves.values_mut() {
            shelf.dropped = shelf.history.last().map_or(shelf.dropped, |s| s.version);
            shelf.history.clear();
        }
    }

    /// Keeps what a list's later pages are to show.
    pub(crate) fn keep_pages(&mut self, objects: Vec<Arc<Entry>>) -> u64 {
        self.next_page += 1;
        let version = self.version;
        self.pages
            .insert(self.next_page, Pages { version, objects });
        self.next_page
    }
}

fn entry(version: u64, name: Name, object: &Value) -> Entry {
    let mut stripped = object.clone();
    for own in ["apiVersion", "kind"] {
        stripped.as_object_mut().map(|o| o.remove(own));
    }
    let labels = object["metadata"]["labels"].as_object();
    let labels = labels.into_iter().flatten();
    let labels = labels.map(|(k, v)| (k.clone(), v.as_str().unwrap_or_default().to_owned()));
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let fields = BTreeMap::from([
        ("metadata.name", name.1.clone()),
        ("metadata.namespace", name.0.clone()),
        ("spec.nodeName", text(&object["spec"]["nodeName"])),
        ("status.phase", text(&object["status"]["phase"])),
        ("type", text(&object["type"])),
    ]);
    Entry {
        version,
        name,
        text: stripped.to_string(),
        labels: labels.collect(),
        fields,
    }
}

fn name_of(resource: &Resource, object: &mut Value, next: &mut u64) -> Result<Name, Refusal> {
    let meta = &mut object["metadata"];
    if meta["name"].is_null()
        && let Some(prefix) = meta["generateName"].as_str()
    {
        *next += 1;
        meta["name"] = json!(format!("{prefix}{next:05x}"));
    }
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (mut namespace, name) = (text(&meta["namespace"]), text(&meta["name"]));
    if name.is_empty() {
        return Err(Refusal::Invalid("metadata.name is required".to_owned()));
    }
    if !resource.namespaced {
        namespace.clear();
    } else if namespace.is_empty() {
        return Err(Refusal::Invalid(
            "metadata.namespace is required".to_owned(),
        ));
    }
    Ok((namespace, name))
}

/// RFC 7396.
fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    let target = target.as_object_mut().expect("it has just been made one");
    for (key, value) in patch {
        if value.is_null() {
            target.remove(key);
        } else {
            merge(target.entry(key.clone()).or_insert(Value::Null), value);
        }
    }
}

/// A label or field selector: equality, inequality, sets and existence.
#[derive(Clone, Debug, Default)]
pub(crate) struct Selector {
    labels: Vec<Term>,
    fields: Vec<Term>,
}

#[derive(Clone, Debug)]
struct Term {
    key: String,
    values: Vec<String>,
    /// Whether the key must have one of the values, or must not.
    wanted: bool,
    /// Whether only the key is asked for.
    exists: bool,
}

impl Selector {
    /// Reads both selectors; the name of what cannot be read is the error.
    pub(crate) fn parse(labels: &str, fields: &str) -> Result<Self, String> {
        let fields = terms(fields)?;
        let known = [
            "metadata.name",
            "metadata.namespace",
            "spec.nodeName",
            "status.phase",
            "type",
        ];
        match fields.iter().find(|t| !known.contains(&&*t.key)) {
            Some(term) => Err(format!("field label not supported: {}", term.key)),
            None => Ok(Self {
                labels: terms(labels)?,
                fields,
            }),
        }
    }

    pub(crate) fn fits(&self, entry: &Entry) -> bool {
        let label = |key: &str| entry.labels.get(key).map(String::as_str);
        let field = |key: &str| entry.fields.get(key).map(String::as_str);
        self.labels.iter().all(|term| term.fits(label(&term.key)))
            && self.fields.iter().all(|term| term.fits(field(&term.key)))
    }
}

impl Term {
    fn fits(&self, value: Option<&str>) -> bool {
        if self.exists {
            return value.is_some() == self.wanted;
        }
        value.is_some_and(|value| self.values.iter().any(|v| v == value)) == self.wanted
    }
}

fn terms(text: &str) -> Result<Vec<Term>, String> {
    let mut terms = Vec::new();
    let mut rest = text.trim();
    while !rest.is_empty() {
        let end = match (rest.find(','), rest.find('(')) {
            (Some(comma), Some(open)) if open < comma => rest.find(')').ok_or("an open set")? + 1,
            (None, Some(_)) => rest.len(),
            (Some(comma), _) => comma,
            (None, None) => rest.len(),
        };
        let (term, more) = rest.split_at(end);
        terms.push(term_of(term.trim())?);
        rest = more.trim_start_matches(',').trim();
    }
    Ok(terms)
}

fn term_of(text: &str) -> Result<Term, String> {
    let term = |key: &str, values: &str, wanted| Term {
        key: key.trim().to_owned(),
        values: values.split(',').map(|v| v.trim().to_owned()).collect(),
        wanted,
        exists: false,
    };
    if let Some((head, values)) = text.split_once('(') {
        let values = values.trim_end_matches(')');
        return match head.trim().rsplit_once(' ') {
            Some((key, "in")) => Ok(term(key, values, true)),
            Some((key, "notin")) => Ok(term(key, values, false)),
            _ => Err(format!("selector {text:?}")),
        };
    }
    for (operator, wanted) in [("!=", false), ("==", true), ("=", true)] {
        if let Some((key, value)) = text.split_once(operator) {
            return Ok(term(key, value, wanted));
        }
    }
    let wanted = !text.starts_with('!');
    Ok(Term {
        exists: true,
        ..term(text.trim_start_matches('!'), "", wanted)
    })
}
