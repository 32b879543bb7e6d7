//! Anything that may happen on a connection, in any order.

use super::*;
use crate::tunnel::record::tests::foul::Foul;

/// What happens on a connection.
#[derive(Clone, Debug)]
enum Act {
    Ours(Vec<usize>),
    Theirs(usize),
    Renew,
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        4 => prop::collection::vec(0..40_000_usize, 1..4).prop_map(Act::Ours),
        4 => (1..80_000_usize).prop_map(Act::Theirs),
        1 => Just(Act::Renew),
    ]
}

fn setting() -> impl Strategy<Value = (usize, Side, Option<usize>, usize)> {
    let fragment = prop::option::of(32..17_000_usize);
    let segment = prop_oneof![1..50_usize, 50..20_000_usize];
    (
        0..3_usize,
        prop::sample::select(&SIDES[..]),
        fragment,
        segment,
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn any_conversation_arrives(
        (suite, side, fragment, segment) in setting(),
        limit in 3..40_u64,
        acts in prop::collection::vec(act(), 1..12),
    ) {
        let fragment = fragment.map(|fragment| fragment.min(16_389));
        let mut pair = Setting { fragment, segment, ..Setting::plain(SUITES[suite], side) }.pair();
        pair.ours.out.limit = limit;
        for act in acts {
            match act {
                Act::Ours(lengths) => {
                    let pieces: Vec<_> = lengths.into_iter().map(noise).collect();
                    let pieces: Vec<&[u8]> = pieces.iter().map(|piece| &**piece).collect();
                    pair.send_theirs(&pieces, segment);
                }
                Act::Theirs(length) => pair.send_ours(&noise(length), segment),
                Act::Renew => pair.theirs.refresh_traffic_keys().unwrap(),
            }
        }
    }

    /// Bytes that nobody sealed end the session, or wait for more; nothing comes of them.
    #[test]
    fn noise_is_never_believed(
        bytes in prop::collection::vec(any::<u8>(), 1..2000),
        head in any::<bool>(),
        segment in 1..300_usize,
    ) {
        let mut pair = Setting::plain(SUITES[0], Side::Server).pair();
        let head: &[u8] = if head { &[23, 3, 3, 0, 200] } else { b"" };
        let _ = pair.receive(&[head, &bytes].concat(), segment);
        prop_assert!(pair.got.is_empty() && !pair.ours.ended());
        prop_assert!(pair.partial.len() < LONGEST);
    }

    /// A stream with one wrong byte brings what was before it, and no more.
    #[test]
    fn damage_is_noticed(at in 0..50_000_usize, with in 1..=255_u8, segment in 1..9000_usize) {
        let mut pair = Setting::plain(SUITES[2], Side::Client).pair();
        let plaintext = noise(60_000);
        pair.theirs.writer().write_all(&plaintext).unwrap();
        let mut bytes = take(&mut pair.theirs);
        bytes[at] ^= with;
        let outcome = pair.receive(&bytes, segment);
        let sound = at / (HEAD + PLAINTEXT + TAIL) * PLAINTEXT;
        prop_assert!(pair.got == plaintext[..sound]);
        prop_assert!(outcome.is_err() || !pair.partial.is_empty());
    }

    /// Well sealed nonsense.
    #[test]
    fn no_content_is_a_panic(
        side in prop::sample::select(&SIDES[..]),
        records in prop::collection::vec(
            (prop_oneof![Just(21_u8), Just(22), Just(23), any::<u8>()],
             prop_oneof![
                 prop::collection::vec(any::<u8>(), 0..300),
                 prop::collection::vec(prop::sample::select(vec![0_u8, 1, 2, 4, 24]), 0..12),
             ],
             0..20_usize),
            1..40,
        ),
        segment in 1..500_usize,
    ) {
        let mut foul = Foul::against(side);
        for (kind, content, padding) in records {
            let record = foul.record(kind, &content, padding);
            if foul.ours.receive(&record, segment).is_err() {
                break;
            }
        }
        prop_assert!(foul.ours.ours.waiting() < 200);
    }

    /// A handshake that goes wrong somewhere fails, waits, or comes to be all the same; whatever
    /// remains of it can be finished with.
    #[test]
    fn handshakes_may_go_wrong_anywhere(
        side in prop::sample::select(&SIDES[..]),
        fragment in prop::option::of(32..200_usize),
        at in 0..2500_usize,
        change in prop::option::of(1..=255_u8),
        insert in prop::collection::vec(any::<u8>(), 0..30),
        segment in 1..800_usize,
    ) {
        let setting = Setting { fragment, ..Setting::plain(SUITES[0], side) };
        let (mut negotiation, mut theirs) = (setting.negotiation(), setting.theirs());
        let mut sent = 0;
        let mut done = false;
        for _ in 0..4 {
            let outgoing = negotiation.outgoing().to_vec();
            negotiation.written(outgoing.len());
            let _ = give(&mut theirs, &outgoing, usize::MAX);
            let mut bytes = take(&mut theirs);
            if let Some(place) = at.checked_sub(sent) && place < bytes.len() {
                bytes[place] ^= change.unwrap_or(0);
                bytes.splice(place..place, insert.clone());
            }
            sent += bytes.len();
            for segment in bytes.chunks(segment) {
                negotiation.receive(segment);
            }
            match negotiation.advance() {
                Ok(ready) => done = ready,
                Err(_) => return Ok(()),
            }
        }
        if done {
            prop_assert!(negotiation.finish().is_ok());
        }
    }
}
