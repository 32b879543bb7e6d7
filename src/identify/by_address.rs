//! A map from addresses that is quick to ask and cheap to keep old versions of.
//!
//! Every connection asks for one or two addresses among a hundred thousand, and what that costs is
//! the lines of memory that it touches and no cache has. So there is no search here: a hash leads
//! through two short directories to a page of slots, and the slot holds the address itself, so that
//! nothing behind it is read to see whether it is the right one. One line of a page, mostly.
//!
//! There are [`PARTS`] parts, each a directory of pages by some bits of the hash, each page a small
//! table with open addressing. A page that gets full doubles; a part whose pages hold more than
//! [`LOAD`] entries on average gets twice as many. A clone costs a counter. A change after it copies
//! the list of parts, one directory and one page; at most, when a directory doubles, a part.
//! Nothing shrinks when entries leave: memory follows the most there ever was.
//!
//! [`Table`](crate::identify::table::Table) beside this is for names, and for ranges of them.

use std::net::IpAddr;
use std::sync::Arc;

/// How many directories there are, a power of two.
const PARTS: usize = 64;
/// How many entries a page holds on average before there are more pages.
const LOAD: usize = 16;
/// The slots of the smallest page.
const SLOTS: usize = 8;

/// A persistent map from addresses to shared values.
#[derive(Debug)]
pub(super) struct ByAddress<V> {
    v4: Pages<u32, V>,
    v6: Pages<u128, V>,
}

impl<V> Clone for ByAddress<V> {
    fn clone(&self) -> Self {
        Self {
            v4: self.v4.clone(),
            v6: self.v6.clone(),
        }
    }
}

impl<V> Default for ByAddress<V> {
    fn default() -> Self {
        Self {
            v4: Pages::default(),
            v6: Pages::default(),
        }
    }
}

impl<V> ByAddress<V> {
    /// What is at `ip`, which must be canonical.
    pub(super) fn at(&self, ip: IpAddr) -> Option<&Arc<V>> {
        match ip {
            IpAddr::V4(ip) => self.v4.find(ip.to_bits()),
            IpAddr::V6(ip) => self.v6.find(ip.to_bits()),
        }
    }

    /// Puts a value in the place of the one at `ip`.
    pub(super) fn put(&mut self, ip: IpAddr, value: Arc<V>) {
        match ip {
            IpAddr::V4(ip) => self.v4.put(ip.to_bits(), value),
            IpAddr::V6(ip) => self.v6.put(ip.to_bits(), value),
        }
    }

    /// Takes the value at `ip` out.
    pub(super) fn take(&mut self, ip: IpAddr) {
        match ip {
            IpAddr::V4(ip) => self.v4.take(ip.to_bits()),
            IpAddr::V6(ip) => self.v6.take(ip.to_bits()),
        }
    }
}

/// An address as a number.
trait Key: Copy + Eq {
    /// Spread over all bits. Addresses are given out by the cluster: nobody picks them to collide.
    fn hash(self) -> u64;
}

impl Key for u32 {
    fn hash(self) -> u64 {
        mix(u64::from(self))
    }
}

impl Key for u128 {
    fn hash(self) -> u64 {
        let half = |bits: Self| u64::try_from(bits & Self::from(u64::MAX)).unwrap_or_default();
        mix(mix(half(self >> 64)) ^ half(self))
    }
}

/// The finalizer of SplitMix64: every bit of the input moves every bit of the output.
fn mix(word: u64) -> u64 {
    let word = word.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// A slot that holds an entry or is empty.
type Slot<K, V> = Option<(K, Arc<V>)>;

/// Open addressing by the low bits of the hash. A power of two of slots, a quarter of them empty.
type Page<K, V> = Arc<[Slot<K, V>]>;

#[derive(Debug)]
struct Pages<K, V> {
    parts: Arc<[Part<K, V>; PARTS]>,
}

#[derive(Debug)]
struct Part<K, V> {
    entries: usize,
    /// By the bits of the hash behind those that say the part; a power of two of them.
    pages: Arc<[Page<K, V>]>,
}

impl<K, V> Clone for Pages<K, V> {
    fn clone(&self) -> Self {
        Self {
            parts: self.parts.clone(),
        }
    }
}

impl<K, V> Clone for Part<K, V> {
    fn clone(&self) -> Self {
        Self {
            entries: self.entries,
            pages: self.pages.clone(),
        }
    }
}

impl<K: Key, V> Default for Pages<K, V> {
    fn default() -> Self {
        let part = Part {
            entries: 0,
            pages: [page(SLOTS)].into(),
        };
        Self {
            parts: Arc::new(std::array::from_fn(|_| part.clone())),
        }
    }
}

impl<K: Key, V> Pages<K, V> {
    fn find(&self, key: K) -> Option<&Arc<V>> {
        let hash = key.hash();
        let page = self.parts[part(hash)].page(hash);
        let (_, value) = page[slot(page, key, hash)].as_ref()?;
        Some(value)
    }

    fn put(&mut self, key: K, value: Arc<V>) {
        let hash = key.hash();
        Arc::make_mut(&mut self.parts)[part(hash)].put(key, hash, value);
    }

    fn take(&mut self, key: K) {
        if self.find(key).is_some() {
            let hash = key.hash();
            Arc::make_mut(&mut self.parts)[part(hash)].take(key, hash);
        }
    }
}

impl<K: Key, V> Part<K, V> {
    fn page(&self, hash: u64) -> &Page<K, V> {
        &self.pages[place(hash, self.pages.len())]
    }

    fn page_mut(&mut self, hash: u64) -> &mut Page<K, V> {
        let at = place(hash, self.pages.len());
        &mut Arc::make_mut(&mut self.pages)[at]
    }

    fn put(&mut self, key: K, hash: u64, value: Arc<V>) {
        let page = self.page_mut(hash);
        let at = slot(page, key, hash);
        if page[at].is_some() {
            Arc::make_mut(page)[at] = Some((key, value));
            return;
        }
        insert(page, (key, value));
        self.entries += 1;
        if self.entries > LOAD * self.pages.len() {
            self.widen();
        }
    }

    /// Shares the entries out over twice as many pages.
    fn widen(&mut self) {
        let mut pages: Vec<Page<K, V>> = Vec::new();
        pages.resize_with(2 * self.pages.len(), || page(SLOTS));
        for (key, value) in self.pages.iter().flat_map(|page| page.iter().flatten()) {
            let at = place(key.hash(), pages.len());
            insert(&mut pages[at], (*key, value.clone()));
        }
        self.pages = pages.into();
    }

    fn take(&mut self, key: K, hash: u64) {
        self.entries -= 1;
        let page = Arc::make_mut(self.page_mut(hash));
        let last = page.len() - 1;
        let mut hole = slot(page, key, hash);
        page[hole] = None;
        // What follows up to the next empty slot may stand where it does because the hole was full.
        let mut next = (hole + 1) & last;
        while let Some((other, _)) = &page[next] {
            let from_home = next.wrapping_sub(home(other.hash(), page.len())) & last;
            if from_home >= next.wrapping_sub(hole) & last {
                page.swap(hole, next);
                hole = next;
            }
            next = (next + 1) & last;
        }
    }
}

/// Puts a new entry into a page, which doubles before it would be more than three quarters full,
/// so that every search ends soon.
fn insert<K: Key, V>(into: &mut Page<K, V>, entry: (K, Arc<V>)) {
    if 4 * (into.iter().flatten().count() + 1) > 3 * into.len() {
        let mut wider = page(2 * into.len());
        for entry in into.iter().flatten() {
            fill(&mut wider, entry.clone());
        }
        *into = wider;
    }
    fill(into, entry);
}

fn fill<K: Key, V>(page: &mut Page<K, V>, entry: (K, Arc<V>)) {
    let at = slot(page, entry.0, entry.0.hash());
    Arc::make_mut(page)[at] = Some(entry);
}

fn page<K, V>(slots: usize) -> Page<K, V> {
    std::iter::repeat_with(|| None).take(slots).collect()
}

/// The slot of `key`, or the empty one where it would be.
fn slot<K: Key, V>(page: &[Slot<K, V>], key: K, hash: u64) -> usize {
    let mut at = home(hash, page.len());
    while page[at].as_ref().is_some_and(|(known, _)| *known != key) {
        at = (at + 1) & (page.len() - 1);
    }
    at
}

fn part(hash: u64) -> usize {
    index(hash >> (u64::BITS - PARTS.ilog2()))
}

/// Where in a directory of that length a hash belongs.
fn place(hash: u64, length: usize) -> usize {
    let behind = hash << PARTS.ilog2();
    index(behind.checked_shr(u64::BITS - length.ilog2()).unwrap_or(0))
}

/// The slot of a page from which a hash is searched.
fn home(hash: u64, slots: usize) -> usize {
    index(hash) & (slots - 1)
}

/// Bits of a hash as an index. Where an index is shorter than a hash, the low bits are as good.
#[expect(
    clippy::cast_possible_truncation,
    reason = "bits of a hash, not a number"
)]
fn index(bits: u64) -> usize {
    bits as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;
    use std::net::{Ipv4Addr, Ipv6Addr};

    /// Numbers whose hashes are alike in the bits of part, directory and slot, and others.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
    struct Clumsy(u32);

    impl Key for Clumsy {
        fn hash(self) -> u64 {
            let number = u64::from(self.0);
            (number & 3) << 62 | (number >> 2 & 7) << 54 | number >> 5 & 7
        }
    }

    proptest! {
        #[test]
        fn it_behaves_like_a_map_and_clones_stay_as_they_were(
            steps in prop::collection::vec((0_u8..3, 0_u32..1000), 0..3000)
        ) {
            let mut pages = Pages::default();
            let mut model = BTreeMap::new();
            let mut old = Vec::new();
            for (i, (action, key)) in steps.into_iter().enumerate() {
                let key = Clumsy(key);
                if action == 0 {
                    pages.take(key);
                    model.remove(&key);
                } else {
                    pages.put(key, Arc::new(i));
                    model.insert(key, i);
                }
                if i % 300 == 0 {
                    old.push((pages.clone(), model.clone()));
                }
            }
            old.push((pages, model));
            for (pages, model) in old {
                for key in (0..1000).map(Clumsy) {
                    prop_assert_eq!(pages.find(key).map(|i| **i), model.get(&key).copied());
                }
                let entries: usize = pages.parts.iter().map(|part| part.entries).sum();
                prop_assert_eq!(entries, model.len());
            }
        }
    }

    #[test]
    fn both_families_are_found_and_pages_stay_short() {
        let v4 = |i: u32| IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0000 + i));
        let v6 = |i: u32| IpAddr::V6(Ipv6Addr::from_bits(0xfd00 << 112 | u128::from(i)));
        let mut map = ByAddress::default();
        for i in 0..50_000 {
            map.put(v4(i), Arc::new(i));
            map.put(v6(i), Arc::new(!i));
        }
        for i in 0..50_000 {
            assert_eq!(map.at(v4(i)).map(|i| **i), Some(i));
            assert_eq!(map.at(v6(i)).map(|i| **i), Some(!i));
        }
        assert_eq!(map.at(v4(50_000)), None);
        let pages = map.v4.parts.iter().flat_map(|part| part.pages.iter());
        assert!(pages.clone().map(|page| page.len()).max() <= Some(64));
        let slots: usize = pages.map(|page| page.len()).sum();
        assert!(slots < 3 * 50_000, "{slots} slots");
    }
}
