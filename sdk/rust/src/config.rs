use crate::abi;
use crate::json;
use crate::line::Line;
use crate::names::{Metric, Names};
use crate::out::Out;
use crate::{Level, Severity, Time, HOUR, MINUTE, SECOND};

/// Why a plugin refuses its settings, or an input: a sentence for the person who made them.
///
/// ```
/// let refused: dunlin::Refused = "setting clear must not be above above".into();
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Refused(pub(crate) Line<192>);

impl Refused {
    /// What it says.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

impl From<&str> for Refused {
    fn from(why: &str) -> Refused {
        let mut line = Line::new();
        line.push(why);
        Refused(line)
    }
}

impl<const N: usize> From<Line<N>> for Refused {
    fn from(why: Line<N>) -> Refused {
        why.as_str().into()
    }
}

/// A plugin's settings: a JSON object. They are read by key, with what to use if the key isn't there; a value of the wrong
/// type is remembered, and refuses the settings when [`Plugin::configure`](crate::Plugin::configure) returns. Nested
/// objects and lists are left to others.
pub struct Config<'g> {
    text: &'static [u8],
    names: &'g mut Names,
    out: &'g mut Out,
    read: [u64; 4], // which members were asked for, of the first 256
    wrong: Option<Refused>,
}

impl<'g> Config<'g> {
    #[inline(never)]
    pub(crate) fn parse(text: &[u8], names: &'g mut Names, out: &'g mut Out) -> Result<Config<'g>, Refused> {
        let text: &'static [u8] = match text.iter().any(|c| !matches!(c, b' ' | b'\t' | b'\n' | b'\r')) {
            true => crate::buf::keep(text).ok_or("out of memory")?,
            false => b"{}",
        };
        if let Err(at) = json::check(text) {
            let mut why = Line::new();
            why.push("the configuration is not a JSON object: see byte ").int(at as i64);
            return Err(Refused(why));
        }
        if core::str::from_utf8(text).is_err() {
            return Err("the configuration is not UTF-8".into());
        }
        Ok(Config { text, names, out, read: [0; 4], wrong: None })
    }

    #[inline(never)]
    fn get(&mut self, key: &str) -> Option<&'static [u8]> {
        let (n, raw) = json::member(self.text, key)?;
        if let Some(word) = self.read.get_mut(n / 64) {
            *word |= 1 << (n % 64);
        }
        if raw == b"null" {
            return None;
        }
        Some(raw)
    }

    #[inline(never)]
    fn wrong(&mut self, key: &str, want: &str, got: &[u8]) {
        if self.wrong.is_some() {
            return;
        }
        let (mut why, mut short) = (Line::new(), Line::<40>::new());
        short.push(abi::text(got));
        why.push("setting ").push(key).push(" must be ").push(want).push(", not ").push(short.as_str());
        if got.len() > 40 {
            why.push("…");
        }
        self.wrong = Some(Refused(why));
    }

    /// Whether the key is there and not null.
    pub fn has(&mut self, key: &str) -> bool {
        self.get(key).is_some()
    }

    /// A number.
    #[inline(never)]
    pub fn number(&mut self, key: &str, otherwise: f64) -> f64 {
        match self.get(key) {
            None => otherwise,
            Some(raw) => crate::number::parse(raw).unwrap_or_else(|| {
                self.wrong(key, "a number", raw);
                otherwise
            }),
        }
    }

    /// A whole number of at most 15 digits.
    #[inline(never)]
    pub fn int(&mut self, key: &str, otherwise: i64) -> i64 {
        let raw = match self.get(key) {
            None => return otherwise,
            Some(raw) => raw,
        };
        let digits = raw.strip_prefix(b"-").unwrap_or(raw);
        if digits.len() > 15 || !digits.iter().all(u8::is_ascii_digit) {
            self.wrong(key, "a whole number", raw);
            return otherwise;
        }
        crate::number::parse(raw).map_or(otherwise, |v| v as i64)
    }

    /// True or false.
    #[inline(never)]
    pub fn boolean(&mut self, key: &str, otherwise: bool) -> bool {
        match self.get(key) {
            None => otherwise,
            Some(b"true") => true,
            Some(b"false") => false,
            Some(raw) => {
                self.wrong(key, "true or false", raw);
                otherwise
            }
        }
    }

    /// A text. It lives as long as the instance.
    #[inline(never)]
    pub fn text(&mut self, key: &str, otherwise: &'static str) -> &'static str {
        let raw = match self.get(key) {
            None => return otherwise,
            Some(raw) => raw,
        };
        match json::string(raw) {
            Some(q) if !q.escaped => abi::text(q.raw),
            Some(q) => match crate::buf::keep(q.raw) {
                Some(copy) => {
                    let n = q.write(copy);
                    abi::text(abi::part(copy, 0, n))
                }
                None => otherwise,
            },
            None => {
                self.wrong(key, "a text", raw);
                otherwise
            }
        }
    }

    /// The name of a metric to look out for; see [`Reading::is`](crate::Reading::is).
    pub fn metric(&mut self, key: &str, otherwise: &'static str) -> Metric {
        let name = self.text(key, otherwise);
        self.watch(name)
    }

    /// A metric to look out for that is no setting. At most 64 can be.
    #[inline(never)]
    pub fn watch(&mut self, name: &'static str) -> Metric {
        match self.names.watch(name) {
            Some(m) => m,
            None => {
                self.wrong = Some("the plugin looks out for more than 64 metrics".into());
                Metric::NONE
            }
        }
    }

    /// The name of a metric that is looked out for.
    pub fn name(&self, m: Metric) -> &'static str {
        self.names.watched(m)
    }

    /// One text from several, say the name of a derived metric. It lives as long as the instance.
    #[inline(never)]
    pub fn join(&mut self, parts: &[&str]) -> &'static str {
        let mut size = 0;
        for p in parts {
            size += p.len();
        }
        let mut at = 0;
        let mut all = crate::buf::Buf::new();
        if all.extend(size).is_none() {
            return "";
        }
        for p in parts {
            at = abi::put(all.bytes_mut(), at, p.as_bytes());
        }
        match crate::buf::keep(all.bytes()) {
            Some(kept) => abi::text(kept),
            None => "",
        }
    }

    /// A severity: "info", "warning", "major" or "critical".
    #[inline(never)]
    pub fn severity(&mut self, key: &str, otherwise: Severity) -> Severity {
        let raw = match self.get(key) {
            None => return otherwise,
            Some(raw) => raw,
        };
        match raw {
            b"\"info\"" => Severity::Info,
            b"\"warning\"" => Severity::Warning,
            b"\"major\"" => Severity::Major,
            b"\"critical\"" => Severity::Critical,
            _ => {
                self.wrong(key, "info, warning, major or critical", raw);
                otherwise
            }
        }
    }

    /// A time span in seconds, as microseconds.
    #[inline(never)]
    pub fn seconds(&mut self, key: &str, otherwise: i64) -> Time {
        match self.get(key) {
            None => otherwise * SECOND,
            Some(raw) => match crate::number::parse(raw) {
                Some(v) if (0.0..=1e10).contains(&v) => (v * SECOND as f64) as Time,
                _ => {
                    self.wrong(key, "a number of seconds", raw);
                    otherwise * SECOND
                }
            },
        }
    }

    /// A time span written as "90s", "1h30m" or "250ms", as microseconds.
    #[inline(never)]
    pub fn duration(&mut self, key: &str, otherwise: Time) -> Time {
        let raw = match self.get(key) {
            None => return otherwise,
            Some(raw) => raw,
        };
        match json::string(raw).and_then(|q| span(q.raw)) {
            Some(v) => v,
            None => {
                self.wrong(key, "a time span as 90s, 15m or 24h", raw);
                otherwise
            }
        }
    }

    /// Writes a line to the node's log.
    pub fn log(&mut self, level: Level, text: &str) {
        self.out.text(abi::LOG, level as u16, text.as_bytes());
    }

    /// Ends the reading: what was wrong, and a warning of the first setting that nobody asked for.
    #[inline(never)]
    pub(crate) fn finish(self) -> Result<(), Refused> {
        if let Some(w) = self.wrong {
            return Err(w);
        }
        let mut s = json::Scanner::new(self.text);
        let mut members = s.object();
        let mut n = 0;
        while let Some(key) = members.key(&mut s) {
            s.value();
            let asked = self.read.get(n / 64).map_or(true, |word| word >> (n % 64) & 1 == 1);
            if !asked {
                let mut name = [0; 64];
                let end = key.write(&mut name).min(name.len());
                let mut text = Line::<160>::new();
                text.push("the plugin has no setting ").push(abi::text(abi::part(&name, 0, end))).push(": a typing error?");
                self.out.text(abi::LOG, Level::Warning as u16, text.as_str().as_bytes());
                break;
            }
            n += 1;
        }
        Ok(())
    }
}

/// Reads a time span.
fn span(s: &[u8]) -> Option<Time> {
    let (mut i, mut sum) = (0, 0.0);
    while i < s.len() {
        let start = i;
        while matches!(s.get(i), Some(b'0'..=b'9' | b'.')) {
            i += 1;
        }
        let v = crate::number::parse(s.get(start..i)?)?;
        let unit = i;
        while matches!(s.get(i), Some(b'a'..=b'z')) {
            i += 1;
        }
        sum += v * match s.get(unit..i)? {
            b"ms" => 1000.0,
            b"s" => SECOND as f64,
            b"m" => MINUTE as f64,
            b"h" => HOUR as f64,
            _ => return None,
        };
    }
    if s.is_empty() || sum > 1e17 {
        return None;
    }
    Some(sum as Time)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with<T>(text: &str, f: impl FnOnce(&mut Config<'_>) -> T) -> Result<T, std::string::String> {
        let (mut names, mut out) = (Names::new(), Out::new());
        let mut cfg = Config::parse(text.as_bytes(), &mut names, &mut out).map_err(|r| std::string::String::from(r.as_str()))?;
        let v = f(&mut cfg);
        cfg.finish().map_err(|r| std::string::String::from(r.as_str()))?;
        Ok(v)
    }

    #[test]
    fn values() {
        let text =
            r#"{"n": -1.5e1, "i": 7, "b": true, "t": "a\tb", "s": "major", "after": 2.5, "d": "1h30m", "nothing": null, "deep": {"n": 3}}"#;
        let got = with(text, |c| {
            let name = c.join(&["level", ".rate"]);
            (
                c.number("n", 1.0),
                c.int("i", 1),
                c.boolean("b", false),
                c.text("t", ""),
                c.severity("s", Severity::Info),
                c.seconds("after", 60),
                c.duration("d", 0),
                c.number("nothing", 4.0),
                c.has("deep"),
                name,
            )
        });
        assert_eq!(got, Ok((-15.0, 7, true, "a\tb", Severity::Major, 2_500_000, 90 * MINUTE, 4.0, true, "level.rate")));
    }

    #[test]
    fn refusals() {
        let long = std::format!("{{\"t\": [{}]}}", "1,".repeat(50) + "1");
        for (text, want) in [
            ("[1]", "the configuration is not a JSON object: see byte 0"),
            ("{\"n\": 1,}", "the configuration is not a JSON object: see byte 8"),
            ("{\"n\": \"x\"}", "setting n must be a number, not \"x\""),
            ("{\"i\": 1.5}", "setting i must be a whole number, not 1.5"),
            ("{\"b\": 1}", "setting b must be true or false, not 1"),
            ("{\"t\": {\"x\": 1}}", "setting t must be a text, not {\"x\": 1}"),
            ("{\"s\": \"high\"}", "setting s must be info, warning, major or critical, not \"high\""),
            ("{\"d\": \"90\"}", "setting d must be a time span as 90s, 15m or 24h, not \"90\""),
            (&long, "setting t must be a text, not [1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1…"),
        ] {
            let got = with(text, |c| {
                c.number("n", 0.0);
                c.int("i", 0);
                c.boolean("b", false);
                c.text("t", "");
                c.severity("s", Severity::Info);
                c.duration("d", 0);
            });
            assert_eq!(got, Err(want.into()), "{}", text);
        }
    }
}
