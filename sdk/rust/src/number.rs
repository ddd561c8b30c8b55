//! Numbers of JSON, exactly. core's parser does the same with 10 KB of tables, half of what a plugin should weigh.

/// So many digits a number may have.
const DIGITS_MAX: usize = 100;
/// 10^430, the largest divisor, shifted by 64 bits.
const LIMBS: usize = 50;

/// The nearest double of a JSON number. `None`: it is no number, or too large, or has more than 100 digits.
#[inline(never)]
pub(crate) fn parse(s: &[u8]) -> Option<f64> {
    let d = Decimal::read(s)?;
    let v = if d.mantissa < 1 << 53 && d.digits <= 19 && -22 <= d.exp && d.exp <= 22 {
        // Both are exact as doubles, so that one operation rounds once.
        let mut p = 1.0;
        for _ in 0..d.exp.unsigned_abs() {
            p *= 10.0;
        }
        if d.exp < 0 {
            d.mantissa as f64 / p
        } else {
            d.mantissa as f64 * p
        }
    } else {
        d.slow(s)?
    };
    Some(if d.negative { -v } else { v })
}

struct Decimal {
    negative: bool,
    mantissa: u64, // wrapped beyond 19 digits
    digits: usize, // without leading zeros
    exp: i32,      // of ten
}

impl Decimal {
    fn read(s: &[u8]) -> Option<Decimal> {
        let mut d = Decimal { negative: false, mantissa: 0, digits: 0, exp: 0 };
        let mut i = 0;
        let at = |i: usize| s.get(i).copied().unwrap_or(0);
        if at(i) == b'-' {
            d.negative = true;
            i += 1;
        }
        let first = i;
        while at(i).is_ascii_digit() {
            d.digit(at(i));
            i += 1;
        }
        if i == first || at(first) == b'0' && i > first + 1 {
            return None;
        }
        if at(i) == b'.' {
            i += 1;
            let first = i;
            while at(i).is_ascii_digit() {
                d.digit(at(i));
                d.exp -= 1;
                i += 1;
            }
            if i == first {
                return None;
            }
        }
        if at(i) | 0x20 == b'e' {
            i += 1;
            let minus = at(i) == b'-';
            if minus || at(i) == b'+' {
                i += 1;
            }
            let first = i;
            let mut e = 0i32;
            while at(i).is_ascii_digit() {
                e = (e * 10 + i32::from(at(i) - b'0')).min(100_000);
                i += 1;
            }
            if i == first {
                return None;
            }
            d.exp += if minus { -e } else { e };
        }
        if i == s.len() && d.digits <= DIGITS_MAX && s.len() < 10_000 {
            Some(d)
        } else {
            None
        }
    }

    fn digit(&mut self, c: u8) {
        if self.digits > 0 || c != b'0' {
            self.digits += 1;
            self.mantissa = self.mantissa.wrapping_mul(10).wrapping_add(u64::from(c - b'0'));
        }
    }

    /// Divides big numbers, bit by bit.
    #[cold]
    #[inline(never)]
    fn slow(&self, s: &[u8]) -> Option<f64> {
        let magnitude = self.digits as i32 + self.exp;
        if self.digits == 0 || magnitude < -330 {
            return Some(0.0);
        }
        if magnitude > 310 {
            return None;
        }
        let (mut num, mut den) = (Big::new(0), Big::new(1));
        for &c in s {
            match c {
                b'0'..=b'9' => num.mul_add(10, u32::from(c - b'0')),
                b'e' | b'E' => break,
                _ => {}
            }
        }
        for _ in 0..self.exp.unsigned_abs() {
            if self.exp < 0 {
                den.mul_add(10, 0);
            } else {
                num.mul_add(10, 0);
            }
        }
        // 2^61 < num × 2^shift / den < 2^63
        let shift = 62 - (num.bits() - den.bits());
        if shift >= 0 {
            num.shl(shift);
        } else {
            den.shl(-shift);
        }
        den.shl(63);
        let mut q = 0u64;
        for _ in 0..64 {
            q <<= 1;
            if num.take(&den) {
                q |= 1;
            }
            den.halve();
        }
        round(q, num.bits() > 0, -shift)
    }
}

/// The double nearest to (q, and a little more if sticky) × 2^exp.
fn round(q: u64, sticky: bool, exp: i32) -> Option<f64> {
    let bits = 64 - q.leading_zeros() as i32;
    let mut top = bits - 1 + exp;
    let precision = if top >= -1022 { 53 } else { 53 + top + 1022 };
    let cut = bits - precision;
    if cut > 63 {
        return Some(0.0); // below half of the smallest, or that half: which is even
    }
    let (mut m, rest, half) = (q >> cut, q & ((1 << cut) - 1), 1u64 << (cut - 1));
    if rest > half || rest == half && (sticky || m & 1 == 1) {
        m += 1;
    }
    if top < -1022 {
        return Some(f64::from_bits(m));
    }
    if m == 1 << 53 {
        m >>= 1;
        top += 1;
    }
    if top > 1023 {
        return None;
    }
    Some(f64::from_bits(((top + 1023) as u64) << 52 | m & ((1 << 52) - 1)))
}

/// A big number. Its loops run to `n`, which the compiler doesn't know, or it would write each of them out.
struct Big {
    limbs: [u32; LIMBS],
    n: usize,
}

impl Big {
    fn new(v: u32) -> Big {
        let mut b = Big { limbs: [0; LIMBS], n: 1 };
        b.limbs[0] = v;
        b
    }

    fn used(&mut self) -> &mut [u32] {
        self.limbs.get_mut(..self.n).unwrap_or(&mut [])
    }

    fn limb(&self, i: usize) -> u32 {
        self.limbs.get(i).copied().unwrap_or(0)
    }

    #[inline(never)]
    fn mul_add(&mut self, by: u32, plus: u32) {
        let mut carry = u64::from(plus);
        for l in self.used() {
            let v = u64::from(*l) * u64::from(by) + carry;
            *l = v as u32;
            carry = v >> 32;
        }
        if carry > 0 {
            if let Some(l) = self.limbs.get_mut(self.n) {
                *l = carry as u32;
                self.n += 1;
            }
        }
    }

    fn bits(&self) -> i32 {
        let mut i = self.n;
        while i > 0 {
            i -= 1;
            if self.limb(i) != 0 {
                return (32 * i + 32) as i32 - self.limb(i).leading_zeros() as i32;
            }
        }
        0
    }

    fn shl(&mut self, n: i32) {
        for _ in 0..n {
            self.mul_add(2, 0);
        }
    }

    #[inline(never)]
    fn halve(&mut self) {
        let mut carry = 0;
        for l in self.used().iter_mut().rev() {
            let next = *l << 31;
            *l = *l >> 1 | carry;
            carry = next;
        }
    }

    /// Subtracts other if it is not larger.
    #[inline(never)]
    fn take(&mut self, other: &Big) -> bool {
        let n = self.n.max(other.n);
        let mut i = n;
        while i > 0 {
            i -= 1;
            if self.limb(i) < other.limb(i) {
                return false;
            }
            if self.limb(i) > other.limb(i) {
                break;
            }
        }
        let mut borrow = 0;
        for (i, l) in self.used().iter_mut().enumerate() {
            let v = i64::from(*l) - i64::from(other.limb(i)) + borrow;
            *l = v as u32;
            borrow = v >> 32;
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::parse;
    use std::format;
    use std::string::String;

    #[test]
    fn the_same_as_the_standard_library() {
        let mut x = 0x2545_f491_4f6c_dd1du64;
        let mut next = move || {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            x
        };
        for i in 0..20_000 {
            let s: String = match i % 4 {
                0 => format!("{:e}", f64::from_bits(next())),
                1 => format!("{}.{}e{}", next(), next(), next() as i8),
                2 => format!("-{}e{}", next() >> (next() % 64), (next() % 700) as i64 - 350),
                _ => format!("{}", f64::from_bits(next() >> 12 | 0x3fe << 52)),
            };
            let want = s.parse::<f64>().unwrap();
            let got = parse(s.as_bytes());
            if want.is_finite() {
                assert_eq!(got.map(f64::to_bits), Some(want.to_bits()), "{}", s);
            } else {
                assert_eq!(got, None, "{}", s);
            }
        }
    }

    #[test]
    fn edges() {
        for s in [
            "0",
            "-0",
            "0.0e5",
            "1e22",
            "1e23",
            "9007199254740993",
            "5e-324",
            "2.4703282292062327e-324",
            "2.4703282292062328e-324",
            "2.2250738585072011e-308",
            "2.2250738585072014e-308",
            "1.7976931348623157e308",
            "1.7976931348623158e308",
            "0.1",
            "1e-400",
            "4.35",
            "123456789012345678901234567890",
            "9007199254740992.5000000000000000000000001",
        ] {
            assert_eq!(parse(s.as_bytes()).map(f64::to_bits), Some(s.parse::<f64>().unwrap().to_bits()), "{}", s);
        }
        for s in ["", "-", "01", "1.", ".5", "1e", "1e+", "+1", "0x10", "1_0", "NaN", "inf", "1 ", "1.7976931348623159e308", "1e999999999"]
        {
            assert_eq!(parse(s.as_bytes()), None, "{}", s);
        }
    }
}
