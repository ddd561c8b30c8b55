use crate::abi;
use crate::buf::Buf;

const WATCH_MAX: usize = 64;
const NAMES_MAX: u32 = 65_536;

/// A metric that a plugin looks out for: see [`Config::metric`](crate::Config::metric).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Metric(u8);

impl Metric {
    pub(crate) const NONE: Metric = Metric(WATCH_MAX as u8);
}

/// What the runtime's numbers for names mean.
pub(crate) struct Names {
    bytes: Buf,
    spans: Buf,                // u32 offset, u32 length for each id
    count: u32,                // ids known, with 0, the empty name
    ids: [u32; WATCH_MAX + 1], // of the watched; 0: not spoken of yet. The last is Metric::NONE
    watched: [&'static str; WATCH_MAX],
    watching: usize,
}

impl Names {
    pub const fn new() -> Names {
        Names { bytes: Buf::new(), spans: Buf::new(), count: 1, ids: [0; WATCH_MAX + 1], watched: [""; WATCH_MAX], watching: 0 }
    }

    pub fn watch(&mut self, name: &'static str) -> Option<Metric> {
        let n = self.watching;
        *self.watched.get_mut(n)? = name;
        self.watching = n + 1;
        Some(Metric(n as u8))
    }

    pub fn watched(&self, m: Metric) -> &'static str {
        self.watched.get(usize::from(m.0)).copied().unwrap_or("")
    }

    #[inline(always)]
    pub fn id(&self, m: Metric) -> u32 {
        self.ids.get(usize::from(m.0)).copied().unwrap_or(0)
    }

    /// Takes a NAME record. Ids count up from 1; another one would be a host of another kind, and is not taken.
    /// False says that the record is none.
    #[inline(never)]
    pub fn define(&mut self, rec: &[u8]) -> bool {
        let (id, name) = match rec.get(12..) {
            Some(name) => (abi::u32_at(rec, 8), name),
            None => return false,
        };
        if id != self.count || id >= NAMES_MAX {
            return true;
        }
        let mut span = [0; 8];
        abi::put_u32(&mut span, 0, self.bytes.len() as u32);
        abi::put_u32(&mut span, 4, name.len() as u32);
        if !self.bytes.push(name) || !self.spans.push(&span) {
            return true; // no memory: the ids that follow are not taken either, and read as ""
        }
        self.count += 1;
        for (w, at) in self.watched.iter().take(self.watching).zip(&mut self.ids) {
            if w.as_bytes() == name {
                *at = id;
            }
        }
        true
    }

    pub fn forget(&mut self) {
        self.bytes.truncate(0);
        self.spans.truncate(0);
        self.count = 1;
        self.ids = [0; WATCH_MAX + 1];
    }

    pub fn lookup(&self, id: u32) -> &str {
        if id == 0 || id >= self.count {
            return "";
        }
        let at = (id as usize - 1) * 8;
        let spans = self.spans.bytes();
        abi::text(abi::part(self.bytes.bytes(), abi::u32_at(spans, at) as usize, abi::u32_at(spans, at + 4) as usize))
    }
}
