//! A map that is cheap to keep old versions of.
//!
//! Values lie in leaves of up to [`LEAF`] entries, in the order of a 64-bit hash; a root lists the
//! leaves. A clone shares everything and costs one counter. A change copies the one leaf it
//! touches, and the root once after each clone: some microseconds at 100,000 entries. Persistent
//! maps from a library were weighed and left: they keep the key beside the value, where here it
//! is in the value already, so that an entry is its value and eight bytes.
//!
//! The table knows hashes, not keys: callers say by a closure which of the entries with one hash
//! they mean. A [`pair`] hash keeps entries with the same first part together, so that a range is
//! an index for free.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

/// The most entries of a leaf.
const LEAF: usize = 256;

/// A persistent map from hashes to values.
#[derive(Clone, Debug)]
pub(super) struct Table<V> {
    /// Sorted by `first`; the first leaf begins at 0.
    leaves: Arc<Vec<Leaf<V>>>,
    len: usize,
}

#[derive(Clone, Debug)]
struct Leaf<V> {
    first: u64,
    entries: Arc<Vec<(u64, V)>>,
}

impl<V> Default for Table<V> {
    fn default() -> Self {
        let leaf = Leaf {
            first: 0,
            entries: Arc::default(),
        };
        Self {
            leaves: Arc::new(vec![leaf]),
            len: 0,
        }
    }
}

/// The hash of a name in a group: entries of a group are in one [`Table::range`].
pub(super) fn pair(group: &str, name: impl Hash) -> u64 {
    group_start(group) | (hash(name) >> 32)
}

fn group_start(group: &str) -> u64 {
    hash(group) & (u64::from(u32::MAX) << 32)
}

fn hash(value: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

impl<V: Clone> Table<V> {
    /// How many entries there are.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// All entries, in no telling order.
    pub(super) fn iter(&self) -> impl Iterator<Item = &V> {
        let leaves = self.leaves.iter();
        leaves.flat_map(|leaf| leaf.entries.iter().map(|(_, value)| value))
    }

    /// The entry with this hash that `is` the one.
    pub(super) fn find(&self, hash: u64, is: impl Fn(&V) -> bool) -> Option<&V> {
        let entries = &self.leaves[self.leaf(hash)].entries;
        let from = entries.partition_point(|(h, _)| *h < hash);
        let same = entries[from..].iter().take_while(|(h, _)| *h == hash);
        same.map(|(_, value)| value).find(|value| is(value))
    }

    /// The entries of a [`pair`] group, and such of other groups as happen to share its hash.
    pub(super) fn range(&self, group: &str) -> impl Iterator<Item = &V> {
        let first = group_start(group);
        let last = first | u64::from(u32::MAX);
        let leaves = self.leaves[self.leaf(first)..].iter();
        leaves
            .take_while(move |leaf| leaf.first <= last)
            .flat_map(move |leaf| {
                let from = leaf.entries.partition_point(|(h, _)| *h < first);
                let entries = leaf.entries[from..].iter();
                entries.take_while(move |(h, _)| *h <= last)
            })
            .map(|(_, value)| value)
    }

    /// Puts an entry in the place of the one that `is` the same; gives that one.
    pub(super) fn put(&mut self, hash: u64, value: V, is: impl Fn(&V) -> bool) -> Option<V> {
        let at = self.leaf(hash);
        let leaves = Arc::make_mut(&mut self.leaves);
        let entries = Arc::make_mut(&mut leaves[at].entries);
        let from = entries.partition_point(|(h, _)| *h < hash);
        let mut same = entries[from..].iter_mut().take_while(|(h, _)| *h == hash);
        if let Some((_, known)) = same.find(|(_, known)| is(known)) {
            return Some(std::mem::replace(known, value));
        }
        if entries.len() == entries.capacity() {
            // Doubling would leave most leaves half empty.
            entries.reserve_exact(LEAF / 8);
        }
        entries.insert(from, (hash, value));
        self.len += 1;
        if entries.len() > LEAF {
            split(leaves, at);
        }
        None
    }

    /// Takes the entry out that `is` the one.
    pub(super) fn take(&mut self, hash: u64, is: impl Fn(&V) -> bool) -> Option<V> {
        self.find(hash, &is)?;
        let at = self.leaf(hash);
        let leaves = Arc::make_mut(&mut self.leaves);
        let entries = Arc::make_mut(&mut leaves[at].entries);
        let from = entries.partition_point(|(h, _)| *h < hash);
        let mut same = entries[from..].iter().take_while(|(h, _)| *h == hash);
        let offset = same.position(|(_, value)| is(value))?;
        let (_, value) = entries.remove(from + offset);
        self.len -= 1;
        if entries.is_empty() && at > 0 {
            leaves.remove(at);
        }
        Some(value)
    }

    /// The leaf in which `hash` belongs.
    fn leaf(&self, hash: u64) -> usize {
        self.leaves.partition_point(|leaf| leaf.first <= hash) - 1
    }
}

/// Parts a leaf in two, unless all its entries have one hash.
fn split<V: Clone>(leaves: &mut Vec<Leaf<V>>, at: usize) {
    let entries = Arc::make_mut(&mut leaves[at].entries);
    let middle = entries[entries.len() / 2].0;
    let mut from = entries.partition_point(|(h, _)| *h < middle);
    if from == 0 {
        from = entries.partition_point(|(h, _)| *h <= middle);
    }
    if from == entries.len() {
        return;
    }
    let upper: Vec<_> = entries.drain(from..).collect();
    entries.shrink_to_fit();
    let leaf = Leaf {
        first: upper[0].0,
        entries: Arc::new(upper),
    };
    leaves.insert(at + 1, leaf);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        #[test]
        fn it_behaves_like_a_map_and_clones_stay_as_they_were(
            steps in prop::collection::vec((any::<bool>(), 0_u64..40, 0_u32..60), 0..2000)
        ) {
            let mut table = Table::default();
            let mut model = BTreeMap::new();
            let mut old = Vec::new();
            for (i, (put, hash, name)) in steps.into_iter().enumerate() {
                // Few hashes for many names, so that names share hashes.
                let hash = hash << 58;
                let name = (hash, name);
                if put {
                    let was = table.put(hash, (name, i), |(n, _)| *n == name);
                    prop_assert_eq!(was.map(|(_, i)| i), model.insert(name, i));
                } else {
                    let was = table.take(hash, |(n, _)| *n == name);
                    prop_assert_eq!(was.map(|(_, i)| i), model.remove(&name));
                }
                if i % 300 == 0 {
                    old.push((table.clone(), model.clone()));
                }
            }
            old.push((table, model));
            for (table, model) in old {
                prop_assert_eq!(table.len(), model.len());
                let all: BTreeMap<_, _> = table.iter().copied().collect();
                prop_assert_eq!(&all, &model);
                for (name, i) in &model {
                    let found = table.find(name.0, |(n, _)| n == name);
                    prop_assert_eq!(found.map(|(_, i)| i), Some(i));
                }
            }
        }
    }

    #[test]
    fn a_range_is_a_group() {
        let mut table = Table::default();
        let groups: Vec<String> = (0..50).map(|g| format!("group-{g}")).collect();
        for n in 0..100 {
            for group in &groups {
                let value = (group.clone(), n);
                table.put(pair(group, n), value.clone(), |v| *v == value);
            }
        }
        for group in &groups {
            let mut members: Vec<_> = table.range(group).map(|(g, n)| (g.clone(), *n)).collect();
            members.sort();
            let expect: Vec<_> = (0..100).map(|n| (group.clone(), n)).collect();
            assert_eq!(members, expect);
        }
        assert_eq!(table.range("none").count(), 0);
    }
}
