//! Cuts a YAML stream into one chunk of text per object, without reading more of it than it must.
//!
//! Documents are parted by `---`. A document that has `items:` at its margin is a list, as
//! kubectl prints it, and is cut further: an item is everything from one dash at the items'
//! indentation to the next. What is left of such a document is its head. Only one chunk is held
//! in memory at a time, so that a file's size does not matter.
//!
//! A line is judged by its indentation alone. That is enough, since YAML wants the text of every
//! block and every quoted string in a list deeper than the dash; where a file breaks this, a
//! chunk will not parse, and the file is reported as malformed. An anchor in one item is not known
//! in another.

use std::hash::{DefaultHasher, Hasher};
use std::io::{self, BufRead};

use crate::source::chunk;
use crate::source::chunk::{Chunk, Format, Malformed};

/// The text of one object, and where it was.
#[derive(Clone, Copy, Debug)]
pub(super) struct Segment<'a> {
    pub(super) chunk: Chunk<'a>,
    /// The chunk's first line in the file, from 1.
    pub(super) line: u32,
    /// Of its text: chunks with one hash are taken to be equal.
    pub(super) hash: u64,
}

/// Why a file could not be cut, or a chunk not be read.
#[derive(Debug)]
pub(super) enum Failure {
    /// Reading failed.
    Io(io::Error),
    /// The text is not of its format, at this line of the file.
    Malformed { line: u32, message: String },
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Takes the chunks as they are cut.
pub(super) type Sink<'s> = dyn FnMut(Segment<'_>) -> Result<(), Malformed> + 's;

/// Hands one chunk of bytes to the sink, as text.
pub(super) fn deliver(
    bytes: &[u8],
    line: u32,
    format: Format,
    list: Option<&str>,
    sink: &mut Sink<'_>,
) -> Result<(), Failure> {
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => {
            let before = &bytes[..error.valid_up_to()];
            return Err(Failure::Malformed {
                line: line + count_lines(before),
                message: "it is not UTF-8".to_owned(),
            });
        }
    };
    let mut hasher = DefaultHasher::new();
    hasher.write(bytes);
    // The kind of the list is part of what an item says.
    hasher.write(list.unwrap_or_default().as_bytes());
    let segment = Segment {
        chunk: Chunk { text, format, list },
        line,
        hash: hasher.finish(),
    };
    sink(segment).map_err(|malformed| Failure::Malformed {
        line: line + malformed.line,
        message: malformed.message,
    })
}

pub(super) fn count_lines(bytes: &[u8]) -> u32 {
    let lines = bytes.iter().filter(|b| **b == b'\n').count();
    u32::try_from(lines).unwrap_or(u32::MAX)
}

/// Cuts a YAML stream.
pub(super) fn cut(reader: &mut dyn BufRead, sink: &mut Sink<'_>) -> Result<(), Failure> {
    let mut cutter = Cutter {
        sink,
        place: Place::Plain,
        chunk: Vec::new(),
        chunk_line: 0,
        head: Vec::new(),
        head_line: 0,
        tail_lines: None,
        list: None,
    };
    let mut line = Vec::new();
    let mut number = 0;
    while reader.read_until(b'\n', &mut line)? > 0 {
        number += 1;
        if number == 1 && line.starts_with(b"\xef\xbb\xbf") {
            line.drain(..3);
        }
        cutter.line(&mut line, number)?;
        line.clear();
    }
    cutter.end_document()
}

/// Where in a document the cutter is.
#[derive(Clone, Copy)]
enum Place {
    /// In a document that is no list, or not yet.
    Plain,
    /// Behind `items:`, before the first item.
    Items,
    /// In an item, with the dash at this indentation.
    Item(usize),
    /// Behind the items.
    Tail,
}

struct Cutter<'c, 's> {
    sink: &'c mut Sink<'s>,
    place: Place,
    chunk: Vec<u8>,
    chunk_line: u32,
    /// What a list says besides its items.
    head: Vec<u8>,
    head_line: u32,
    /// How many lines of the head stand before the items, and the file's line behind them.
    tail_lines: Option<(u32, u32)>,
    list: Option<String>,
}

impl Cutter<'_, '_> {
    fn line(&mut self, line: &mut [u8], number: u32) -> Result<(), Failure> {
        let (indent, body) = split(line);
        if indent == 0 && (body.starts_with(b"---") || body.starts_with(b"...")) {
            let rest = &body[3..];
            if rest.is_empty() || rest[0] == b' ' || rest[0] == b'\t' {
                let opens = body[0] == b'-';
                self.end_document()?;
                let rest = rest.trim_ascii();
                if opens && !rest.is_empty() && rest[0] != b'#' {
                    line[..3].fill(b' ');
                    self.grow(line, number);
                }
                return Ok(());
            }
        }
        let blank = body.is_empty() || body[0] == b'#';
        match self.place {
            Place::Plain if self.chunk.is_empty() && (blank || body[0] == b'%') => {}
            Place::Plain if indent == 0 && is_items(body) => self.begin_list(number),
            Place::Plain => self.grow(line, number),
            Place::Items if blank => {}
            Place::Items | Place::Item(_) if !blank && self.begins_item(indent, body) => {
                self.end_chunk()?;
                self.place = Place::Item(indent);
                line[indent] = b' ';
                self.grow(line, number);
            }
            Place::Item(dash) if blank || indent > dash => self.grow(line, number),
            Place::Items | Place::Item(_) if indent > 0 => {
                return Err(Failure::Malformed {
                    line: number,
                    message: "items is not a sequence here".to_owned(),
                });
            }
            Place::Items | Place::Item(_) => {
                self.end_chunk()?;
                self.place = Place::Tail;
                self.tail_lines = Some((count_lines(&self.head), number));
                self.tail(line, number)?;
            }
            Place::Tail => self.tail(line, number)?,
        }
        Ok(())
    }

    fn begins_item(&self, indent: usize, body: &[u8]) -> bool {
        let here = match self.place {
            Place::Item(dash) => dash == indent,
            _ => true,
        };
        here && body[0] == b'-' && matches!(body.get(1), None | Some(b' '))
    }

    fn begin_list(&mut self, number: u32) {
        self.head = std::mem::take(&mut self.chunk);
        self.head_line = if self.head.is_empty() {
            number
        } else {
            self.chunk_line
        };
        self.place = Place::Items;
        let head = std::str::from_utf8(&self.head).unwrap_or_default();
        // What is wrong with the head is said at its end.
        self.list = chunk::head(head).ok().flatten();
    }

    fn tail(&mut self, line: &[u8], number: u32) -> Result<(), Failure> {
        let (indent, body) = split(line);
        if indent == 0 && is_items(body) {
            return Err(Failure::Malformed {
                line: number,
                message: "items stands here for a second time".to_owned(),
            });
        }
        self.head.extend_from_slice(line);
        Ok(())
    }

    fn grow(&mut self, line: &[u8], number: u32) {
        if self.chunk.is_empty() {
            self.chunk_line = number;
        }
        self.chunk.extend_from_slice(line);
    }

    fn end_chunk(&mut self) -> Result<(), Failure> {
        if !self.chunk.is_empty() {
            let list = self.list.as_deref();
            deliver(&self.chunk, self.chunk_line, Format::Yaml, list, self.sink)?;
            self.chunk.clear();
        }
        Ok(())
    }

    fn end_document(&mut self) -> Result<(), Failure> {
        self.end_chunk()?;
        if !matches!(self.place, Place::Plain) {
            self.check_head()?;
        }
        self.place = Place::Plain;
        self.head.clear();
        self.tail_lines = None;
        self.list = None;
        Ok(())
    }

    /// The head must be YAML, too, and say that the document is a list.
    fn check_head(&self) -> Result<(), Failure> {
        let malformed = |line: u32, message: String| match self.tail_lines {
            Some((before, tail)) if line >= before => Failure::Malformed {
                line: tail + line - before,
                message,
            },
            _ => Failure::Malformed {
                line: self.head_line + line,
                message,
            },
        };
        let head = std::str::from_utf8(&self.head)
            .map_err(|_| malformed(0, "it is not UTF-8".to_owned()))?;
        match chunk::head(head) {
            Err(error) => Err(malformed(error.line, error.message)),
            Ok(Some(kind)) if !kind.ends_with("List") => Err(malformed(
                0,
                format!("a document of kind {kind} has items at its margin and is no list"),
            )),
            Ok(_) => Ok(()),
        }
    }
}

/// A line's indentation and its text.
fn split(line: &[u8]) -> (usize, &[u8]) {
    let indent = line.iter().take_while(|b| **b == b' ').count();
    (indent, line[indent..].trim_ascii_end())
}

/// `items:` with nothing behind it but a comment.
fn is_items(body: &[u8]) -> bool {
    body.strip_prefix(b"items:").is_some_and(|rest| {
        let text = rest.trim_ascii_start();
        text.is_empty() || (text[0] == b'#' && text.len() < rest.len())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Cuts `text` and shows each chunk as `line:list:text`, newlines as `|`.
    fn check(text: &str, expect: &[&str]) {
        let mut cuts = Vec::new();
        let outcome = cut(&mut text.as_bytes(), &mut |segment: Segment<'_>| {
            let list = segment.chunk.list.unwrap_or("-");
            let flat = segment.chunk.text.replace('\n', "|");
            cuts.push(format!("{}:{list}:{flat}", segment.line));
            Ok(())
        });
        if let Err(Failure::Malformed { line, message }) = outcome {
            cuts.push(format!("{line}!{message}"));
        }
        assert_eq!(cuts, expect, "{text:?}");
    }

    #[test]
    fn documents_are_parted_by_markers() {
        check("", &[]);
        check("# only\n\n---\n# comments\n", &[]);
        check("a: 1\n", &["1:-:a: 1|"]);
        check("a: 1\n---\nb: 2", &["1:-:a: 1|", "3:-:b: 2"]);
        check("%YAML 1.2\n---\n\na: 1\n...\n", &["4:-:a: 1|"]);
        check(
            "--- # first\na: 1\n--- {b: 2}\n",
            &["2:-:a: 1|", "3:-:    {b: 2}|"],
        );
        check("a: |\n  ---\n  x\n", &["1:-:a: ||  ---|  x|"]);
        check("\u{feff}a: 1\r\n", &["1:-:a: 1\r|"]);
        check("a: ---\n----\n", &["1:-:a: ---|----|"]);
    }

    #[test]
    fn lists_are_parted_by_dashes() {
        check(
            "apiVersion: v1\nitems:\n- a: 1\n  b:\n  - x\n- a: 2\n\nkind: List\n",
            &["3:-:  a: 1|  b:|  - x|", "6:-:  a: 2||"],
        );
        check(
            "kind: PodList\nitems: # all\n\n  # first\n  -\n    a: 1\n  - a: 2\n---\nc: 3\n",
            &[
                "5:PodList:   |    a: 1|",
                "7:PodList:    a: 2|",
                "9:-:c: 3|",
            ],
        );
        check("items: []\nkind: List\n", &["1:-:items: []|kind: List|"]);
        check("items:\nkind: List\n", &[]);
        check("kind: List\nitems:\n", &[]);
    }

    #[test]
    fn a_wrong_list_is_told_with_its_line() {
        check(
            "items:\n- a: 1\nkind: Pot\n",
            &[
                "2:-:  a: 1|",
                "3!a document of kind Pot has items at its margin and is no list",
            ],
        );
        check(
            "items:\n- a: 1\n- b: 1\nkind: List\nitems:\n- c: 1\n",
            &[
                "2:-:  a: 1|",
                "3:-:  b: 1|",
                "5!items stands here for a second time",
            ],
        );
        check("items:\n  a: 1\n", &["2!items is not a sequence here"]);
        check(
            "items:\n- a: 1\nkind: List\nmetadata: [\n",
            &["2:-:  a: 1|", "4!unclosed bracket '['"],
        );
    }
}
