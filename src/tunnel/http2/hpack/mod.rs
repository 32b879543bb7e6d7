//! Header compression (RFC 7541): what peers send is decoded in full; what is sent refers to the
//! static table alone.
//!
//! Pure. A CONNECT's head is short and differs in each request where it matters, so a dynamic table
//! of our own would cost memory at both ends of each tunnel and save little.

mod decoder;
mod dynamic;
pub(crate) mod encoder;
mod huffman;
mod integer;
mod statics;
#[cfg(test)]
mod tests;

pub(crate) use decoder::Decoder;

/// A block that cannot be decoded: a COMPRESSION_ERROR of the connection (RFC 9113 §4.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Undecodable(pub(crate) &'static str);
