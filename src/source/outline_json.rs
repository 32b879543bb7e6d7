//! Cuts a JSON stream into one chunk of text per object, as `outline` does for YAML.
//!
//! The stream is one or more JSON objects in a row. An object that has an array `items` is a list,
//! and each object in the array is a chunk; any other is a chunk as a whole. Only braces, brackets
//! and strings are looked at: what is between them is for the JSON parser to judge.

use std::io::BufRead;

use crate::source::chunk::Format;
use crate::source::outline::{Failure, Sink, deliver};

/// Cuts a JSON stream.
pub(super) fn cut(reader: &mut dyn BufRead, sink: &mut Sink<'_>) -> Result<(), Failure> {
    let mut cutter = Cutter {
        sink,
        line: 1,
        depth: 0,
        items: None,
        string: None,
        escaped: false,
        word: Vec::new(),
        key: Vec::new(),
        list: None,
        head: Vec::new(),
        chunk: Vec::new(),
        chunk_line: 0,
    };
    loop {
        let block = reader.fill_buf()?;
        if block.is_empty() {
            return cutter.end();
        }
        for byte in block {
            cutter.byte(*byte)?;
        }
        let read = block.len();
        reader.consume(read);
    }
}

/// The longest key or kind that is looked at.
const MAX_WORD: usize = 64;

struct Cutter<'c, 's> {
    sink: &'c mut Sink<'s>,
    line: u32,
    /// Open braces and brackets.
    depth: usize,
    /// In the array of items of a list, or behind it.
    items: Option<Items>,
    /// The depth at which a string is open.
    string: Option<usize>,
    escaped: bool,
    /// The last string of an object's own level, cut to a word.
    word: Vec<u8>,
    /// The key whose value is being read, at an object's own level.
    key: Vec<u8>,
    list: Option<String>,
    /// The text of a list without its items.
    head: Vec<u8>,
    chunk: Vec<u8>,
    chunk_line: u32,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Items {
    Open,
    Closed,
}

impl Cutter<'_, '_> {
    fn byte(&mut self, byte: u8) -> Result<(), Failure> {
        if byte == b'\n' {
            self.line += 1;
        }
        if self.string.is_some() {
            self.in_string(byte);
            return Ok(());
        }
        match byte {
            b'"' => {
                self.string = Some(self.depth);
                if self.depth == 1 {
                    self.word.clear();
                }
                self.keep(byte);
            }
            b'{' | b'[' => self.open(byte)?,
            b'}' | b']' => self.close(byte)?,
            b':' if self.depth == 1 => {
                self.key = std::mem::take(&mut self.word);
                self.keep(byte);
            }
            b',' if self.depth == 1 => {
                self.end_value();
                self.keep(byte);
            }
            b',' if self.between_items() => {}
            _ if byte.is_ascii_whitespace() && (self.depth == 0 || self.between_items()) => {}
            _ if self.depth == 0 || self.between_items() => {
                return Err(self.malformed("an object was expected here"));
            }
            _ => self.keep(byte),
        }
        Ok(())
    }

    fn in_string(&mut self, byte: u8) {
        self.keep(byte);
        if self.escaped {
            self.escaped = false;
        } else if byte == b'\\' {
            self.escaped = true;
        } else if byte == b'"' {
            self.string = None;
            return;
        }
        if self.string == Some(1) && self.word.len() < MAX_WORD {
            self.word.push(byte);
        }
    }

    /// In the array of items, outside any item.
    fn between_items(&self) -> bool {
        self.depth == 2 && self.items == Some(Items::Open)
    }

    fn open(&mut self, byte: u8) -> Result<(), Failure> {
        if self.depth == 0 || self.between_items() {
            if byte != b'{' {
                return Err(self.malformed("an object was expected here"));
            }
            self.chunk_line = self.line;
        }
        if self.depth == 0 {
            self.list = None;
        }
        if self.depth == 1 && byte == b'[' && self.key == b"items" {
            if self.items.is_some() {
                return Err(self.malformed("items stands here for a second time"));
            }
            self.head = std::mem::take(&mut self.chunk);
            self.head.extend_from_slice(b"[]");
            self.items = Some(Items::Open);
        } else {
            self.keep(byte);
        }
        self.depth += 1;
        Ok(())
    }

    fn close(&mut self, byte: u8) -> Result<(), Failure> {
        if self.depth == 0 {
            return Err(self.malformed("nothing is open here"));
        }
        if self.between_items() {
            if byte != b']' {
                return Err(self.malformed("the items end in another bracket"));
            }
            self.items = Some(Items::Closed);
            self.depth -= 1;
            return Ok(());
        }
        self.end_value_at(byte);
        self.keep(byte);
        self.depth -= 1;
        match (self.depth, self.items) {
            (2, Some(Items::Open)) => self.end_chunk(),
            (0, None) => self.end_chunk(),
            (0, Some(_)) => self.end_list(),
            _ => Ok(()),
        }
    }

    fn end_value_at(&mut self, byte: u8) {
        if self.depth == 1 && byte == b'}' {
            self.end_value();
        }
    }

    /// At the end of a value of an object's own level.
    fn end_value(&mut self) {
        if self.key == b"kind" && !self.word.is_empty() {
            self.list = std::str::from_utf8(&self.word)
                .ok()
                .filter(|kind| kind.ends_with("List"))
                .map(str::to_owned);
        }
        self.key.clear();
        self.word.clear();
    }

    fn keep(&mut self, byte: u8) {
        match self.items {
            Some(Items::Open) if self.depth < 2 => self.head.push(byte),
            Some(Items::Closed) => self.head.push(byte),
            _ => self.chunk.push(byte),
        }
    }

    fn end_chunk(&mut self) -> Result<(), Failure> {
        let list = self.items.and(self.list.as_deref());
        deliver(&self.chunk, self.chunk_line, Format::Json, list, self.sink)?;
        self.chunk.clear();
        Ok(())
    }

    /// The rest of a list must be JSON, too.
    fn end_list(&mut self) -> Result<(), Failure> {
        if let Err(error) = serde_json::from_slice::<serde::de::IgnoredAny>(&self.head) {
            return Err(self.malformed(&error.to_string()));
        }
        self.head.clear();
        self.items = None;
        self.list = None;
        Ok(())
    }

    fn end(&mut self) -> Result<(), Failure> {
        if self.depth > 0 || self.string.is_some() {
            return Err(self.malformed("the file ends inside an object"));
        }
        Ok(())
    }

    fn malformed(&self, message: &str) -> Failure {
        Failure::Malformed {
            line: self.line,
            message: message.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::outline::Segment;

    fn check(text: &str, expect: &[&str]) {
        let mut cuts = Vec::new();
        let outcome = cut(&mut text.as_bytes(), &mut |segment: Segment<'_>| {
            let list = segment.chunk.list.unwrap_or("-");
            cuts.push(format!("{}:{list}:{}", segment.line, segment.chunk.text));
            Ok(())
        });
        if let Err(Failure::Malformed { line, message }) = outcome {
            cuts.push(format!("{line}!{message}"));
        }
        assert_eq!(cuts, expect, "{text:?}");
    }

    #[test]
    fn objects_and_items_are_cut() {
        check("", &[]);
        check(
            " {\"a\":1}\n{\"b\":[{}]}",
            &["1:-:{\"a\":1}", "2:-:{\"b\":[{}]}"],
        );
        check(
            "{\"items\":[\n{\"a\":\"}]\\\"\"},\n{\"items\":[1]}],\"kind\":\"List\"}",
            &["2:-:{\"a\":\"}]\\\"\"}", "3:-:{\"items\":[1]}"],
        );
        check(
            "{\"kind\":\"PodList\",\"metadata\":{},\"items\":[{}]}{\"x\":{\"items\":[]}}",
            &["1:PodList:{}", "1:-:{\"x\":{\"items\":[]}}"],
        );
        check("{\"kind\":\"List\",\"items\":[]}", &[]);
    }

    #[test]
    fn what_is_no_json_is_told_with_its_line() {
        check("{\n\"a\": {", &["2!the file ends inside an object"]);
        check("{\"items\":[1]}", &["1!an object was expected here"]);
        check("{}\n]", &["1:-:{}", "2!nothing is open here"]);
        check("[]", &["1!an object was expected here"]);
        check(
            "{\"items\":[{}]\n\"kind\":1}",
            &["1:-:{}", "2!expected `,` or `}` at line 2 column 1"],
        );
    }
}
