//! What a check says.

use serde::Serialize;

/// The outcome of one check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What it belongs to; one after the other in the answer.
    pub group: &'static str,
    /// What should hold, as a phrase.
    pub name: &'static str,
    /// Whether it does.
    pub state: State,
    /// What was found, or why it could not be looked at.
    pub found: String,
    /// The objects that it is about, each with what is to be said of it alone.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub items: Vec<String>,
    /// The mend.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub hint: &'static str,
    /// Where more is said.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub link: &'static str,
}

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It holds.
    Pass,
    /// Something does not work as its author may think, and nothing is unsafe by it.
    Warn,
    /// Something does not work, or is not protected.
    Fail,
    /// It could not be looked at.
    Skipped,
}

/// What a check is about, with its mend: what its findings have in common.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Check {
    pub(crate) group: &'static str,
    pub(crate) name: &'static str,
    pub(crate) hint: &'static str,
    pub(crate) link: &'static str,
}

impl Check {
    /// It holds.
    pub(crate) fn pass(&self, found: impl Into<String>) -> Finding {
        Finding {
            hint: "",
            link: "",
            ..self.finding(State::Pass, found, Vec::new())
        }
    }

    /// It could not be looked at.
    pub(crate) fn skip(&self, why: impl Into<String>) -> Finding {
        Finding {
            hint: "",
            link: "",
            ..self.finding(State::Skipped, why, Vec::new())
        }
    }

    /// It holds unless there are items, which make it this state.
    pub(crate) fn none(
        &self,
        bad: State,
        items: Vec<String>,
        good: impl Into<String>,
        found: impl FnOnce(usize) -> String,
    ) -> Finding {
        if items.is_empty() {
            self.pass(good)
        } else {
            self.finding(bad, found(items.len()), items)
        }
    }

    /// It does not hold.
    pub(crate) fn fail(&self, found: impl Into<String>) -> Finding {
        self.finding(State::Fail, found, Vec::new())
    }

    /// Somebody should know.
    pub(crate) fn warn(&self, found: impl Into<String>) -> Finding {
        self.finding(State::Warn, found, Vec::new())
    }

    pub(crate) fn finding(
        &self,
        state: State,
        found: impl Into<String>,
        items: Vec<String>,
    ) -> Finding {
        Finding {
            group: self.group,
            name: self.name,
            state,
            found: found.into(),
            items,
            hint: self.hint,
            link: self.link,
        }
    }
}

/// `1 pod`, `2 pods`.
pub(crate) fn count(number: usize, what: &str) -> String {
    let end = if number == 1 { "" } else { "s" };
    format!("{number} {what}{end}")
}
