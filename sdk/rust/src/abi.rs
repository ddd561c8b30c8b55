//! The numbers of ABI v1 (api/plugin-abi.md), and reads and writes at offsets that never panic: what lies outside reads
//! as zero and is not written. Lengths are checked before; this is the second line of defence, and keeps the code of
//! panics out of modules.

pub const NAME: u16 = 1;
pub const FORGET: u16 = 2;
pub const CONFIG: u16 = 3;
pub const BATCH: u16 = 4;
pub const DEVICE: u16 = 5;
pub const TELEMETRY: u16 = 6;
pub const RAW: u16 = 7;
pub const TIMER: u16 = 8;
pub const RESULT: u16 = 9;
pub const LIFECYCLE: u16 = 10;
/// The last kind that is counted as an input if it is unknown; notes are above.
pub const INPUT_LAST: u16 = 127;
pub const MIGRATE: u16 = 128;
pub const CONFIGURED: u16 = 129;

pub const GROUP: u16 = 256;
pub const STATE: u16 = 257;
pub const ALERT: u16 = 258;
pub const READING: u16 = 259;
pub const SET: u16 = 260;
pub const LOG: u16 = 261;
pub const ERROR: u16 = 262;
pub const COMMAND: u16 = 263;
pub const PUBLISH: u16 = 264;

pub const FLAG_RAISE: u16 = 1;
pub const FLAG_UPDATE: u16 = 2;
pub const FLAG_ONE_INPUT: u16 = 1; // of ERROR
pub const FLAG_TIMED_OUT: u16 = 1; // of RESULT

pub const HEADER_SIZE: usize = 8;
pub const READING_SIZE: usize = 24;
/// Of DEVICE, TELEMETRY, RAW, RESULT and BATCH: two words behind the header.
pub const TWO_WORDS: usize = HEADER_SIZE + 16;
/// Of TIMER, LIFECYCLE and MIGRATE: one word behind the header.
pub const ONE_WORD: usize = HEADER_SIZE + 8;
/// Of ALERT and READING.
pub const THREE_WORDS: usize = HEADER_SIZE + 24;

#[inline(always)]
pub const fn align(n: usize) -> usize {
    (n + 7) & !7
}

#[inline(always)]
pub fn u16_at(b: &[u8], at: usize) -> u16 {
    match b.get(at..at.wrapping_add(2)) {
        Some(s) => u16::from_le_bytes([s[0], s[1]]),
        None => 0,
    }
}

#[inline(always)]
pub fn u32_at(b: &[u8], at: usize) -> u32 {
    match b.get(at..at.wrapping_add(4)) {
        Some(s) => u32::from_le_bytes([s[0], s[1], s[2], s[3]]),
        None => 0,
    }
}

#[inline(always)]
pub fn u64_at(b: &[u8], at: usize) -> u64 {
    match b.get(at..at.wrapping_add(8)) {
        Some(s) => u64::from_le_bytes([s[0], s[1], s[2], s[3], s[4], s[5], s[6], s[7]]),
        None => 0,
    }
}

#[inline(always)]
pub fn put_u32(b: &mut [u8], at: usize, v: u32) {
    put(b, at, &v.to_le_bytes());
}

#[inline(always)]
pub fn put_u64(b: &mut [u8], at: usize, v: u64) {
    put(b, at, &v.to_le_bytes());
}

/// Writes bytes and returns where they end.
#[inline(always)]
pub fn put(b: &mut [u8], at: usize, v: &[u8]) -> usize {
    let end = at.wrapping_add(v.len());
    if let Some(s) = b.get_mut(at..end) {
        if s.len() == v.len() {
            s.copy_from_slice(v); // which the compiler sees is no panic
        }
    }
    end
}

/// The part of a record from `at`, `n` bytes long; empty if it isn't all there.
#[inline(always)]
pub fn part(b: &[u8], at: usize, n: usize) -> &[u8] {
    b.get(at..at.wrapping_add(n)).unwrap_or(&[])
}

/// A text that the host wrote; it writes UTF-8.
#[inline(never)]
pub fn text(b: &[u8]) -> &str {
    core::str::from_utf8(b).unwrap_or("")
}
