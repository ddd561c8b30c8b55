use crate::abi;
use crate::json;
use crate::line::Line;
use crate::names::{Metric, Names};
use crate::{Kind, Time};

/// The readings of one report. They lie in the runtime's frame and cost nothing until they are looked at.
#[derive(Clone, Copy)]
pub struct Readings<'a> {
    rec: &'a [u8],
    n: usize,
    names: &'a Names,
}

impl<'a> Readings<'a> {
    /// Takes a TELEMETRY record; `None` if it says that there are more readings than it has.
    #[inline(always)]
    pub(crate) fn new(rec: &'a [u8], names: &'a Names) -> Option<Self> {
        let n = abi::u32_at(rec, 16) as usize;
        if rec.len() < abi::TWO_WORDS || n > (rec.len() - abi::TWO_WORDS) / abi::READING_SIZE {
            return None;
        }
        Some(Readings { rec, n, names })
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.n
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.n == 0
    }

    /// Whether the device's clock is off by more than its domain allows: then times are those of the receipt.
    pub fn clock_off(&self) -> bool {
        abi::u32_at(self.rec, 20) & 1 != 0
    }

    /// The i-th reading.
    pub fn get(&self, i: usize) -> Option<Reading<'a>> {
        if i >= self.n {
            return None;
        }
        Some(self.at(i))
    }

    #[inline(always)]
    fn at(&self, i: usize) -> Reading<'a> {
        let raw = abi::part(self.rec, abi::TWO_WORDS + i * abi::READING_SIZE, abi::READING_SIZE);
        Reading { raw, rec: self.rec, names: self.names }
    }

    /// One after the other.
    #[inline(always)]
    pub fn iter(&self) -> Iter<'a> {
        Iter { rs: *self, i: 0 }
    }
}

impl<'a> IntoIterator for Readings<'a> {
    type Item = Reading<'a>;
    type IntoIter = Iter<'a>;
    #[inline(always)]
    fn into_iter(self) -> Iter<'a> {
        self.iter()
    }
}

impl<'a> IntoIterator for &Readings<'a> {
    type Item = Reading<'a>;
    type IntoIter = Iter<'a>;
    #[inline(always)]
    fn into_iter(self) -> Iter<'a> {
        self.iter()
    }
}

/// Walks over [`Readings`].
#[derive(Clone)]
pub struct Iter<'a> {
    rs: Readings<'a>,
    i: usize,
}

impl<'a> Iterator for Iter<'a> {
    type Item = Reading<'a>;

    #[inline(always)]
    fn next(&mut self) -> Option<Reading<'a>> {
        if self.i >= self.rs.n {
            return None;
        }
        self.i += 1;
        Some(self.rs.at(self.i - 1))
    }
}

/// One value of one metric.
#[derive(Clone, Copy)]
pub struct Reading<'a> {
    raw: &'a [u8], // 24 bytes
    rec: &'a [u8],
    names: &'a Names,
}

impl<'a> Reading<'a> {
    /// Whether it is of this metric. Two numbers are compared, not two texts.
    #[inline(always)]
    pub fn is(&self, m: Metric) -> bool {
        let id = abi::u32_at(self.raw, 0);
        id != 0 && id == self.names.id(m)
    }

    /// The metric's name.
    pub fn metric(&self) -> &'a str {
        self.names.lookup(abi::u32_at(self.raw, 0))
    }

    /// The unit (SenML), "" if it has none.
    pub fn unit(&self) -> &'a str {
        self.names.lookup(u32::from(abi::u16_at(self.raw, 4)))
    }

    /// What the value is.
    #[inline(always)]
    pub fn kind(&self) -> Kind {
        match self.raw.get(6) {
            Some(1) => Kind::Number,
            Some(2) => Kind::Boolean,
            Some(3) => Kind::Text,
            Some(4) => Kind::Data,
            _ => Kind::Unknown,
        }
    }

    /// When it was measured.
    #[inline(always)]
    pub fn time(&self) -> Time {
        abi::u64_at(self.raw, 8) as Time
    }

    /// The value, if it is a number.
    #[inline(always)]
    pub fn number(&self) -> Option<f64> {
        if self.raw.get(6) != Some(&1) {
            return None;
        }
        Some(f64::from_bits(abi::u64_at(self.raw, 16)))
    }

    /// The value, if it is a boolean.
    #[inline(always)]
    pub fn boolean(&self) -> Option<bool> {
        if self.raw.get(6) != Some(&2) {
            return None;
        }
        Some(f64::from_bits(abi::u64_at(self.raw, 16)) != 0.0)
    }

    /// The value, if it is a text.
    pub fn text(&self) -> Option<&'a str> {
        if self.kind() != Kind::Text {
            return None;
        }
        Some(abi::text(self.bytes()))
    }

    /// The bytes of a text or of data.
    pub fn bytes(&self) -> &'a [u8] {
        if !matches!(self.kind(), Kind::Text | Kind::Data) {
            return &[];
        }
        abi::part(self.rec, abi::u32_at(self.raw, 16) as usize, abi::u32_at(self.raw, 20) as usize)
    }
}

/// A payload that the runtime doesn't decode.
#[derive(Clone, Copy, Debug)]
pub struct Raw<'a> {
    /// Its content format, as in CoAP; 42 is octets.
    pub format: u16,
    /// Its bytes.
    pub payload: &'a [u8],
}

/// What came of a command.
#[derive(Clone, Copy, Debug)]
pub struct CommandResult<'a> {
    /// The command's id, as the runtime made it: the number of the input that sent it, and which of its commands it was.
    pub id: &'a str,
    /// Whether the deadline passed without an answer; then there is no payload.
    pub timed_out: bool,
    /// The content format of the payload, as in CoAP.
    pub format: u16,
    /// The device's answer.
    pub payload: &'a [u8],
}

/// What happened to a device's registration.
#[derive(Clone, Copy)]
pub struct Lifecycle<'a> {
    pub(crate) json: &'a [u8],
}

impl<'a> Lifecycle<'a> {
    fn get(&self, key: &str) -> &'a str {
        match json::member(self.json, key).and_then(|(_, v)| json::string(v)) {
            Some(q) => abi::text(q.raw), // ids need no escapes
            None => "",
        }
    }

    /// "registered", or "changed" if it is its domain or its labels that changed.
    pub fn event(&self) -> &'a str {
        self.get("event")
    }

    /// The device's domain.
    pub fn domain(&self) -> &'a str {
        self.get("domain")
    }

    /// The domain before, "" if it is the same.
    pub fn was(&self) -> &'a str {
        self.get("was")
    }

    /// A label's value, "" if there is no such label.
    pub fn label(&self, key: &str) -> Line<256> {
        let mut line = Line::new();
        let labels = json::member(self.json, "labels").map_or(&[][..], |(_, v)| v);
        if let Some(q) = json::member(labels, key).and_then(|(_, v)| json::string(v)) {
            let mut text = [0; 1536]; // six bytes of an escape for one that is left
            let n = q.write(&mut text).min(text.len());
            line.push(abi::text(abi::part(&text, 0, n)));
        }
        line
    }

    /// All of it, a JSON object.
    pub fn json(&self) -> &'a str {
        abi::text(self.json)
    }
}
