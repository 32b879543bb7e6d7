//! Labels of an object, and selectors over them.

use std::sync::Arc;

/// A set of labels, sorted by key. A clone shares the text.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Labels(Option<Arc<[Label]>>);

/// A key and its value.
type Label = (Arc<str>, Arc<str>);

impl Labels {
    /// Collects pairs; of two pairs with one key the last stands.
    pub fn new(pairs: impl IntoIterator<Item = (Arc<str>, Arc<str>)>) -> Self {
        let sorted: std::collections::BTreeMap<_, _> = pairs.into_iter().collect();
        if sorted.is_empty() {
            Self(None)
        } else {
            Self(Some(sorted.into_iter().collect()))
        }
    }

    /// The value of `key`.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Arc<str>> {
        let pairs = self.pairs();
        let at = pairs.binary_search_by(|(k, _)| k.as_ref().cmp(key)).ok()?;
        Some(&pairs[at].1)
    }

    /// All pairs, sorted by key.
    #[must_use]
    pub fn pairs(&self) -> &[(Arc<str>, Arc<str>)] {
        self.0.as_deref().unwrap_or_default()
    }

    /// Whether another clone of this set is held somewhere; the empty set always is.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        self.0
            .as_ref()
            .is_none_or(|pairs| Arc::strong_count(pairs) > 1)
    }
}

/// An equality selector (`matchLabels`): every pair must be among the labels.
///
/// The empty selector selects everything; "no selector" is the caller's `Option`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector(Labels);

impl Selector {
    /// A selector that asks for exactly these pairs.
    #[must_use]
    pub fn new(pairs: Labels) -> Self {
        Self(pairs)
    }

    /// Whether `labels` carry every pair of this selector.
    #[must_use]
    pub fn matches(&self, labels: &Labels) -> bool {
        self.0.pairs().iter().all(|(k, v)| labels.get(k) == Some(v))
    }

    /// The pairs asked for.
    #[must_use]
    pub fn labels(&self) -> &Labels {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        Labels::new(pairs.iter().map(|(k, v)| (Arc::from(*k), Arc::from(*v))))
    }

    #[test]
    fn a_selector_asks_for_every_pair() {
        let pod = labels(&[("tier", "db"), ("app", "pg")]);
        assert!(Selector::new(labels(&[("app", "pg")])).matches(&pod));
        assert!(Selector::default().matches(&pod));
        assert!(!Selector::new(labels(&[("app", "pg"), ("x", "")])).matches(&pod));
        assert!(!Selector::new(labels(&[("app", "web")])).matches(&pod));
    }
}
