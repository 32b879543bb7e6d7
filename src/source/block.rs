//! A quick reader for the YAML that kubectl prints.
//!
//! A general YAML parser spends most of a second on a few thousand pods, nearly all of it on text
//! that nobody asked for. This is a serde `Deserializer` over the part of YAML that
//! `kubectl get -o yaml` (and most people) write: block maps and sequences, scalars on one line,
//! `{}` and `[]`; long strings and block scalars may be skipped, not read. Everything else
//! (anchors, tags, flow collections, tabs, text beyond ASCII, duplicate names …) is [`Beyond`] it,
//! and the caller asks the general parser, which also words the errors. So there is one rule, and
//! a property test in `block/tests.rs` that holds it: **what this reader accepts, the general
//! parser accepts and reads alike.**

mod node;

use std::borrow::Cow;
use std::fmt;

use crate::source::block::node::Node;

/// The text is beyond this reader: not wrong, only not for it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Beyond;

impl fmt::Display for Beyond {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("beyond the quick reader")
    }
}

impl std::error::Error for Beyond {}

impl serde::de::Error for Beyond {
    fn custom<T: fmt::Display>(_: T) -> Self {
        Self
    }
}

type Result<T> = std::result::Result<T, Beyond>;

/// Collections inside one another; deeper ones are beyond.
const MAX_DEPTH: u8 = 60;

/// The longest key; YAML itself ends implicit keys at 1024 characters.
const MAX_KEY: usize = 512;

/// Reads one document.
pub(super) fn from_str<'a, T: serde::Deserialize<'a>>(text: &'a str) -> Result<T> {
    if !text.bytes().all(|b| matches!(b, b' '..=b'~' | b'\n')) {
        return Err(Beyond);
    }
    let mut lines = Lines {
        text,
        next: 0,
        line: None,
        gap: false,
        depth: 0,
    };
    lines.advance();
    let indent = lines.line.ok_or(Beyond)?.indent;
    let value = T::deserialize(Node {
        lines: &mut lines,
        at: At::Below(indent),
    })?;
    match lines.line {
        None => Ok(value),
        Some(_) => Err(Beyond),
    }
}

/// A line that has content, without its indentation and trailing blanks.
#[derive(Clone, Copy)]
struct Line<'a> {
    indent: usize,
    body: &'a str,
}

/// The cursor: always at a line that nobody has consumed.
struct Lines<'a> {
    text: &'a str,
    /// Where the physical line behind the current one begins.
    next: usize,
    line: Option<Line<'a>>,
    /// Whether blank lines or comments stood before the current line.
    gap: bool,
    depth: u8,
}

impl<'a> Lines<'a> {
    /// The next physical line, raw.
    fn physical(&mut self) -> Option<&'a str> {
        let rest = self.text.get(self.next..).filter(|rest| !rest.is_empty())?;
        let end = rest.find('\n').unwrap_or(rest.len());
        self.next += (end + 1).min(rest.len());
        Some(&rest[..end])
    }

    /// Goes to the next line with content.
    fn advance(&mut self) {
        self.gap = false;
        while let Some(raw) = self.physical() {
            let body = raw.trim_start_matches(' ');
            if body.is_empty() || body.starts_with('#') {
                self.gap = true;
                continue;
            }
            self.line = Some(Line {
                indent: raw.len() - body.len(),
                body: body.trim_end_matches(' '),
            });
            return;
        }
        self.line = None;
    }

    /// What stands behind `key:` or `- `, where the parent collection has this indentation.
    fn behind(&mut self, rest: &'a str, parent: usize, in_map: bool) -> At<'a> {
        if !rest.is_empty() && !rest.starts_with('#') {
            return At::Here(rest, parent);
        }
        self.advance();
        match self.line {
            Some(line) if line.indent > parent => At::Below(line.indent),
            Some(line) if in_map && line.indent == parent && is_dash(line.body) => {
                At::Below(line.indent)
            }
            _ => At::Nothing,
        }
    }

    /// The next entry of a sequence at `indent`: what stands behind its dash.
    fn item(&mut self, indent: usize) -> Result<Option<At<'a>>> {
        let Some(line) = self.line.filter(|line| line.indent >= indent) else {
            return Ok(None);
        };
        if line.indent > indent {
            return Err(Beyond);
        }
        if !is_dash(line.body) {
            return Ok(None);
        }
        let rest = line.body[1..].trim_start_matches(' ');
        if !rest.is_empty() && (is_dash(rest) || split_key(rest)?.is_some()) {
            // A collection that begins on the dash's own line stands where its text stands.
            let inner = indent + line.body.len() - rest.len();
            self.line = Some(Line {
                indent: inner,
                body: rest,
            });
            return Ok(Some(At::Below(inner)));
        }
        Ok(Some(self.behind(rest, indent, false)))
    }

    /// The next entry of a map at `indent`: its key, and what stands behind the colon.
    fn entry(&mut self, indent: usize) -> Result<Option<(&'a str, &'a str)>> {
        let Some(line) = self.line.filter(|line| line.indent >= indent) else {
            return Ok(None);
        };
        if line.indent > indent || is_dash(line.body) {
            return Err(Beyond);
        }
        split_key(line.body)?.ok_or(Beyond).map(Some)
    }

    /// Consumes a scalar that is wanted.
    fn scalar(&mut self, text: &'a str, parent: usize) -> Result<Scalar<'a>> {
        let scalar = match text.as_bytes()[0] {
            b'"' => {
                let end = closing_quote(text)?.ok_or(Beyond)?;
                ends_clean(&text[end + 1..])?;
                Scalar::Quoted(unescape(&text[1..end])?)
            }
            b'\'' => {
                let end = closing_quote(text)?.ok_or(Beyond)?;
                ends_clean(&text[end + 1..])?;
                let inner = &text[1..end];
                Scalar::Quoted(if inner.contains('\'') {
                    Cow::Owned(inner.replace("''", "'"))
                } else {
                    Cow::Borrowed(inner)
                })
            }
            b'{' => {
                ends_clean(text.strip_prefix("{}").ok_or(Beyond)?)?;
                Scalar::EmptyMap
            }
            b'[' => {
                ends_clean(text.strip_prefix("[]").ok_or(Beyond)?)?;
                Scalar::EmptySeq
            }
            _ => Scalar::Plain(plain(text)?),
        };
        self.advance();
        match self.line {
            Some(line) if line.indent > parent => Err(Beyond),
            _ => Ok(scalar),
        }
    }

    /// Consumes a scalar that nobody wants, which may go over several lines.
    fn skip_scalar(&mut self, text: &'a str, parent: usize) -> Result<()> {
        match text.as_bytes()[0] {
            b'|' | b'>' => self.skip_block(text, parent),
            b'"' | b'\'' if closing_quote(text)?.is_none() => self.skip_quoted(text, parent),
            b'"' | b'\'' | b'{' | b'[' => self.scalar(text, parent).map(drop),
            _ => {
                let whole = plain(text)?.len() == text.len();
                self.advance();
                while let Some(line) = self.line.filter(|line| line.indent > parent) {
                    // The text goes on. A comment would have ended it.
                    if !whole || self.gap || plain(line.body)?.len() != line.body.len() {
                        return Err(Beyond);
                    }
                    self.advance();
                }
                Ok(())
            }
        }
    }

    /// A block scalar: every line deeper than its parent, as deep as its first at least.
    fn skip_block(&mut self, header: &str, parent: usize) -> Result<()> {
        if !matches!(header, "|" | "|-" | "|+" | ">" | ">-" | ">+") {
            return Err(Beyond);
        }
        let mut depth = None;
        loop {
            let here = self.next;
            let Some(raw) = self.physical() else {
                break;
            };
            let body = raw.trim_start_matches(' ');
            let indent = raw.len() - body.len();
            match depth {
                None if raw.is_empty() => {}
                None if body.is_empty() => return Err(Beyond),
                None if indent > parent => depth = Some(indent),
                Some(depth) if body.is_empty() || indent >= depth => {}
                _ => {
                    self.next = here;
                    break;
                }
            }
        }
        self.advance();
        match self.line {
            Some(line) if line.indent > parent => Err(Beyond),
            _ => Ok(()),
        }
    }

    /// A quoted scalar that does not end on its first line.
    fn skip_quoted(&mut self, first: &str, parent: usize) -> Result<()> {
        let quote = &first[..1];
        loop {
            let raw = self.physical().ok_or(Beyond)?;
            let body = raw.trim_start_matches(' ');
            if body.is_empty() {
                continue;
            }
            if raw.len() - body.len() <= parent {
                return Err(Beyond);
            }
            // The same search as on a first line, with the opening quote put back.
            let line = format!("{quote}{body}");
            if let Some(end) = closing_quote(&line)? {
                ends_clean(&line[end + 1..])?;
                break;
            }
        }
        self.advance();
        match self.line {
            Some(line) if line.indent > parent => Err(Beyond),
            _ => Ok(()),
        }
    }

    /// Consumes any node, reading it as closely as if it were wanted.
    fn skip(&mut self, at: At<'a>) -> Result<()> {
        match at {
            At::Nothing => Ok(()),
            At::Here(text, parent) => self.skip_scalar(text, parent),
            At::Below(indent) => {
                self.descend()?;
                if self.at_dash() {
                    while let Some(at) = self.item(indent)? {
                        self.skip(at)?;
                    }
                } else {
                    while let Some((_, rest)) = self.entry(indent)? {
                        let at = self.behind(rest, indent, true);
                        self.skip(at)?;
                    }
                }
                self.depth -= 1;
                Ok(())
            }
        }
    }

    fn descend(&mut self) -> Result<()> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(Beyond);
        }
        Ok(())
    }

    fn at_dash(&self) -> bool {
        self.line.is_some_and(|line| is_dash(line.body))
    }
}

/// Where a node stands.
#[derive(Clone, Copy)]
enum At<'a> {
    /// Nowhere: null.
    Nothing,
    /// A scalar on the rest of the current line; its parent collection has this indentation.
    Here(&'a str, usize),
    /// A collection at the current line, with this indentation.
    Below(usize),
}

enum Scalar<'a> {
    Plain(&'a str),
    Quoted(Cow<'a, str>),
    EmptyMap,
    EmptySeq,
}

fn is_dash(body: &str) -> bool {
    body == "-" || body.starts_with("- ")
}

/// Splits `key: rest`; `None` where the text is no map entry.
fn split_key(body: &str) -> Result<Option<(&str, &str)>> {
    let (key, rest) = if body.starts_with(['"', '\'']) {
        let Some(end) = closing_quote(body)? else {
            return Ok(None);
        };
        let Some(rest) = body[end + 1..].strip_prefix(':') else {
            return Ok(None);
        };
        let key = &body[1..end];
        if key.contains(['\\', '\'']) {
            return Err(Beyond);
        }
        (key, rest)
    } else {
        let Some(colon) = separator(body) else {
            return Ok(None);
        };
        let key = &body[..colon];
        if plain(key)?.len() != key.len() || key.ends_with(' ') || key == "<<" {
            return Err(Beyond);
        }
        (key, &body[colon + 1..])
    };
    if key.len() > MAX_KEY || !(rest.is_empty() || rest.starts_with(' ')) {
        return Err(Beyond);
    }
    Ok(Some((key, rest.trim_start_matches(' '))))
}

/// The first colon that has nothing or a blank behind it.
fn separator(body: &str) -> Option<usize> {
    let bytes = body.as_bytes();
    let mut colons = bytes.iter().enumerate().filter(|(_, b)| **b == b':');
    colons
        .find(|(i, _)| matches!(bytes.get(i + 1), None | Some(b' ')))
        .map(|(i, _)| i)
}

/// A plain scalar without the comment behind it.
fn plain(text: &str) -> Result<&str> {
    let bytes = text.as_bytes();
    let safe = match bytes.first() {
        Some(b'-') => bytes.get(1).is_some_and(|b| *b != b' '),
        Some(b) => b.is_ascii_alphanumeric() || b"_./$(<+~".contains(b),
        None => false,
    };
    if !safe || text.starts_with("---") || text.starts_with("...") {
        return Err(Beyond);
    }
    // One pass over the bytes: this is where most of the reader's time goes.
    let mut before = b'x';
    for (at, byte) in bytes.iter().copied().enumerate() {
        match (before, byte) {
            (b' ', b'#') => return Ok(text[..at].trim_end_matches(' ')),
            (b':', b' ') => return Err(Beyond),
            _ => before = byte,
        }
    }
    if before == b':' {
        return Err(Beyond);
    }
    Ok(text)
}

/// What follows a finished scalar must be nothing or a comment.
fn ends_clean(rest: &str) -> Result<()> {
    let body = rest.trim_start_matches(' ');
    if body.is_empty() || (body.starts_with('#') && body.len() < rest.len()) {
        Ok(())
    } else {
        Err(Beyond)
    }
}

/// Where the quote that opens `text` is closed, if it is on this line.
fn closing_quote(text: &str) -> Result<Option<usize>> {
    let bytes = text.as_bytes();
    let double = bytes[0] == b'"';
    let mut i = 1;
    while let Some(byte) = bytes.get(i) {
        match byte {
            b'\\' if double => match bytes.get(i + 1) {
                Some(b'"' | b'\\' | b'/' | b'n' | b't' | b'r') => i += 1,
                // The line break is escaped.
                None => return Ok(None),
                Some(_) => return Err(Beyond),
            },
            b'"' if double => return Ok(Some(i)),
            b'\'' if !double => match bytes.get(i + 1) {
                Some(b'\'') => i += 1,
                _ => return Ok(Some(i)),
            },
            _ => {}
        }
        i += 1;
    }
    Ok(None)
}

/// The inside of a double-quoted scalar, whose escapes `closing_quote` has checked.
fn unescape(inner: &str) -> Result<Cow<'_, str>> {
    if !inner.contains('\\') {
        return Ok(Cow::Borrowed(inner));
    }
    let mut out = String::with_capacity(inner.len());
    let mut chars = inner.chars();
    while let Some(c) = chars.next() {
        out.push(match c {
            '\\' => match chars.next().ok_or(Beyond)? {
                'n' => '\n',
                't' => '\t',
                'r' => '\r',
                other => other,
            },
            other => other,
        });
    }
    Ok(Cow::Owned(out))
}

#[cfg(test)]
mod tests;
