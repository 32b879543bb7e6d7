//! What the kernel said of a pod's rules after they were written, to compare with later.
//!
//! To have the rules listed takes a run of `nft`, which a new pod would wait for. So a listing
//! is kept beside the text that it came of: where that very text was written and nobody has
//! changed anything since, which the generation of the namespace's rules tells, the listing is
//! the same.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use crate::capture::{Error, nft};
use crate::sys::netlink;
use crate::sys::netns::Netns;

/// How many listings are kept: there are few texts without connections in them.
const MOST: usize = 16;

static LISTINGS: LazyLock<Mutex<HashMap<String, Arc<str>>>> = LazyLock::new(Mutex::default);

/// What the kernel said of the rules after they were written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Noted {
    pub(crate) listing: Arc<str>,
    pub(crate) generation: u32,
}

/// A transaction that was committed, and the generation that it has made if it was the next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Written {
    text: String,
    generation: u32,
}

impl Written {
    /// Commits a transaction.
    pub(crate) fn commit(netns: &Netns, text: String) -> Result<Self, Error> {
        let generation = generation(netns)?.wrapping_add(1);
        nft::commit(netns, &text)?;
        Ok(Self { text, generation })
    }
}

impl Noted {
    /// Notes how the kernel has the rules now; `written` is what was written last, if all of it
    /// was.
    pub(crate) fn of(netns: &Netns, written: Option<Written>) -> Result<Self, Error> {
        // The number first: a change between the two is then one that `verify` looks into.
        let generation = generation(netns)?;
        let written = written.filter(|written| written.generation == generation);
        let known = written.as_ref().and_then(|written| known(&written.text));
        let listing = match known {
            Some(listing) => listing,
            None => Arc::from(nft::table(netns)?.unwrap_or_default()),
        };
        let noted = Self {
            listing,
            generation,
        };
        if let Some(written) = written
            && self::generation(netns)? == generation
        {
            keep(written.text, &noted.listing);
        }
        Ok(noted)
    }
}

fn generation(netns: &Netns) -> Result<u32, Error> {
    netlink::generation(netns).map_err(Error::kernel("ask for the rules' generation"))
}

fn known(text: &str) -> Option<Arc<str>> {
    let listings = LISTINGS.lock().unwrap_or_else(PoisonError::into_inner);
    listings.get(text).cloned()
}

fn keep(text: String, listing: &Arc<str>) {
    let mut listings = LISTINGS.lock().unwrap_or_else(PoisonError::into_inner);
    if listings.len() < MOST {
        listings.entry(text).or_insert_with(|| listing.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(chain: &str) -> String {
        format!("table inet adit {{\n chain {chain} {{ }}\n}}\n")
    }

    #[test]
    fn a_listing_is_that_of_what_was_written_and_of_nothing_else() {
        let (one, two) = (Netns::scratch().unwrap(), Netns::scratch().unwrap());
        let write = |netns: &Netns| Written::commit(netns, rules("noted_a")).unwrap();
        let written = write(&one);
        assert_eq!(known(&rules("noted_a")), None);
        let first = Noted::of(&one, Some(written)).unwrap();
        assert_eq!(known(&rules("noted_a")).as_ref(), Some(&first.listing));
        assert_eq!(nft::table(&one).unwrap().as_deref(), Some(&*first.listing));
        let second = Noted::of(&two, Some(write(&two))).unwrap();
        assert!(Arc::ptr_eq(&first.listing, &second.listing));
        // Somebody has changed the rules since they were written.
        let written = write(&two);
        nft::commit(&two, "add chain inet adit other").unwrap();
        let changed = Noted::of(&two, Some(written)).unwrap();
        assert_eq!(
            nft::table(&two).unwrap().as_deref(),
            Some(&*changed.listing)
        );
        assert_ne!(changed.listing, first.listing);
        assert_eq!(known(&rules("noted_a")).as_ref(), Some(&first.listing));
        // Not all of it was written by us.
        let unknown = Noted::of(&two, None).unwrap();
        assert_eq!(unknown.listing, changed.listing);
    }
}
