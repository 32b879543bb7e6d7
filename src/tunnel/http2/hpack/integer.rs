//! Integers with a prefix (RFC 7541 §5.1).

use crate::tunnel::http2::hpack::Undecodable;

/// The largest integer that is read. Nothing that a block may hold is longer.
const LARGEST: usize = 1 << 24;

/// Reads an integer whose first bits are the low `prefix` bits of the first byte.
///
/// # Errors
///
/// The block ends within it, or it is larger than anything it could stand for.
pub(crate) fn read(prefix: u32, block: &mut &[u8]) -> Result<usize, Undecodable> {
    let mask = (1_usize << prefix) - 1;
    let mut value = usize::from(next(block)?) & mask;
    if value < mask {
        return Ok(value);
    }
    // Four bytes of seven bits each are more than the largest needs.
    for shift in [0, 7, 14, 21] {
        let byte = next(block)?;
        value += usize::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return match value <= LARGEST {
                true => Ok(value),
                false => Err(Undecodable("an integer is too large")),
            };
        }
    }
    Err(Undecodable("an integer is too long"))
}

/// Takes one byte.
pub(crate) fn next(block: &mut &[u8]) -> Result<u8, Undecodable> {
    let (first, rest) = block
        .split_first()
        .ok_or(Undecodable("the block ends early"))?;
    *block = rest;
    Ok(*first)
}

/// Writes an integer behind the bits `first` of its first byte.
pub(crate) fn write(out: &mut Vec<u8>, prefix: u32, first: u8, value: usize) {
    let mask = (1_usize << prefix) - 1;
    if value < mask {
        out.push(first | low(value));
        return;
    }
    out.push(first | low(mask));
    let mut rest = value - mask;
    while rest >= 0x80 {
        out.push(low(rest & 0x7f) | 0x80);
        rest >>= 7;
    }
    out.push(low(rest));
}

fn low(value: usize) -> u8 {
    u8::try_from(value).expect("masked to eight bits")
}
