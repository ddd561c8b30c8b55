use crate::abi;
use crate::out::Out;
use crate::Time;

/// What a plugin remembers of a device. The runtime keeps it as bytes, which come with the device's inputs and are
/// committed with what the plugin made of them.
///
/// ```
/// use dunlin::{State, StateReader, StateWriter, Time};
///
/// struct Seen { last: Time, count: u64 }
///
/// impl State for Seen {
///     fn load(r: &mut StateReader<'_>) -> Self {
///         Seen { last: r.time(), count: r.uint() }
///     }
///     fn save(&self, w: &mut StateWriter<'_>) {
///         w.time(self.last);
///         w.uint(self.count);
///     }
/// }
/// ```
///
/// The bytes are written to disk whenever they change: keep them to tens. Values of the same order in both, numbers of a
/// fixed size, and new ones last make the state readable by the versions to come.
pub trait State: Sized {
    /// Whether there is a state at all: not for `()`.
    const KEPT: bool = true;

    /// Reads it. For a device that is new to the plugin every value is zero.
    fn load(r: &mut StateReader<'_>) -> Self;

    /// Writes it. A device that has no state gets none while what is written is what is written of a new device.
    fn save(&self, w: &mut StateWriter<'_>);
}

/// No state.
impl State for () {
    const KEPT: bool = false;
    fn load(_: &mut StateReader<'_>) -> Self {}
    fn save(&self, _: &mut StateWriter<'_>) {}
}

/// The bytes as they are.
#[cfg(feature = "alloc")]
impl State for alloc::vec::Vec<u8> {
    fn load(r: &mut StateReader<'_>) -> Self {
        r.rest().to_vec()
    }
    fn save(&self, w: &mut StateWriter<'_>) {
        w.bytes(self);
    }
}

/// Reads what [`StateWriter`] wrote, in the same order. After the end every value is zero.
pub struct StateReader<'a> {
    b: &'a [u8],
    at: usize,
    short: bool,
}

impl<'a> StateReader<'a> {
    pub(crate) fn new(b: &'a [u8]) -> Self {
        StateReader { b, at: 0, short: false }
    }

    #[inline(always)]
    fn take(&mut self, n: usize) -> &'a [u8] {
        match self.b.get(self.at..self.at.wrapping_add(n)) {
            Some(s) => {
                self.at += n;
                s
            }
            None => {
                self.at = self.b.len();
                self.short = true;
                &[]
            }
        }
    }

    /// Whether all values so far were there.
    pub fn ok(&self) -> bool {
        !self.short
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.at >= self.b.len()
    }

    /// Reads a byte.
    #[inline(always)]
    pub fn byte(&mut self) -> u8 {
        self.take(1).first().copied().unwrap_or(0)
    }

    /// Reads a bool.
    #[inline(always)]
    pub fn boolean(&mut self) -> bool {
        self.byte() != 0
    }

    /// Reads a moment.
    #[inline(always)]
    pub fn time(&mut self) -> Time {
        abi::u64_at(self.take(8), 0) as Time
    }

    /// Reads an f64.
    #[inline(always)]
    pub fn float(&mut self) -> f64 {
        f64::from_bits(abi::u64_at(self.take(8), 0))
    }

    /// Reads an f32.
    #[inline(always)]
    pub fn float32(&mut self) -> f32 {
        f32::from_bits(abi::u32_at(self.take(4), 0))
    }

    /// Reads an unsigned number.
    pub fn uint(&mut self) -> u64 {
        let (mut v, mut shift) = (0, 0);
        loop {
            let b = self.byte();
            if shift == 63 && b > 1 {
                self.at = self.b.len();
                self.short = true;
                return 0;
            }
            v |= u64::from(b & 0x7f) << shift;
            if b < 0x80 {
                return v;
            }
            shift += 7;
        }
    }

    /// Reads a signed number.
    pub fn int(&mut self) -> i64 {
        let v = self.uint();
        (v >> 1) as i64 ^ -((v & 1) as i64)
    }

    /// Reads a text.
    pub fn text(&mut self) -> &'a str {
        let n = self.uint();
        if n > (self.b.len() - self.at) as u64 {
            self.at = self.b.len();
            self.short = true;
            return "";
        }
        abi::text(self.take(n as usize))
    }

    /// Reads so many bytes; none if there are fewer.
    pub fn bytes(&mut self, n: usize) -> &'a [u8] {
        self.take(n)
    }

    /// Reads all that is left.
    pub fn rest(&mut self) -> &'a [u8] {
        let n = self.b.len() - self.at;
        self.take(n)
    }
}

/// Writes a device's state.
pub struct StateWriter<'a> {
    pub(crate) out: &'a mut Out,
}

impl StateWriter<'_> {
    /// Writes bytes as they are; their number is not written.
    #[inline(always)]
    pub fn bytes(&mut self, v: &[u8]) {
        abi::put(self.out.extend(v.len()), 0, v);
    }

    /// Writes a byte.
    #[inline(always)]
    pub fn byte(&mut self, v: u8) {
        self.bytes(&[v]);
    }

    /// Writes a bool: 1 byte.
    #[inline(always)]
    pub fn boolean(&mut self, v: bool) {
        self.byte(u8::from(v));
    }

    /// Writes a moment: 8 bytes.
    #[inline(always)]
    pub fn time(&mut self, v: Time) {
        self.bytes(&v.to_le_bytes());
    }

    /// Writes an f64: 8 bytes.
    #[inline(always)]
    pub fn float(&mut self, v: f64) {
        self.bytes(&v.to_bits().to_le_bytes());
    }

    /// Writes an f32: 4 bytes.
    #[inline(always)]
    pub fn float32(&mut self, v: f32) {
        self.bytes(&v.to_bits().to_le_bytes());
    }

    /// Writes an unsigned number: 1 byte below 128, at most 10.
    pub fn uint(&mut self, mut v: u64) {
        while v >= 0x80 {
            self.byte(v as u8 | 0x80);
            v >>= 7;
        }
        self.byte(v as u8);
    }

    /// Writes a signed number: 1 byte from −64 to 63, at most 10.
    pub fn int(&mut self, v: i64) {
        self.uint((v << 1 ^ v >> 63) as u64);
    }

    /// Writes a text: its length and its bytes.
    pub fn text(&mut self, v: &str) {
        self.uint(v.len() as u64);
        self.bytes(v.as_bytes());
    }
}
