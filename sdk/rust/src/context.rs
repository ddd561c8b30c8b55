use crate::abi;
use crate::out::Out;
use crate::{Alert, Derived, Kind, Level, Severity, Time};

/// A device's turn: what came, and where to put what comes of it.
pub struct Context<'a> {
    pub(crate) out: &'a mut Out,
    pub(crate) now: Time,

    pub(crate) index: u32, // of the device in the frame, from 1; 0 before the first
    seq: u64,
    id: &'a [u8],
    pub(crate) state: &'a [u8],
    input: u32, // of the device, from 1; 0 in what is called before the first
    received: Time,

    start: usize,       // of the device's records in the answer
    input_start: usize, // of those that the input at hand made
    opened: bool,       // the answer names the device
    input_opened: bool, // and did when the input began
    pub(crate) failed: bool,
    input_failed: bool,
}

impl<'a> Context<'a> {
    pub(crate) fn new(out: &'a mut Out) -> Self {
        Context {
            out,
            now: 0,
            index: 0,
            seq: 0,
            id: &[],
            state: &[],
            input: 0,
            received: 0,
            start: 0,
            input_start: 0,
            opened: false,
            input_opened: false,
            failed: false,
            input_failed: false,
        }
    }

    /// Takes a DEVICE record; false says that it is none.
    #[inline(always)]
    pub(crate) fn begin(&mut self, rec: &'a [u8]) -> bool {
        let (id, state) = (u64::from(abi::u32_at(rec, 16)), u64::from(abi::u32_at(rec, 20)));
        let at = (abi::TWO_WORDS as u64 + id + 7) & !7;
        if rec.len() < abi::TWO_WORDS || at + state > rec.len() as u64 {
            return false;
        }
        self.index += 1;
        self.seq = abi::u64_at(rec, 8);
        self.id = abi::part(rec, abi::TWO_WORDS, id as usize);
        self.state = abi::part(rec, at as usize, state as usize);
        self.input = 0;
        self.received = self.now;
        self.start = self.out.len();
        self.opened = false;
        self.failed = false;
        self.begin_effects();
        true
    }

    #[inline(always)]
    fn begin_effects(&mut self) {
        self.input_start = self.out.len();
        self.input_opened = self.opened;
        self.input_failed = false;
    }

    #[inline(always)]
    pub(crate) fn begin_input(&mut self, received: u64) {
        self.received = received as Time;
        self.input += 1;
        self.begin_effects();
    }

    /// Counts an input of a kind that is younger than this crate.
    pub(crate) fn skip_input(&mut self) {
        self.input += 1;
    }

    /// Names the device in the answer before the first record about it.
    #[inline]
    pub(crate) fn open(&mut self) {
        if !self.opened {
            self.opened = true;
            let rec = self.out.record(abi::GROUP, 0, abi::HEADER_SIZE + 4);
            abi::put_u32(rec, abi::HEADER_SIZE, self.index.wrapping_sub(1));
        }
    }

    /// Appends a record about the device; an empty one, which takes no bytes, if it has failed.
    #[inline(never)]
    fn record(&mut self, kind: u16, flags: u16, size: usize) -> &mut [u8] {
        if self.failed || self.input_failed {
            return &mut [];
        }
        self.open();
        self.out.record(kind, flags, size)
    }

    /// The device's id.
    pub fn device(&self) -> &'a str {
        abi::text(self.id)
    }

    /// The sequence number of the input at hand: 1 for a device's first.
    pub fn seq(&self) -> u64 {
        self.seq.wrapping_add(u64::from(self.input.max(1) - 1))
    }

    /// When the input at hand was received; of a timer, when it was due.
    #[inline(always)]
    pub fn received(&self) -> Time {
        self.received
    }

    /// The runtime's clock: never before [`received`](Self::received), and later if the input had to wait.
    pub fn now(&self) -> Time {
        self.now
    }

    /// The state's bytes as they came.
    pub fn state(&self) -> &'a [u8] {
        self.state
    }

    /// Refuses the device's inputs: nothing that was made of them counts, and the reason is kept with them in the list of
    /// dead letters. The readings themselves are kept.
    pub fn fail(&mut self, why: &str) {
        if self.failed {
            return;
        }
        self.out.truncate(self.start);
        self.opened = false;
        self.open();
        self.out.text(abi::ERROR, 0, why.as_bytes());
        self.failed = true;
    }

    /// Refuses the input at hand alone: nothing that was said about it counts, and the reason is kept with it in the list of
    /// dead letters. What was changed in the state stays changed, so look at the input first.
    pub fn fail_input(&mut self, why: &str) {
        if self.input_failed || self.failed {
            return;
        }
        if self.input == 0 {
            return self.fail(why);
        }
        self.out.truncate(self.input_start);
        self.opened = self.input_opened;
        let input = self.input - 1;
        let rec = self.record(abi::ERROR, abi::FLAG_ONE_INPUT, abi::HEADER_SIZE + 4 + why.len());
        abi::put_u32(rec, abi::HEADER_SIZE, input);
        abi::put(rec, abi::HEADER_SIZE + 4, why.as_bytes());
        self.input_failed = true;
    }

    #[inline(never)]
    fn signal(&mut self, flags: u16, severity: u8, a: &Alert<'_>) {
        let (rule, key) = (cut(a.rule), cut(a.key));
        let input = u64::from(self.input.max(1) - 1);
        let size = abi::THREE_WORDS + rule.len() + key.len() + a.text.len();
        let rec = self.record(abi::ALERT, flags, size);
        abi::put_u64(rec, 8, input | u64::from(severity) << 32 | (rule.len() as u64) << 48);
        abi::put_u64(rec, 16, key.len() as u64 | (a.text.len() as u64) << 32);
        abi::put_u64(rec, 24, a.value.to_bits());
        let at = abi::put(rec, abi::THREE_WORDS, rule.as_bytes());
        let at = abi::put(rec, at, key.as_bytes());
        abi::put(rec, at, a.text.as_bytes());
    }

    /// Raises the rule's alert at the device. `value` is what raised it, [`NO_VALUE`](crate::NO_VALUE) if there is none.
    pub fn alert(&mut self, rule: &str, severity: Severity, text: &str, value: f64) {
        self.signal(abi::FLAG_RAISE, severity as u8, &Alert { rule, key: "", severity, text, value });
    }

    /// Raises an alert. One with a key is the rule's for that key, say a sensor's name: there is one for each.
    pub fn raise(&mut self, a: &Alert<'_>) {
        self.signal(abi::FLAG_RAISE, a.severity as u8, a);
    }

    /// Changes severity, text and value of an alert that is active; it does nothing if it isn't.
    pub fn update(&mut self, a: &Alert<'_>) {
        self.signal(abi::FLAG_UPDATE, a.severity as u8, a);
    }

    /// Ends the rule's alert at the device, if there is one.
    pub fn clear(&mut self, rule: &str) {
        self.clear_with(&Alert { rule, ..Alert::default() });
    }

    /// Ends an alert, with what ended it: text and value replace those of the raising.
    pub fn clear_with(&mut self, a: &Alert<'_>) {
        self.signal(0, 0, a);
    }

    /// Adds a derived reading: a number, measured when the input at hand was received.
    pub fn emit(&mut self, metric: &str, value: f64) {
        self.derive(&Derived { metric, value, ..Derived::default() });
    }

    /// Adds a derived reading.
    #[inline(never)]
    pub fn derive(&mut self, d: &Derived<'_>) {
        let (metric, unit) = (cut(d.metric), cut(d.unit));
        let time = if d.time == 0 { self.received } else { d.time };
        let size = abi::THREE_WORDS + metric.len() + unit.len() + d.bytes.len();
        let rec = self.record(abi::READING, 0, size);
        abi::put_u64(rec, 8, d.kind as u64 | (metric.len() as u64) << 16 | (unit.len() as u64) << 32);
        abi::put_u64(rec, 16, time as u64);
        abi::put_u64(rec, 24, d.value.to_bits());
        let at = abi::put(rec, abi::THREE_WORDS, metric.as_bytes());
        let at = abi::put(rec, at, unit.as_bytes());
        abi::put(rec, at, d.bytes);
    }

    /// Arms the device's timer of that name for a moment, or moves it there. It fires once, as a call of
    /// [`Plugin::timer`](crate::Plugin::timer). Every arming is written to disk: don't move a timer with each reading; let
    /// it fire, and arm it for the remainder.
    pub fn set_timer(&mut self, name: &str, at: Time) {
        self.timer(name, at.max(1));
    }

    /// Disarms a timer.
    pub fn cancel_timer(&mut self, name: &str) {
        self.timer(name, 0);
    }

    fn timer(&mut self, name: &str, at: Time) {
        let rec = self.record(abi::SET, 0, abi::ONE_WORD + name.len());
        abi::put_u64(rec, 8, at as u64);
        abi::put(rec, abi::ONE_WORD, name.as_bytes());
    }

    /// Asks the device to do something by a deadline; 0 is a day from now. What came of it is a call of
    /// [`Plugin::result`](crate::Plugin::result). The plugin's manifest must ask for the capability "command".
    pub fn command(&mut self, name: &str, format: u16, payload: &[u8], deadline: Time) {
        self.message(abi::COMMAND, Some(deadline), name, format, payload);
    }

    /// Sends a message to the applications that subscribe to the topic. The manifest must ask for "publish".
    pub fn publish(&mut self, topic: &str, format: u16, payload: &[u8]) {
        self.message(abi::PUBLISH, None, topic, format, payload);
    }

    fn message(&mut self, kind: u16, deadline: Option<Time>, name: &str, format: u16, payload: &[u8]) {
        let name = cut(name);
        let at = if deadline.is_some() { abi::ONE_WORD } else { abi::HEADER_SIZE };
        let rec = self.record(kind, 0, at + 8 + name.len() + payload.len());
        abi::put_u64(rec, 8, deadline.unwrap_or(0) as u64);
        abi::put_u64(rec, at, u64::from(format) | (name.len() as u64) << 16 | (payload.len() as u64) << 32);
        let at = abi::put(rec, at + 8, name.as_bytes());
        abi::put(rec, at, payload);
    }

    /// Writes a line to the node's log, with the plugin and the device. The node takes 20 a second of a plugin.
    pub fn log(&mut self, level: Level, text: &str) {
        let rec = self.record(abi::LOG, level as u16, abi::HEADER_SIZE + text.len());
        abi::put(rec, abi::HEADER_SIZE, text.as_bytes());
    }
}

/// A text whose length is a u16 in a record. The host refuses much shorter ones.
#[inline(always)]
fn cut(s: &str) -> &str {
    if s.len() <= usize::from(u16::MAX) {
        return s;
    }
    ""
}

impl Default for Alert<'_> {
    fn default() -> Self {
        Alert { rule: "", key: "", severity: Severity::Info, text: "", value: crate::NO_VALUE }
    }
}

impl Default for Derived<'_> {
    fn default() -> Self {
        Derived { metric: "", unit: "", time: 0, kind: Kind::Number, value: 0.0, bytes: &[] }
    }
}
