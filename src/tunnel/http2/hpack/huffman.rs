//! The code of strings (RFC 7541 §5.2, appendix B).
//!
//! The code is canonical: symbols of one length have codes that follow one another in the order of
//! symbols. So the lengths are the whole table, and a code is decoded by comparing it with the end
//! of each length's range.

use crate::tunnel::http2::hpack::Undecodable;

/// The length of each symbol's code; the last symbol is EOS.
#[rustfmt::skip]
const LENGTHS: [u8; 257] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28,
    28, 28, 28, 28, 28, 28, 28, 28, 6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6,
    5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10, 13, 6, 7, 7, 7, 7, 7, 7,
    7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7,
    7, 7, 7, 15, 11, 14, 13, 28, 20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23,
    24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24, 22, 21, 20, 22, 22, 23, 23, 21,
    23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24,
    21, 21, 26, 26, 28, 27, 27, 27, 20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23,
    26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26, 30,
];
const SHORTEST: usize = 5;
const LONGEST: usize = 30;
const EOS: u16 = 256;

struct Table {
    /// By length: where its codes end, left-aligned in 32 bits.
    ends: [u32; LONGEST + 1],
    /// By length: its first code, and the place of that code's symbol in `symbols`.
    firsts: [(u32, u16); LONGEST + 1],
    /// Symbols in the order of their codes.
    symbols: [u16; 257],
}

static TABLE: Table = table();

const fn table() -> Table {
    let mut table = Table {
        ends: [0; LONGEST + 1],
        firsts: [(0, 0); LONGEST + 1],
        symbols: [0; 257],
    };
    let (mut code, mut place, mut length) = (0_u32, 0_u16, 1);
    while length <= LONGEST {
        code <<= 1;
        table.firsts[length] = (code, place);
        let mut symbol = 0;
        while symbol < LENGTHS.len() {
            if LENGTHS[symbol] as usize == length {
                table.symbols[place as usize] = symbol as u16;
                code += 1;
                place += 1;
            }
            symbol += 1;
        }
        // The last code of the longest length is all ones; its end would be 2^32.
        table.ends[length] = ((code as u64) << (32 - length)).wrapping_sub(1) as u32;
        length += 1;
    }
    table
}

/// Appends the decoded `text` to `out`.
///
/// # Errors
///
/// It holds EOS, or its padding is not the begin of EOS or longer than seven bits.
pub(crate) fn decode(text: &[u8], out: &mut Vec<u8>) -> Result<(), Undecodable> {
    let mut bits = 0_u64;
    let mut count = 0;
    let mut rest = text.iter();
    loop {
        while count <= 32 {
            let Some(byte) = rest.next() else { break };
            bits |= u64::from(*byte) << (56 - count);
            count += 8;
        }
        if count < SHORTEST {
            break;
        }
        let window = u32::try_from(bits >> 32).expect("the upper half");
        let length = (SHORTEST..=LONGEST)
            .find(|length| TABLE.ends[*length] >= window)
            .unwrap_or(LONGEST);
        if length > count {
            break;
        }
        let (first, place) = TABLE.firsts[length];
        let at = usize::from(place) + ((window >> (32 - length)) - first) as usize;
        let symbol = TABLE.symbols[at];
        if symbol == EOS {
            return Err(Undecodable("a string holds its own end"));
        }
        out.push(u8::try_from(symbol).expect("EOS alone is above 255"));
        bits <<= length;
        count -= length;
    }
    let ones = count == 0 || bits >> (64 - count) == (1 << count) - 1;
    match count < 8 && ones {
        true => Ok(()),
        false => Err(Undecodable("a string is padded wrongly")),
    }
}
