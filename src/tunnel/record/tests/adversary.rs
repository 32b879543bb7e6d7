//! Both sides are ours, and somebody between them does with the records as they like.

use super::*;

/// What happens to the records of one direction, counted where they are when it does.
#[derive(Clone, Debug)]
enum Deed {
    /// A bit of a record is another.
    Flip(usize, usize),
    /// A record is gone.
    Drop(usize),
    /// A record comes again, behind another.
    Repeat(usize, usize),
    Swap(usize, usize),
    /// A record gets the length of another, and loses or gains bytes for it.
    Resize(usize, u16),
    /// A record of the other direction.
    Reflect(usize),
    /// A record in the clear: type and content.
    Insert(usize, u8, Vec<u8>),
    /// Nothing comes behind this byte.
    Cut(usize),
}

fn deed() -> impl Strategy<Value = Deed> {
    let (at, to) = (|| any::<usize>(), || any::<usize>());
    prop_oneof![
        3 => (at(), to()).prop_map(|(at, bit)| Deed::Flip(at, bit)),
        1 => at().prop_map(Deed::Drop),
        1 => (at(), to()).prop_map(|(at, to)| Deed::Repeat(at, to)),
        1 => (at(), to()).prop_map(|(at, to)| Deed::Swap(at, to)),
        1 => (at(), 0..17_000_u16).prop_map(|(at, length)| Deed::Resize(at, length)),
        1 => at().prop_map(Deed::Reflect),
        1 => (at(), 18..25_u8, prop::collection::vec(any::<u8>(), 0..40))
            .prop_map(|(at, kind, content)| Deed::Insert(at, kind, content)),
        1 => at().prop_map(Deed::Cut),
    ]
}

impl Deed {
    fn happen(self, records: &mut Vec<Vec<u8>>, others: &[Vec<u8>]) {
        let count = records.len().max(1);
        match self {
            Self::Cut(at) => {
                let all = records.concat();
                *records = vec![all[..at % (all.len() + 1)].to_vec()];
            }
            Self::Insert(at, kind, content) => {
                let record = [&[kind, 3, 3, 0, content.len() as u8], &content[..]].concat();
                records.insert(at % count, record);
            }
            Self::Reflect(at) => records.insert(at % count, others[at % others.len()].clone()),
            _ if records.is_empty() => {}
            Self::Flip(at, bit) => {
                let record = &mut records[at % count];
                let bit = bit % (record.len().max(1) * 8);
                if let Some(byte) = record.get_mut(bit / 8) {
                    *byte ^= 1 << (bit % 8);
                }
            }
            Self::Drop(at) => drop(records.remove(at % count)),
            Self::Repeat(at, to) => records.insert(to % count, records[at % count].clone()),
            Self::Swap(at, to) => records.swap(at % count, to % count),
            Self::Resize(at, length) => {
                let record = &mut records[at % count];
                record.resize(HEAD + usize::from(length), 7);
                record[3..HEAD].copy_from_slice(&length.to_be_bytes());
            }
        }
    }
}

/// Both sides of one session, client first.
fn both(suite: SupportedCipherSuite) -> [Records; 2] {
    let mut sides = SIDES.map(|side| Setting::plain(suite, side).negotiation());
    let mut done = [false; 2];
    while done != [true; 2] {
        for (us, them) in [(0, 1), (1, 0)] {
            done[us] = done[us] || sides[us].advance().unwrap();
            let outgoing = sides[us].outgoing().to_vec();
            sides[us].written(outgoing.len());
            sides[them].receive(&outgoing);
        }
    }
    sides.map(|side| {
        let negotiated = side.finish().unwrap();
        let mut records = negotiated.records;
        // The tickets.
        let mut rest = negotiated.rest;
        let used = records.open(&mut rest, &mut Pieces::new()).unwrap();
        assert_eq!(used, rest.len());
        records
    })
}

/// What it sends, to its close_notify.
fn speak(records: &mut Records, writes: &[(usize, bool)], seed: u8) -> (Vec<u8>, Vec<Vec<u8>>) {
    let mut plaintext = Vec::new();
    for (length, end) in writes {
        let bytes: Vec<u8> = noise(*length).iter().map(|byte| byte ^ seed).collect();
        records.write(&[IoSlice::new(&bytes)]).unwrap();
        if *end {
            records.seal().unwrap();
        }
        plaintext.extend(bytes);
    }
    records.close();
    let bytes = sealed(records);
    let (mut rest, mut all) = (&bytes[..], Vec::new());
    while let Some(length) = whole(rest).unwrap() {
        let (record, later) = rest.split_at(length);
        all.push(record.to_vec());
        rest = later;
    }
    (plaintext, all)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// What arrives is the beginning of what was sent, and all of it where the end is believed.
    #[test]
    fn nobody_between_is_believed(
        suite in 0..3_usize,
        to in 0..2_usize,
        limit in 3..12_u64,
        writes in prop::collection::vec((0..40_000_usize, any::<bool>()), 0..8),
        deeds in prop::collection::vec(deed(), 0..4),
        segment in prop_oneof![1..50_usize, 50..60_000_usize],
    ) {
        let mut sides = both(SUITES[suite]);
        for side in &mut sides {
            side.out.limit = limit;
        }
        let (_, others) = speak(&mut sides[to], &writes, 1);
        let (plaintext, mut records) = speak(&mut sides[1 - to], &writes, 0);
        let sent = records.concat();
        for deed in deeds {
            deed.happen(&mut records, &others);
        }
        let bytes = records.concat();

        let (ours, mut got, mut partial) = (&mut sides[to], Vec::new(), Vec::new());
        let mut failed = false;
        for segment in bytes.chunks(segment) {
            let mut buffer = std::mem::take(&mut partial);
            buffer.extend_from_slice(segment);
            let mut found = Pieces::new();
            let used = ours.open(&mut buffer, &mut found);
            for (from, to) in found {
                got.extend_from_slice(&buffer[from as usize..to as usize]);
            }
            match used {
                Ok(used) => partial = buffer.split_off(used),
                Err(_) => {
                    failed = true;
                    break;
                }
            }
            prop_assert!(partial.len() < LONGEST);
            if ours.ended() {
                break;
            }
        }
        prop_assert!(plaintext.starts_with(&got), "{} bytes", got.len());
        prop_assert!(!ours.ended() || got == plaintext, "an end before the end");
        prop_assert!(!(failed && ours.ended()));
        if bytes.starts_with(&sent) {
            prop_assert!(ours.ended(), "nobody did anything");
        }
    }
}
