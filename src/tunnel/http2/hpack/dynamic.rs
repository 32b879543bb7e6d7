//! The dynamic table of a decoder (RFC 7541 §2.3.2, §4).

use std::collections::VecDeque;

/// What each entry counts beyond its text (RFC 7541 §4.1).
const OVERHEAD: usize = 32;

/// Fields that the peer's encoder has added, the newest first.
#[derive(Debug)]
pub(crate) struct Dynamic {
    fields: VecDeque<Field>,
    size: usize,
    most: usize,
}

#[derive(Debug)]
struct Field {
    /// Name and value, one behind the other.
    text: Box<[u8]>,
    name: usize,
}

impl Dynamic {
    pub(crate) fn new(most: usize) -> Self {
        Self {
            fields: VecDeque::new(),
            size: 0,
            most,
        }
    }

    /// The entry at `at`, counted from the newest.
    pub(crate) fn field(&self, at: usize) -> Option<(&[u8], &[u8])> {
        let field = self.fields.get(at)?;
        Some(field.text.split_at(field.name))
    }

    /// Adds an entry of a name and a value that lie one behind the other. One that does not fit at
    /// all empties the table, which is no error.
    pub(crate) fn add(&mut self, text: &[u8], name: usize) {
        let size = text.len() + OVERHEAD;
        self.shrink(self.most.saturating_sub(size));
        if size <= self.most {
            self.size += size;
            let text = text.into();
            self.fields.push_front(Field { text, name });
        }
    }

    /// Bounds the table anew.
    pub(crate) fn resize(&mut self, most: usize) {
        self.most = most;
        self.shrink(most);
    }

    fn shrink(&mut self, to: usize) {
        while self.size > to
            && let Some(field) = self.fields.pop_back()
        {
            self.size -= field.text.len() + OVERHEAD;
        }
    }
}
