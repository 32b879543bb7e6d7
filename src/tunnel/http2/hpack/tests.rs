//! The examples of RFC 7541, appendix C, and what must not be decoded.

use proptest::prelude::*;

use crate::tunnel::http2::fields::Fields;
use crate::tunnel::http2::hpack::{Decoder, encoder, huffman, integer};

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex.bytes().filter(|b| !b.is_ascii_whitespace()).collect();
    let digit = |b: u8| (b as char).to_digit(16).unwrap() as u8;
    digits
        .chunks(2)
        .map(|pair| digit(pair[0]) << 4 | digit(pair[1]))
        .collect()
}

fn text(fields: &Fields) -> String {
    let mut all = String::new();
    for (name, value) in fields.iter() {
        let (name, value) = (
            String::from_utf8_lossy(name),
            String::from_utf8_lossy(value),
        );
        all += &format!("{name}: {value}\n");
    }
    all
}

/// Blocks of one connection and what they say.
fn check(blocks: &[(&str, &str)]) {
    let mut decoder = Decoder::new();
    for (block, expect) in blocks {
        let mut fields = Fields::new(16 * 1024);
        decoder.decode(&bytes(block), &mut fields).unwrap();
        assert_eq!(text(&fields), *expect, "{block}");
    }
}

#[test]
fn integers_of_appendix_c_1() {
    for (prefix, value, expect) in [
        (5, 10, "0a"),
        (5, 1337, "1f9a0a"),
        (8, 42, "2a"),
        (5, 31, "1f00"),
    ] {
        let mut out = Vec::new();
        integer::write(&mut out, prefix, 0, value);
        assert_eq!(out, bytes(expect));
        assert_eq!(integer::read(prefix, &mut &out[..]), Ok(value));
    }
}

#[test]
fn fields_of_appendix_c_2() {
    check(&[(
        "400a 6375 7374 6f6d 2d6b 6579 0d63 7573 746f 6d2d 6865 6164 6572",
        "custom-key: custom-header\n",
    )]);
    check(&[(
        "040c 2f73 616d 706c 652f 7061 7468",
        ":path: /sample/path\n",
    )]);
    check(&[(
        "1008 7061 7373 776f 7264 0673 6563 7265 74",
        "password: secret\n",
    )]);
    check(&[("82", ":method: GET\n")]);
}

const FIRST: &str = ":method: GET\n:scheme: http\n:path: /\n:authority: www.example.com\n";
const SECOND: &str = ":method: GET\n:scheme: http\n:path: /\n:authority: www.example.com\n\
                      cache-control: no-cache\n";
const THIRD: &str = ":method: GET\n:scheme: https\n:path: /index.html\n\
                     :authority: www.example.com\ncustom-key: custom-value\n";

#[test]
fn requests_of_appendix_c_3_and_c_4() {
    check(&[
        ("8286 8441 0f77 7777 2e65 7861 6d70 6c65 2e63 6f6d", FIRST),
        ("8286 84be 5808 6e6f 2d63 6163 6865", SECOND),
        (
            "8287 85bf 400a 6375 7374 6f6d 2d6b 6579 0c63 7573 746f 6d2d 7661 6c75 65",
            THIRD,
        ),
    ]);
    check(&[
        ("8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff", FIRST),
        ("8286 84be 5886 a8eb 1064 9cbf", SECOND),
        (
            "8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf",
            THIRD,
        ),
    ]);
}

/// With a table of 256 bytes, so that entries are evicted.
#[test]
fn responses_of_appendix_c_6() {
    let first = ":status: 302\ncache-control: private\ndate: Mon, 21 Oct 2013 20:13:21 GMT\n\
                 location: https://www.example.com\n";
    check(&[
        (
            "3fe101 4882 6402 5885 aec3 771a 4b61 96d0 7abe 9410 54d4 44a8 2005 9504 0b81 66e0 82a6
             2d1b ff6e 919d 29ad 1718 63c7 8f0b 97c8 e9ae 82ae 43d3",
            first,
        ),
        ("4883 640e ffc1 c0bf", &first.replace("302", "307")),
        (
            "88c1 6196 d07a be94 1054 d444 a820 0595 040b 8166 e084 a62d 1bff c05a 839b d9ab 77ad
             94e7 821d d7f2 e6c7 b335 dfdf cd5b 3960 d5af 2708 7f36 72c1 ab27 0fb5 291f 9587 3160
             65c0 03ed 4ee5 b106 3d50 07",
            ":status: 200\ncache-control: private\ndate: Mon, 21 Oct 2013 20:13:22 GMT\n\
             location: https://www.example.com\ncontent-encoding: gzip\n\
             set-cookie: foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1\n",
        ),
    ]);
}

#[test]
fn what_is_no_block_is_told() {
    let refuse = |block: &str, expect: &str| {
        let mut fields = Fields::new(1024);
        let told = Decoder::new().decode(&bytes(block), &mut fields);
        assert_eq!(told.unwrap_err().0, expect, "{block}");
    };
    refuse("80", "there is no index 0");
    refuse("be", "an index is beyond the tables");
    refuse("ff ff ff ff 7f", "an integer is too large");
    refuse("ff ff ff ff ff 01", "an integer is too long");
    refuse("3f e2 1f", "a table is larger than allowed");
    refuse("82 20", "a table is resized within a block");
    refuse("40", "the block ends early");
    refuse("00 05 61", "a string ends early");
    // EOS, then padding of zeros, then a whole byte of padding.
    refuse("00 84 ff ff ff ff 00", "a string holds its own end");
    refuse("00 81 18 00", "a string is padded wrongly");
    refuse("00 82 1f ff 00", "a string is padded wrongly");
}

#[test]
fn a_long_list_is_not_kept_but_decoded() {
    let mut block = Vec::new();
    encoder::field(&mut block, "a", &[b'x'; 500]);
    encoder::field(&mut block, "b", &[b'y'; 500]);
    block.extend_from_slice(&bytes("4001 6301 64"));
    let mut decoder = Decoder::new();
    let mut fields = Fields::new(600);
    decoder.decode(&block, &mut fields).unwrap();
    assert!(fields.is_over());
    assert_eq!(fields.iter().count(), 1);
    let mut fields = Fields::new(600);
    decoder.decode(&[0xbe], &mut fields).unwrap();
    assert_eq!(text(&fields), "c: d\n");
}

proptest! {
    #[test]
    fn no_block_panics(blocks: Vec<Vec<u8>>) {
        let mut decoder = Decoder::new();
        for block in blocks {
            let _ = decoder.decode(&block, &mut Fields::new(1000));
        }
    }

    #[test]
    fn no_string_panics(text: Vec<u8>) {
        let _ = huffman::decode(&text, &mut Vec::new());
    }

    #[test]
    fn what_is_encoded_is_decoded(authority: Vec<u8>, value: Vec<u8>, status in 100_u16..1000) {
        let mut block = vec![encoder::NO_TABLE];
        encoder::connect(&mut block, &authority);
        encoder::field(&mut block, "name", &value);
        encoder::status(&mut block, status);
        let mut fields = Fields::new(1 << 20);
        Decoder::new().decode(&block, &mut fields).unwrap();
        let status = status.to_string();
        let expect = [
            (&b":method"[..], &b"CONNECT"[..]),
            (b":authority", &authority),
            (b"name", &value),
            (b":status", status.as_bytes()),
        ];
        prop_assert!(fields.iter().eq(expect));
    }
}
