//! A strict scanner of JSON: it walks, checks and copies nothing.

const DEPTH_MAX: usize = 16;

pub(crate) struct Scanner<'a> {
    pub s: &'a [u8],
    pub i: usize,
    /// Something was wrong at i.
    pub bad: bool,
}

/// A string between its quotes, with escapes as they stand.
#[derive(Clone, Copy)]
pub(crate) struct Quoted<'a> {
    pub raw: &'a [u8],
    pub escaped: bool,
}

impl<'a> Scanner<'a> {
    pub fn new(s: &'a [u8]) -> Self {
        Scanner { s, i: 0, bad: false }
    }

    #[inline(never)]
    pub fn peek(&self) -> u8 {
        self.s.get(self.i).copied().unwrap_or(0)
    }

    #[inline(never)]
    pub fn space(&mut self) {
        while matches!(self.peek(), b' ' | b'\t' | b'\n' | b'\r') {
            self.i += 1;
        }
    }

    #[inline(never)]
    fn want(&mut self, c: u8) -> bool {
        if self.bad || self.peek() != c {
            self.bad = true;
            return false;
        }
        self.i += 1;
        true
    }

    /// Steps into an object; `member` then returns one after the other.
    pub fn object(&mut self) -> Members {
        self.space();
        self.want(b'{');
        Members { first: true }
    }

    /// Walks one value of any kind and returns its text.
    pub fn value(&mut self) -> &'a [u8] {
        self.space();
        let start = self.i;
        self.skip(0);
        if self.bad {
            return &[];
        }
        self.s.get(start..self.i).unwrap_or(&[])
    }

    #[inline(never)]
    fn skip(&mut self, depth: usize) {
        if depth > DEPTH_MAX {
            self.bad = true;
            return;
        }
        match self.peek() {
            b'{' => {
                let mut m = self.object();
                while m.key(self).is_some() {
                    self.space();
                    self.skip(depth + 1);
                }
            }
            b'[' => {
                self.i += 1;
                self.space();
                if self.peek() == b']' {
                    self.i += 1;
                    return;
                }
                while !self.bad {
                    self.space();
                    self.skip(depth + 1);
                    self.space();
                    if self.peek() != b',' {
                        self.want(b']');
                        return;
                    }
                    self.i += 1;
                }
            }
            b'"' => {
                self.quoted();
            }
            b't' => self.word(b"true"),
            b'f' => self.word(b"false"),
            b'n' => self.word(b"null"),
            _ => {
                let start = self.i;
                while matches!(self.peek(), b'0'..=b'9' | b'+' | b'-' | b'.' | b'e' | b'E') {
                    self.i += 1;
                }
                if crate::number::parse(self.s.get(start..self.i).unwrap_or(&[])).is_none() {
                    self.i = start;
                    self.bad = true;
                }
            }
        }
    }

    #[inline(never)]
    fn word(&mut self, w: &[u8]) {
        if self.s.get(self.i..self.i + w.len()) == Some(w) {
            self.i += w.len();
        } else {
            self.bad = true;
        }
    }

    #[inline(never)]
    pub fn quoted(&mut self) -> Quoted<'a> {
        let mut q = Quoted { raw: &[], escaped: false };
        if !self.want(b'"') {
            return q;
        }
        let start = self.i;
        while self.peek() >= b' ' {
            match self.peek() {
                b'"' => {
                    q.raw = self.s.get(start..self.i).unwrap_or(&[]);
                    self.i += 1;
                    return q;
                }
                b'\\' => {
                    q.escaped = true;
                    self.i += 1;
                    let n = match self.peek() {
                        b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => 1,
                        b'u' if hex4(self.s, self.i + 1).is_some() => 5,
                        _ => break,
                    };
                    self.i += n;
                }
                _ => self.i += 1,
            }
        }
        self.bad = true;
        q
    }
}

/// Where a walk over an object stands.
pub(crate) struct Members {
    first: bool,
}

impl Members {
    /// Walks to the next member's value and returns its key; `None` behind the last, and if something is wrong.
    #[inline(never)]
    pub fn key<'a>(&mut self, s: &mut Scanner<'a>) -> Option<Quoted<'a>> {
        s.space();
        if !s.bad && s.peek() == b'}' && self.first {
            s.i += 1;
            return None;
        }
        if !self.first {
            if s.peek() != b',' {
                s.want(b'}');
                return None;
            }
            s.i += 1;
            s.space();
        }
        self.first = false;
        let key = s.quoted();
        s.space();
        s.want(b':');
        s.space();
        if s.bad {
            return None;
        }
        Some(key)
    }
}

#[inline(never)]
fn hex4(s: &[u8], at: usize) -> Option<u32> {
    let mut v = 0;
    for c in s.get(at..at + 4)? {
        v = v << 4 | (*c as char).to_digit(16)?;
    }
    Some(v)
}

impl Quoted<'_> {
    /// Hands out the text in pieces.
    #[inline(never)]
    fn pieces(&self, put: &mut dyn FnMut(&[u8])) {
        let mut i = 0;
        while let Some(&c) = self.raw.get(i) {
            if c != b'\\' {
                put(&[c]);
                i += 1;
                continue;
            }
            let e = self.raw.get(i + 1).copied().unwrap_or(0);
            i += 2;
            match e {
                b'b' => put(&[8]),
                b'f' => put(&[12]),
                b'n' => put(b"\n"),
                b'r' => put(b"\r"),
                b't' => put(b"\t"),
                b'u' => {
                    let mut v = hex4(self.raw, i).unwrap_or(0);
                    i += 4;
                    if v & 0xfc00 == 0xd800 && self.raw.get(i..i + 2) == Some(b"\\u") {
                        let low = hex4(self.raw, i + 2).unwrap_or(0);
                        i += 6;
                        if low & 0xfc00 == 0xdc00 {
                            v = 0x10000 + ((v - 0xd800) << 10) + (low - 0xdc00);
                        }
                    }
                    let c = char::from_u32(v).unwrap_or(char::REPLACEMENT_CHARACTER);
                    put(c.encode_utf8(&mut [0; 4]).as_bytes());
                }
                _ => put(&[e]),
            }
        }
    }

    #[inline(never)]
    pub fn is(&self, text: &str) -> bool {
        if !self.escaped {
            return self.raw == text.as_bytes();
        }
        let (mut rest, mut same) = (text.as_bytes(), true);
        self.pieces(&mut |p| match rest.strip_prefix(p) {
            Some(r) => rest = r,
            None => same = false,
        });
        same && rest.is_empty()
    }

    /// Writes the text to `out`, which must be as long as `raw`, and returns how long it is.
    #[inline(never)]
    pub fn write(&self, out: &mut [u8]) -> usize {
        let mut at = 0;
        self.pieces(&mut |p| at = crate::abi::put(out, at, p));
        at
    }
}

/// Whether all of the text is one object.
#[inline(never)]
pub(crate) fn check(s: &[u8]) -> Result<(), usize> {
    let mut sc = Scanner::new(s);
    let mut members = sc.object();
    while !sc.bad && members.key(&mut sc).is_some() {
        sc.value();
    }
    if !sc.bad {
        sc.space();
    }
    if sc.bad || sc.i != s.len() {
        return Err(sc.i);
    }
    Ok(())
}

/// The value of a member of an object, and which one it is.
#[inline(never)]
pub(crate) fn member<'a>(object: &'a [u8], key: &str) -> Option<(usize, &'a [u8])> {
    let mut s = Scanner::new(object);
    let mut members = s.object();
    let mut n = 0;
    while let Some(k) = members.key(&mut s) {
        let v = s.value();
        if s.bad {
            return None;
        }
        if k.is(key) {
            return Some((n, v));
        }
        n += 1;
    }
    None
}

/// A value that is a string.
#[inline(never)]
pub(crate) fn string(value: &[u8]) -> Option<Quoted<'_>> {
    let mut s = Scanner::new(value);
    let q = s.quoted();
    if s.bad || s.i != value.len() {
        return None;
    }
    Some(q)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strict() {
        for s in [r#"{}"#, r#" {"a" : [1, {"b":null}, "x\u00e9\"", true] , "c":-0.5e3}"#, "{\"\":[]}"] {
            assert_eq!(check(s.as_bytes()), Ok(()), "{}", s);
        }
        for (s, at) in [
            ("", 0),
            ("[]", 0),
            ("{", 1),
            ("{}x", 2),
            ("{\"a\"}", 4),
            ("{\"a\":}", 5),
            ("{\"a\":1,}", 7),
            ("{,}", 1),
            ("{\"a\":01}", 5),
            ("{\"a\":tru}", 5),
            ("{\"a\":[1,]}", 8),
            ("{\"a\":\"\\x\"}", 7),
            ("{\"a\":\"\\u12g4\"}", 7),
            ("{\"a\":\"\n\"}", 6),
            ("{\"a\" 1}", 5),
            ("{\"a\":1 \"b\":2}", 7),
            ("{a:1}", 1),
        ] {
            assert_eq!(check(s.as_bytes()), Err(at), "{}", s);
        }
        let deep = std::format!("{{\"a\":{}{}}}", "[".repeat(15), "]".repeat(15));
        assert_eq!(check(deep.as_bytes()), Ok(()));
        assert!(check("{\"a\":".repeat(10_000).as_bytes()).is_err());
    }

    #[test]
    fn members_and_escapes() {
        let s = br#"{"a":1,"k\u0065y":"x\n\ud83d\ude00\ud800y","n":{"key":2}}"#;
        let (n, v) = member(s, "key").unwrap();
        assert_eq!(n, 1);
        let q = string(v).unwrap();
        let mut out = [0; 64];
        let end = q.write(&mut out);
        assert_eq!(core::str::from_utf8(&out[..end]), Ok("x\n\u{1f600}\u{fffd}y"));
        assert!(end <= q.raw.len());
        assert!(q.is("x\n\u{1f600}\u{fffd}y") && !q.is("x\n") && !q.is("x\n\u{1f600}\u{fffd}yz"));
        assert!(member(s, "b").is_none());
    }
}
