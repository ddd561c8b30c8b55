//! The four examples, natively: against ../vectors, and against frames that nobody would send.

#![allow(missing_docs)]

use dunlin::{Guest, Plugin};
use std::fs;

#[path = "../examples/absence/src/lib.rs"]
mod absence;
#[path = "../examples/decoder/src/lib.rs"]
mod decoder;
#[path = "../examples/rate/src/lib.rs"]
mod rate;
#[path = "../examples/threshold/src/lib.rs"]
mod threshold;

#[derive(Clone, Debug, Default)]
struct Call {
    what: String,
    init: bool,
    carry: bool,
    error: bool,
    frame: Vec<u8>,
    out: Vec<u8>,
}

/// The calls of all files for an example. The files are made by a program: their strings have simple escapes only, and
/// each member of a call stands on a line of its own.
fn files(example: &str) -> Vec<(String, Vec<Call>)> {
    let mut list = Vec::new();
    for entry in fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../vectors")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().map_or(true, |e| e != "json") {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        if !text.contains(&format!("\"example\": \"{}\"", example)) {
            continue;
        }
        let mut calls: Vec<Call> = Vec::new();
        for line in text[text.find("\"calls\"").unwrap()..].lines() {
            let line = line.trim().trim_end_matches(',');
            if line == "{" {
                calls.push(Call::default());
            }
            let (key, value) = match line.split_once(": ") {
                Some((k, v)) if !calls.is_empty() => (k.trim_matches('"'), v),
                _ => continue,
            };
            let call = calls.last_mut().unwrap();
            let text = value.trim_matches('"');
            match key {
                "what" => call.what = text.into(),
                "init" => call.init = value == "true",
                "carry" => call.carry = value == "true",
                "error" => call.error = value == "true",
                "in" => call.frame = unhex(text),
                "out" => call.out = unhex(text),
                _ => panic!("{}: a call has {}", path.display(), key),
            }
        }
        assert!(calls[0].init && calls.len() > 1, "{}", path.display());
        list.push((path.file_name().unwrap().to_string_lossy().into_owned(), calls));
    }
    assert!(!list.is_empty(), "no vectors of {}", example);
    list
}

fn unhex(s: &str) -> Vec<u8> {
    (0..s.len()).step_by(2).map(|i| u8::from_str_radix(&s[i..i + 2], 16).unwrap()).collect()
}

fn hex(b: &[u8]) -> String {
    b.iter().map(|c| format!("{:02x}", c)).collect()
}

fn call<P: Plugin>(guest: &mut Guest<P>, c: &Call) -> Result<Vec<u8>, String> {
    let got = if c.init { guest.init(&c.frame) } else { guest.process(&c.frame) };
    got.map(<[u8]>::to_vec).map_err(String::from)
}

fn check<P: Plugin>(guest: &mut Guest<P>, c: &Call, on: &str) {
    let got = call(guest, c).map(|b| hex(&b));
    if c.error {
        assert_eq!(got, Err("bad frame".into()), "{}: {}", on, c.what);
    } else {
        assert_eq!(got, Ok(hex(&c.out)), "{}: {}", on, c.what);
    }
}

fn play<P: Plugin>(example: &str) {
    for (name, calls) in files(example) {
        let mut used = Guest::<P>::new();
        for c in &calls {
            check(&mut used, c, &format!("{}, used", name));
        }
        for i in 1..calls.len() {
            let mut new = Guest::<P>::new();
            check(&mut new, &calls[0], &name);
            let first = (1..=i).rev().find(|&k| !calls[k].carry).unwrap();
            for c in &calls[first..=i] {
                check(&mut new, c, &format!("{}, new", name));
            }
        }
        mutate::<P>(&name, &calls);
    }
}

/// Frames with bytes that are wrong, missing and lying: an answer that is a frame, or an error, but no panic. And the
/// instance goes on as if nothing had been.
fn mutate<P: Plugin>(name: &str, calls: &[Call]) {
    let mut x = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = move |n: usize| {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        (x >> 11) as usize % n.max(1)
    };
    let lies = [0u32, 1, 7, 8, 9, 0x7fff_ffff, 0x8000_0000, 0xffff_fff8, 0xffff_ffff, 24, 65_536];
    let (mut refused, mut taken) = (0, 0);
    for round in 0..20_000 {
        let mut c = calls[next(calls.len())].clone();
        for _ in 0..=next(3) {
            let n = c.frame.len();
            let at = next(n);
            match next(5) {
                0 => c.frame.truncate(at),
                1 if at + 4 <= n => c.frame[at & !3..(at & !3) + 4].copy_from_slice(&lies[next(lies.len())].to_le_bytes()),
                2 if at < n => c.frame[at] = next(256) as u8,
                3 if at < n => c.frame[at] ^= 1 << next(8),
                4 if at < n => {
                    let (a, b) = (at & !7, next(n) & !7);
                    let piece = c.frame[a.min(b)..a.max(b)].to_vec();
                    c.frame.extend(piece);
                }
                _ => {}
            }
        }
        let mut guest = Guest::<P>::new();
        let _ = call(&mut guest, &calls[0]);
        match call(&mut guest, &c) {
            Ok(out) => {
                taken += 1;
                frame(&out, &c.frame);
            }
            Err(why) => {
                refused += 1;
                assert!(!why.is_empty() && why.len() < 300, "{}", why);
            }
        }
        if !c.init && round % 10 == 0 {
            let good = &calls[1];
            let forget = [8, 0, 0, 0, 2, 0, 0, 0]; // as a host does after an error
            let mut again = good.clone();
            again.frame = [&forget[..], &good.frame].concat();
            check(&mut guest, &again, name);
        }
    }
    assert!(refused > 100 && taken > 100, "{}: {} refused, {} taken", name, refused, taken);
}

/// Whether an answer is a frame: lengths, paddings, kinds, and groups in order.
fn frame(out: &[u8], of: &[u8]) {
    let mut at = 0;
    let mut group = None;
    while at < out.len() {
        let n = u32::from_le_bytes([out[at], out[at + 1], out[at + 2], out[at + 3]]) as usize;
        let kind = u16::from_le_bytes([out[at + 4], out[at + 5]]);
        assert!(n >= 8 && at + n <= out.len() && (256..=264).contains(&kind), "{} of {}", hex(out), hex(of));
        if kind == 256 {
            let i = out[at + 8];
            assert!(Some(i) > group, "{}", hex(out));
            group = Some(i);
        } else {
            assert!(group.is_some() || kind == 261, "{}", hex(out));
        }
        let end = at + (n + 7) / 8 * 8;
        assert!(out[at + n..end].iter().all(|&b| b == 0), "{}", hex(out));
        at = end;
    }
    assert_eq!(at, out.len());
}

#[test]
fn threshold_plays_the_vectors() {
    play::<threshold::Threshold>("threshold");
}

#[test]
fn rate_plays_the_vectors() {
    play::<rate::Rate>("rate");
}

#[test]
fn absence_plays_the_vectors() {
    play::<absence::Absence>("absence");
}

#[test]
fn decoder_plays_the_vectors() {
    play::<decoder::Decoder>("decoder");
}
