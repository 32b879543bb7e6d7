//! An error with its causes, as one line of a log or an answer.

use std::error::Error;
use std::fmt;

/// Prints an error and, after colons, its causes. Our own errors print their own level only; some
/// libraries print their cause as well, and what stands there already is not said again.
#[derive(Clone, Copy, Debug)]
pub struct Causes<'a>(pub &'a dyn Error);

impl fmt::Display for Causes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut said = self.0.to_string();
        f.write_str(&said)?;
        let mut next = self.0.source();
        while let Some(cause) = next {
            let words = cause.to_string();
            if !said.contains(&words) {
                write!(f, ": {words}")?;
                said = words;
            }
            next = cause.source();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{words}")]
    struct Level {
        words: &'static str,
        source: Option<Box<Self>>,
    }

    #[test]
    fn causes_are_said_once() {
        let check = |levels: &[&'static str], expect: &str| {
            let error = levels.iter().rev().fold(None, |source, words| {
                Some(Box::new(Level { words, source }))
            });
            let error = error.expect("there is one level");
            assert_eq!(Causes(&*error).to_string(), expect);
        };
        check(&["cannot read"], "cannot read");
        check(&["cannot read", "gone"], "cannot read: gone");
        check(&["a", "b", "c"], "a: b: c");
        check(&["failed: refused", "refused"], "failed: refused");
        check(
            &["x", "failed: refused", "refused", "by y"],
            "x: failed: refused: by y",
        );
    }
}
