//! The serde half of the quick reader: nodes, and what they may be read as.
//!
//! Its rule is its parent's: what two YAML schemas could read differently is [`Beyond`] it, unless
//! the visitor has said what it wants.

use std::borrow::Cow;

use serde::de::value::{BorrowedStrDeserializer, MapDeserializer, SeqDeserializer};
use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde::forward_to_deserialize_any;

use crate::source::block::{At, Beyond, Lines, Result, Scalar, plain};

fn is_null(plain: &str) -> bool {
    matches!(plain, "~" | "null" | "Null" | "NULL")
}

/// Whether every YAML schema in use takes the plain scalar for text: it begins with a letter and
/// is no word that one of them knows.
fn is_word(plain: &str) -> bool {
    let lower = plain.to_ascii_lowercase();
    let known = [
        "null", "true", "false", "yes", "no", "on", "off", "y", "n", "inf", "nan",
    ];
    plain.as_bytes()[0].is_ascii_alphabetic() && !known.contains(&&*lower) && lower != "infinity"
}

/// A whole number without sign, in its shortest form.
fn number(plain: &str) -> Option<u64> {
    let shortest = plain == "0" || !plain.starts_with('0');
    let digits = plain.bytes().all(|b| b.is_ascii_digit());
    (shortest && digits && plain.len() < 19).then(|| plain.parse().ok())?
}

/// A node that is about to be read.
pub(super) struct Node<'r, 'a> {
    pub(super) lines: &'r mut Lines<'a>,
    pub(super) at: At<'a>,
}

impl<'a> Node<'_, 'a> {
    fn scalar(self) -> Result<Scalar<'a>> {
        match self.at {
            At::Here(text, parent) => self.lines.scalar(text, parent),
            _ => Err(Beyond),
        }
    }

    fn text<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value> {
        match self.scalar()? {
            Scalar::Plain(text) if !is_null(text) => visitor.visit_borrowed_str(text),
            Scalar::Quoted(Cow::Borrowed(text)) => visitor.visit_borrowed_str(text),
            Scalar::Quoted(Cow::Owned(text)) => visitor.visit_string(text),
            _ => Err(Beyond),
        }
    }

    fn number<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value> {
        match self.scalar()? {
            Scalar::Plain(text) => visitor.visit_u64(number(text).ok_or(Beyond)?),
            _ => Err(Beyond),
        }
    }

    fn map<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value> {
        match self.at {
            At::Below(indent) if !self.lines.at_dash() => {
                self.lines.descend()?;
                let value = visitor.visit_map(Entries {
                    lines: &mut *self.lines,
                    indent,
                    rest: "",
                })?;
                self.lines.depth -= 1;
                Ok(value)
            }
            At::Here(..) => match self.scalar()? {
                Scalar::EmptyMap => visitor.visit_map(MapDeserializer::<_, Beyond>::new(
                    std::iter::empty::<(&str, &str)>(),
                )),
                _ => Err(Beyond),
            },
            _ => Err(Beyond),
        }
    }

    fn seq<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value> {
        match self.at {
            At::Below(indent) if self.lines.at_dash() => {
                self.lines.descend()?;
                let value = visitor.visit_seq(Items {
                    lines: &mut *self.lines,
                    indent,
                })?;
                self.lines.depth -= 1;
                Ok(value)
            }
            At::Here(..) => match self.scalar()? {
                Scalar::EmptySeq => {
                    visitor.visit_seq(SeqDeserializer::<_, Beyond>::new(std::iter::empty::<&str>()))
                }
                _ => Err(Beyond),
            },
            _ => Err(Beyond),
        }
    }
}

macro_rules! as_text { ($($method:ident)*) => {$(
    fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> { self.text(visitor) }
)*} }
macro_rules! as_number { ($($method:ident)*) => {$(
    fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> { self.number(visitor) }
)*} }

impl<'de> Deserializer<'de> for Node<'_, 'de> {
    type Error = Beyond;

    /// Only what is the same in every schema: a short number, a clear word, quoted text.
    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        match self.at {
            At::Nothing => visitor.visit_unit(),
            At::Below(_) if self.lines.at_dash() => self.seq(visitor),
            At::Below(_) => self.map(visitor),
            At::Here(text, _) if text.starts_with('{') => self.map(visitor),
            At::Here(text, _) if text.starts_with('[') => self.seq(visitor),
            At::Here(..) => match self.scalar()? {
                Scalar::Quoted(Cow::Borrowed(text)) => visitor.visit_borrowed_str(text),
                Scalar::Quoted(Cow::Owned(text)) => visitor.visit_string(text),
                Scalar::Plain(text) if is_null(text) => visitor.visit_unit(),
                Scalar::Plain("true") => visitor.visit_bool(true),
                Scalar::Plain("false") => visitor.visit_bool(false),
                Scalar::Plain(text) if is_word(text) => visitor.visit_borrowed_str(text),
                Scalar::Plain(text) => visitor.visit_u64(number(text).ok_or(Beyond)?),
                Scalar::EmptyMap | Scalar::EmptySeq => Err(Beyond),
            },
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        match self.at {
            At::Nothing => visitor.visit_none(),
            At::Here(text, _) if is_null(plain(text).unwrap_or_default()) => {
                self.scalar()?;
                visitor.visit_none()
            }
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        match self.scalar()? {
            Scalar::Plain("true") => visitor.visit_bool(true),
            Scalar::Plain("false") => visitor.visit_bool(false),
            _ => Err(Beyond),
        }
    }

    as_text! { deserialize_str deserialize_string deserialize_identifier }
    as_number! {
        deserialize_u8 deserialize_u16 deserialize_u32 deserialize_u64
        deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        self.map(visitor)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value> {
        self.map(visitor)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        self.seq(visitor)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        self.lines.skip(self.at)?;
        visitor.visit_unit()
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        _: V,
    ) -> Result<V::Value> {
        Err(Beyond)
    }

    forward_to_deserialize_any! {
        i128 u128 f32 f64 char bytes byte_buf unit unit_struct tuple tuple_struct
    }
}

struct Entries<'r, 'a> {
    lines: &'r mut Lines<'a>,
    indent: usize,
    rest: &'a str,
}

impl<'a> MapAccess<'a> for Entries<'_, 'a> {
    type Error = Beyond;

    fn next_key_seed<K: DeserializeSeed<'a>>(&mut self, seed: K) -> Result<Option<K::Value>> {
        let Some((key, rest)) = self.lines.entry(self.indent)? else {
            return Ok(None);
        };
        self.rest = rest;
        seed.deserialize(BorrowedStrDeserializer::<Beyond>::new(key))
            .map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'a>>(&mut self, seed: V) -> Result<V::Value> {
        let at = self.lines.behind(self.rest, self.indent, true);
        seed.deserialize(Node {
            lines: &mut *self.lines,
            at,
        })
    }
}

struct Items<'r, 'a> {
    lines: &'r mut Lines<'a>,
    indent: usize,
}

impl<'a> SeqAccess<'a> for Items<'_, 'a> {
    type Error = Beyond;

    fn next_element_seed<T: DeserializeSeed<'a>>(&mut self, seed: T) -> Result<Option<T::Value>> {
        let Some(at) = self.lines.item(self.indent)? else {
            return Ok(None);
        };
        seed.deserialize(Node {
            lines: &mut *self.lines,
            at,
        })
        .map(Some)
    }
}
