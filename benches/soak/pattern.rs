//! Bytes that both ends know: an endless pattern for each seed, and a small source of choices.

use std::sync::LazyLock;

/// Noise in which no run repeats at a distance of a buffer or a frame: its length is prime.
static NOISE: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut choices = Choices::new(0x5eed);
    let bytes = std::iter::repeat_with(|| choices.next().to_le_bytes()[4]);
    bytes.take(1_048_573).collect()
});

/// The stretch of the pattern of `seed` that begins at `at`, at most `len` long.
pub(crate) fn stretch(seed: u64, at: u64, len: usize) -> &'static [u8] {
    let size = NOISE.len();
    let start = (seed % size as u64 + at % size as u64) as usize % size;
    &NOISE[start..size.min(start + len)]
}

/// Whether `bytes` are those of the pattern at `at`.
pub(crate) fn fits(seed: u64, mut at: u64, mut bytes: &[u8]) -> bool {
    while !bytes.is_empty() {
        let wanted = stretch(seed, at, bytes.len());
        let (head, rest) = bytes.split_at(wanted.len());
        if head != wanted {
            return false;
        }
        at += head.len() as u64;
        bytes = rest;
    }
    true
}

/// Choices that follow from a seed (xorshift64).
#[derive(Clone, Debug)]
pub(crate) struct Choices(u64);

impl Choices {
    pub(crate) fn new(seed: u64) -> Self {
        let mut choices = Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        for _ in 0..8 {
            choices.next();
        }
        choices
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// One of `range`.
    pub(crate) fn within(&mut self, range: std::ops::Range<u64>) -> u64 {
        range.start + (self.next() >> 16) % (range.end - range.start)
    }
}
