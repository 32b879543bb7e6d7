//! Cuts a stream of bytes into lines. Pure.

/// The longest line: an object in etcd has 1.5 MB at most, and JSON makes it longer.
const LONGEST: usize = 32 << 20;

/// Bytes that have come, and where the next line begins.
#[derive(Debug, Default)]
pub(super) struct Lines {
    bytes: Vec<u8>,
    start: usize,
    /// Up to here there is no line feed.
    searched: usize,
}

impl Lines {
    /// More has come.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.bytes.drain(..self.start);
        self.searched -= self.start;
        self.start = 0;
        self.bytes.extend_from_slice(bytes);
    }

    /// The next whole line that is not empty.
    pub(super) fn next(&mut self) -> Result<Option<&str>, String> {
        loop {
            let rest = &self.bytes[self.searched..];
            let Some(length) = rest.iter().position(|b| *b == b'\n') else {
                self.searched = self.bytes.len();
                if self.bytes.len() - self.start > LONGEST {
                    return Err(format!("a line of more than {LONGEST} bytes"));
                }
                return Ok(None);
            };
            let (start, end) = (self.start, self.searched + length);
            self.start = end + 1;
            self.searched = end + 1;
            if !self.bytes[start..end].trim_ascii().is_empty() {
                let line = std::str::from_utf8(&self.bytes[start..end]);
                return line.map(Some).map_err(|error| error.to_string());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(parts: &[&str], expect: &[&str]) {
        let mut lines = Lines::default();
        let mut found = Vec::new();
        for part in parts {
            lines.push(part.as_bytes());
            while let Some(line) = lines.next().unwrap() {
                found.push(line.to_owned());
            }
        }
        assert_eq!(found, expect, "{parts:?}");
    }

    #[test]
    fn lines_are_whole_however_they_come() {
        check(&["a\nb\n"], &["a", "b"]);
        check(&["a", "b", "c\n", "d"], &["abc"]);
        check(&["a\nb", "c\n\n", "\nd\ne"], &["a", "bc", "d"]);
        check(&["", "\n"], &[]);
    }

    #[test]
    fn what_is_not_text_is_an_error() {
        let mut lines = Lines::default();
        lines.push(b"\xff\xfe\n");
        assert!(lines.next().is_err());
    }
}
