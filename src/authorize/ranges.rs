//! A set of addresses made from CIDR blocks, as sorted ranges that do not touch.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::mesh::canonical_ip;

/// A set of addresses. Looking one up is a binary search, however many blocks there were.
#[derive(Debug)]
pub(super) struct Ranges {
    v4: Box<[(u128, u128)]>,
    v6: Box<[(u128, u128)]>,
}

impl Ranges {
    /// The addresses that are in any of `blocks`.
    pub(super) fn new(blocks: &[IpNet]) -> Self {
        let of = |v4: bool| {
            let blocks = blocks.iter().filter(|net| net.addr().is_ipv4() == v4);
            merged(blocks.map(|net| (number(net.network()), number(net.broadcast()))))
        };
        Self {
            v4: of(true),
            v6: of(false),
        }
    }

    /// Whether `ip` is in the set; an IPv4-mapped IPv6 address counts as IPv4.
    pub(super) fn contains(&self, ip: IpAddr) -> bool {
        let ip = canonical_ip(ip);
        let ranges = if ip.is_ipv4() { &self.v4 } else { &self.v6 };
        let number = number(ip);
        let after = ranges.partition_point(|(first, _)| *first <= number);
        after > 0 && number <= ranges[after - 1].1
    }
}

impl Ranges {
    /// The numbers ([`memo::number`](crate::authorize::memo::number)) at which what
    /// [`contains`](Self::contains) says may change: each is the first of addresses that are in the
    /// set, or that are not, and so are all up to the next.
    pub(super) fn ends(&self) -> impl Iterator<Item = u128> {
        let mapped = |number: u128| number + (0xffff << 32);
        let v4 = self
            .v4
            .iter()
            .map(move |(first, last)| (mapped(*first), mapped(*last)));
        // A range of IPv6 may span the numbers that IPv4 has here.
        let both = [(mapped(0), mapped(u32::MAX.into()))];
        let all = v4.chain(self.v6.iter().copied()).chain(both);
        all.flat_map(|(first, last)| [Some(first), last.checked_add(1)])
            .flatten()
    }
}

fn number(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(v4) => u128::from(v4.to_bits()),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

fn merged(ranges: impl Iterator<Item = (u128, u128)>) -> Box<[(u128, u128)]> {
    let mut sorted: Vec<_> = ranges.collect();
    sorted.sort_unstable();
    let mut merged: Vec<(u128, u128)> = Vec::with_capacity(sorted.len());
    for (first, last) in sorted {
        match merged.last_mut() {
            Some(before) if first <= before.1 => before.1 = before.1.max(last),
            _ => merged.push((first, last)),
        }
    }
    merged.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn block() -> impl Strategy<Value = IpNet> {
        let v4 = (0u32..64, 24u8..=32).prop_map(|(bits, len)| {
            IpNet::new(IpAddr::V4((0x0a00_0000 + bits * 3).into()), len).unwrap()
        });
        let v6 = (0u128..64, 120u8..=128)
            .prop_map(|(bits, len)| IpNet::new(IpAddr::V6((bits * 3).into()), len).unwrap());
        let all = Just("0.0.0.0/0".parse().unwrap());
        prop_oneof![8 => v4, 8 => v6, 1 => all]
    }

    proptest! {
        #![proptest_config(ProptestConfig {
            failure_persistence: None,
            ..ProptestConfig::default()
        })]

        #[test]
        fn an_address_is_in_the_set_when_it_is_in_a_block(
            blocks in prop::collection::vec(block(), 0..8),
            low in 0u32..256,
            v4: bool,
        ) {
            let ip = if v4 {
                IpAddr::V4((0x0a00_0000 + low).into())
            } else {
                IpAddr::V6(u128::from(low).into())
            };
            let expect = blocks.iter().any(|net| net.contains(&ip));
            prop_assert_eq!(Ranges::new(&blocks).contains(ip), expect);
        }

        #[test]
        fn between_two_ends_all_addresses_are_in_the_set_or_none_is(
            blocks in prop::collection::vec(block(), 0..8),
            a in (any::<bool>(), 0u32..256),
            b in (any::<bool>(), 0u32..256),
        ) {
            let ip = |(v4, low): (bool, u32)| if v4 {
                IpAddr::V4((0x0a00_0000 + low).into())
            } else {
                IpAddr::V6(u128::from(low).into())
            };
            let ranges = Ranges::new(&blocks);
            let stretch = |at| {
                let number = crate::authorize::memo::number(ip(at));
                ranges.ends().filter(|end| *end <= number).count()
            };
            if stretch(a) == stretch(b) {
                prop_assert_eq!(ranges.contains(ip(a)), ranges.contains(ip(b)));
            }
        }
    }
}
