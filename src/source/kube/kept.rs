//! What is known of one kind, and what a list or a watch changes about it. Pure.
//!
//! Rules:
//!
//! 1. A list removes nothing before it is whole: what it does not name is gone only at its end.
//! 2. An object that is what it was is not told again: most of what changes about a pod is nothing
//!    that is read. It is known by a hash, with a key that nobody outside knows.
//! 3. An invalid object leaves its last good version standing.
//! 4. What it decides is to be told is told: [`Kept::tell`] alone takes it out.
//! 5. A list with an object whose name cannot be read removes nothing: it may be any of those
//!    that are missing.

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use crate::source::kube::shape::Item;
use crate::source::{Change, Key, Kind, Object};

/// Namespace and name.
type Name = (Arc<str>, Arc<str>);

#[derive(Clone, Copy, Debug)]
struct Seen {
    /// The last list that named it, or that was under way or over when a watch did.
    round: u32,
    /// The hash of what was told last; none where that does not stand as it is.
    print: Option<u64>,
}

/// The objects of one kind that were told.
#[derive(Debug)]
pub(super) struct Kept {
    kind: Kind,
    known: HashMap<Name, Seen>,
    round: u32,
    /// Whether the list under way holds something without a name.
    unnamed: bool,
    /// Why, and the list that last named it.
    invalid: BTreeMap<Key, (String, u32)>,
    /// What is to be told. It is kept here, so that what is known and what was told never part.
    changes: Vec<Change>,
    hasher: RandomState,
}

impl Kept {
    /// Nothing of that kind is known.
    pub(super) fn new(kind: Kind) -> Self {
        Self {
            kind,
            known: HashMap::new(),
            round: 0,
            unnamed: false,
            invalid: BTreeMap::new(),
            changes: Vec::new(),
            hasher: RandomState::new(),
        }
    }

    /// How many changes are to be told.
    pub(super) fn pending(&self) -> usize {
        self.changes.len()
    }

    /// The changes that are to be told, which now are.
    pub(super) fn tell(&mut self) -> Vec<Change> {
        std::mem::take(&mut self.changes)
    }

    /// How many objects are known.
    pub(super) fn len(&self) -> usize {
        self.known.len()
    }

    /// What is invalid, and why.
    pub(super) fn invalid(&self) -> impl ExactSizeIterator<Item = (&Key, &str)> {
        let all = self.invalid.iter();
        all.map(|(key, (why, _))| (key, why.as_str()))
    }

    /// A list begins, or begins anew.
    pub(super) fn begin(&mut self) {
        self.round = self.round.wrapping_add(1);
        self.unnamed = false;
    }

    /// An object is there.
    pub(super) fn take(&mut self, item: Item) {
        let Some(key) = item.key else {
            self.unnamed = true;
            return;
        };
        let name = (key.namespace.clone(), key.name.clone());
        let round = self.round;
        let seen = self.known.get_mut(&name);
        match item.object {
            Err(message) => {
                // It stands, as it was; and once it is right again it is told.
                if let Some(seen) = seen {
                    *seen = Seen { round, print: None };
                }
                self.invalid.insert(key, (message, round));
            }
            Ok(None) => self.gone(key),
            Ok(Some(object)) => {
                let print = print(&self.hasher, &object, item.version);
                self.invalid.remove(&key);
                let before = self.known.insert(name, Seen { round, print });
                if before.is_some_and(|before| before.print == print) {
                    return;
                }
                self.changes.push(Change::Upsert(object));
            }
        }
    }

    /// An object is gone.
    pub(super) fn gone(&mut self, key: Key) {
        self.invalid.remove(&key);
        let name = (key.namespace.clone(), key.name.clone());
        if self.known.remove(&name).is_some() {
            self.changes.push(Change::Remove(key));
        }
    }

    /// The list is whole: what it did not name is gone.
    pub(super) fn done(&mut self) {
        if self.unnamed {
            return;
        }
        let (kind, round) = (self.kind, self.round);
        let gone = &mut self.changes;
        self.known.retain(|(namespace, name), seen| {
            let stays = seen.round == round;
            if !stays {
                gone.push(Change::Remove(Key {
                    kind,
                    namespace: namespace.clone(),
                    name: name.clone(),
                }));
            }
            stays
        });
        if self.known.capacity() > 4 * self.known.len() + 1024 {
            self.known.shrink_to_fit();
        }
        self.invalid.retain(|_, (_, named)| *named == round);
    }
}

/// What tells an object from its other versions. Of a policy its version does: there are few, and all
/// that is in one is read.
fn print(hasher: &RandomState, object: &Object, version: u64) -> Option<u64> {
    Some(match object {
        Object::Namespace(namespace) => hasher.hash_one(namespace),
        Object::Node(node) => hasher.hash_one(node),
        Object::Pod(pod) => hasher.hash_one(pod),
        Object::Service(service) => hasher.hash_one(service),
        Object::EndpointSlice(slice) => hasher.hash_one(slice),
        Object::AuthorizationPolicy(_) | Object::PeerAuthentication(_) => hasher.hash_one(version),
    })
}

#[cfg(test)]
mod tests;
