use core::fmt;

/// A short text on the stack, for what an alert or a log line says. What is too long is cut.
///
/// ```
/// let mut text = dunlin::Line::<64>::new();
/// text.push("warmer than ").fixed(8.25, 1).push(" °C");
/// assert_eq!(text.as_str(), "warmer than 8.3 °C");
/// ```
///
/// `write!` works too, and makes the module some kilobytes larger.
#[derive(Clone, Copy)]
pub struct Line<const N: usize> {
    bytes: [u8; N],
    len: usize,
}

impl<const N: usize> Line<N> {
    /// An empty line.
    pub const fn new() -> Self {
        Line { bytes: [0; N], len: 0 }
    }

    /// What it says.
    pub fn as_str(&self) -> &str {
        crate::abi::text(self.bytes.get(..self.len).unwrap_or(&[]))
    }

    /// Appends a text, as much of it as fits.
    pub fn push(&mut self, s: &str) -> &mut Self {
        push(&mut self.bytes, &mut self.len, s);
        self
    }

    /// Appends a whole number.
    pub fn int(&mut self, v: i64) -> &mut Self {
        if v < 0 {
            self.push("-");
        }
        self.digits(v.unsigned_abs(), 1)
    }

    /// Appends a number with so many decimals, at most 9; halves are rounded away from zero.
    pub fn fixed(&mut self, v: f64, decimals: u32) -> &mut Self {
        if v.is_nan() {
            return self.push("NaN");
        }
        let scale = 10u64.pow(decimals.min(9));
        let size = if v < 0.0 { -v } else { v } * scale as f64 + 0.5;
        if size >= 1.8e19 {
            return self.push(if v < 0.0 { "-huge" } else { "huge" });
        }
        let n = size as u64;
        if v < 0.0 && n > 0 {
            self.push("-");
        }
        self.digits(n / scale, 1);
        if decimals > 0 {
            self.push(".").digits(n % scale, decimals.min(9) as usize);
        }
        self
    }

    fn digits(&mut self, v: u64, at_least: usize) -> &mut Self {
        digits(&mut self.bytes, &mut self.len, v, at_least);
        self
    }
}

// Lines of all sizes share these.

#[inline(never)]
fn push(bytes: &mut [u8], len: &mut usize, s: &str) {
    let mut n = s.len().min(bytes.len() - *len);
    while !s.is_char_boundary(n) {
        n -= 1;
    }
    *len = crate::abi::put(bytes, *len, s.as_bytes().get(..n).unwrap_or(&[]));
}

#[inline(never)]
fn digits(bytes: &mut [u8], len: &mut usize, mut v: u64, at_least: usize) {
    let mut text = [b'0'; 20];
    let mut at = text.len();
    while v > 0 || text.len() - at < at_least {
        at = at.wrapping_sub(1);
        if let Some(d) = text.get_mut(at) {
            *d = b'0' + (v % 10) as u8;
        }
        v /= 10;
    }
    push(bytes, len, crate::abi::text(text.get(at..).unwrap_or(&[])));
}

impl<const N: usize> Default for Line<N> {
    fn default() -> Self {
        Line::new()
    }
}

impl<const N: usize> fmt::Write for Line<N> {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        self.push(s);
        Ok(())
    }
}

impl<const N: usize> fmt::Display for Line<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl<const N: usize> fmt::Debug for Line<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

impl<const N: usize> AsRef<str> for Line<N> {
    fn as_ref(&self) -> &str {
        self.as_str()
    }
}
