//! What is known of one kind, and what a list or a watch changes about it. Pure.
//!
//! Rules:
//!
//! 1. A list removes nothing before it is whole: what it does not name is gone only at its end.
//! 2. An object whose version is known is not told again.
//! 3. An invalid object leaves its last good version standing.
//! 4. A list with an object whose name cannot be read removes nothing: it may be any of those
//!    that are missing.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::source::kube::shape::Item;
use crate::source::{Change, Key, Kind};

/// Namespace and name.
type Name = (Arc<str>, Arc<str>);

#[derive(Clone, Copy, Debug)]
struct Seen {
    /// The last list that named it, or that was under way or over when a watch did.
    round: u32,
    /// The version that was told last; 0 where that is not known.
    version: u64,
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
        }
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

    /// An object is there; what that changes.
    pub(super) fn take(&mut self, item: Item) -> Option<Change> {
        let Some(key) = item.key else {
            self.unnamed = true;
            return None;
        };
        let name = (key.namespace.clone(), key.name.clone());
        let round = self.round;
        let seen = self.known.get_mut(&name);
        match item.object {
            Err(message) => {
                // It stands, as it was; and once it is right again it is told.
                if let Some(seen) = seen {
                    *seen = Seen { round, version: 0 };
                }
                self.invalid.insert(key, (message, round));
                None
            }
            Ok(None) => {
                self.invalid.remove(&key);
                self.known.remove(&name).map(|_| Change::Remove(key))
            }
            Ok(Some(object)) => {
                let version = item.version;
                let known = seen.is_some_and(|seen| {
                    let same = seen.version == version && version != 0;
                    *seen = Seen { round, version };
                    same
                });
                if known {
                    return None;
                }
                self.known.insert(name, Seen { round, version });
                self.invalid.remove(&key);
                Some(Change::Upsert(object))
            }
        }
    }

    /// An object is gone; what that changes.
    pub(super) fn gone(&mut self, key: Key) -> Option<Change> {
        self.invalid.remove(&key);
        let name = (key.namespace.clone(), key.name.clone());
        self.known.remove(&name).map(|_| Change::Remove(key))
    }

    /// The list is whole: what it did not name is gone.
    pub(super) fn done(&mut self) -> Vec<Change> {
        if self.unnamed {
            return Vec::new();
        }
        let (kind, round) = (self.kind, self.round);
        let mut gone = Vec::new();
        self.known.retain(|(namespace, name), seen| {
            let stays = seen.round == round;
            if !stays {
                gone.push(Key {
                    kind,
                    namespace: namespace.clone(),
                    name: name.clone(),
                });
            }
            stays
        });
        if self.known.capacity() > 4 * self.known.len() + 1024 {
            self.known.shrink_to_fit();
        }
        self.invalid.retain(|_, (_, named)| *named == round);
        gone.into_iter().map(Change::Remove).collect()
    }
}

#[cfg(test)]
mod tests;
