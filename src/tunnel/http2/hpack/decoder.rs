//! Decodes header blocks.

use crate::tunnel::http2::fields::Fields;
use crate::tunnel::http2::hpack::dynamic::Dynamic;
use crate::tunnel::http2::hpack::{Undecodable, huffman, integer, statics};

/// The size of the dynamic table that a peer's encoder may use: the protocol's default, of which
/// SETTINGS need not speak (RFC 9113 §6.5.2).
const TABLE: usize = 4096;

/// The decoder of one connection's direction.
#[derive(Debug)]
pub(crate) struct Decoder {
    dynamic: Dynamic,
}

impl Decoder {
    pub(crate) fn new() -> Self {
        Self {
            dynamic: Dynamic::new(TABLE),
        }
    }

    /// Decodes a whole block into `fields`. The table is kept in step also where `fields` takes no
    /// more, unless they are [far over](Fields::is_far_over): then the connection must end.
    ///
    /// # Errors
    ///
    /// The block is none; the connection cannot go on.
    pub(crate) fn decode(
        &mut self,
        mut block: &[u8],
        fields: &mut Fields,
    ) -> Result<(), Undecodable> {
        let mut text = Vec::new();
        let mut begun = false;
        while let Some(first) = block.first() {
            match first.leading_zeros() {
                0 => {
                    let (name, value) = self.indexed(integer::read(7, &mut block)?)?;
                    fields.push(name, value);
                }
                1 => {
                    let name = self.literal(6, &mut block, &mut text)?;
                    self.dynamic.add(&text, name);
                    let (name, value) = text.split_at(name);
                    fields.push(name, value);
                }
                2 if begun => return Err(Undecodable("a table is resized within a block")),
                2 => {
                    let size = integer::read(5, &mut block)?;
                    if size > TABLE {
                        return Err(Undecodable("a table is larger than allowed"));
                    }
                    self.dynamic.resize(size);
                    continue;
                }
                _ => {
                    let name = self.literal(4, &mut block, &mut text)?;
                    let (name, value) = text.split_at(name);
                    fields.push(name, value);
                }
            }
            begun = true;
            if fields.is_far_over() {
                // A byte may stand for a table's worth. Nothing is decoded behind this.
                return Ok(());
            }
        }
        Ok(())
    }

    fn indexed(&self, index: usize) -> Result<(&[u8], &[u8]), Undecodable> {
        let at = index
            .checked_sub(1)
            .ok_or(Undecodable("there is no index 0"))?;
        if let Some((name, value)) = statics::FIELDS.get(at) {
            return Ok((name.as_bytes(), value.as_bytes()));
        }
        self.dynamic
            .field(at - statics::FIELDS.len())
            .ok_or(Undecodable("an index is beyond the tables"))
    }

    /// Reads a literal field into `text`, name and value one behind the other; the name's length.
    fn literal(
        &self,
        prefix: u32,
        block: &mut &[u8],
        text: &mut Vec<u8>,
    ) -> Result<usize, Undecodable> {
        text.clear();
        match integer::read(prefix, block)? {
            0 => string(block, text)?,
            index => text.extend_from_slice(self.indexed(index)?.0),
        }
        let name = text.len();
        string(block, text)?;
        Ok(name)
    }
}

/// Appends a string to `text` (RFC 7541 §5.2).
fn string(block: &mut &[u8], text: &mut Vec<u8>) -> Result<(), Undecodable> {
    let coded = block.first().is_some_and(|first| first & 0x80 != 0);
    let length = integer::read(7, block)?;
    let (string, rest) = block
        .split_at_checked(length)
        .ok_or(Undecodable("a string ends early"))?;
    *block = rest;
    match coded {
        true => huffman::decode(string, text),
        false => {
            text.extend_from_slice(string);
            Ok(())
        }
    }
}
