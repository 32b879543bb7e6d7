//! Shared text: the same words recur in every pod of a cluster, and are kept once.

use std::collections::HashSet;
use std::sync::Arc;

use crate::mesh::Labels;

/// Hands out one `Arc` per distinct text and per distinct label set.
///
/// It holds what it has handed out; [`Interner::sweep`] lets go of what nobody else holds.
#[derive(Debug, Default)]
pub struct Interner {
    texts: HashSet<Arc<str>>,
    labels: HashSet<Labels>,
    settled: usize,
}

impl Interner {
    /// The shared form of `text`.
    pub fn text(&mut self, text: &str) -> Arc<str> {
        if let Some(known) = self.texts.get(text) {
            return known.clone();
        }
        let new: Arc<str> = text.into();
        self.texts.insert(new.clone());
        new
    }

    /// The shared form of a label set; of two pairs with one key the last stands.
    pub fn labels<'a>(&mut self, pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> Labels {
        let labels = Labels::new(
            pairs
                .into_iter()
                .map(|(key, value)| (self.text(key), self.text(value))),
        );
        if let Some(known) = self.labels.get(&labels) {
            return known.clone();
        }
        self.labels.insert(labels.clone());
        labels
    }

    /// Lets go of what only the interner holds, once as much has come in as was held after the
    /// last sweep, so that the cost stays in proportion to what came in.
    pub fn sweep(&mut self) {
        if self.texts.len() + self.labels.len() <= 2 * self.settled + 1024 {
            return;
        }
        self.labels.retain(Labels::is_shared);
        self.texts.retain(|text| Arc::strong_count(text) > 1);
        self.settled = self.texts.len() + self.labels.len();
    }
}
