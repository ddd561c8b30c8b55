//! Runs a plugin's handlers natively, as the runtime would: for unit tests without WebAssembly.
//!
//! Every call is made twice, to an instance that lives as long as the test and to one that was made just now; the test
//! fails if they answer differently. A plugin that passes keeps what it knows of devices in their state, as it must.
//!
//! ```
//! # use dunlin::*;
//! use dunlin::testing::{number, Harness};
//! # struct Hot;
//! # impl Plugin for Hot {
//! #     type State = ();
//! #     fn configure(_: &mut Config<'_>) -> Result<Self, Refused> { Ok(Hot) }
//! #     fn readings(&self, ctx: &mut Context<'_>, _: &mut (), rs: Readings<'_>) {
//! #         for r in rs { if r.number() > Some(8.0) { ctx.alert("hot", Severity::Major, "", 9.0) } }
//! #     }
//! # }
//! let mut h = Harness::<Hot>::new("{}");
//! h.send("fridge-1", &[number("temp", 9.0)]);
//! assert!(h.active("fridge-1", "hot", "").is_some());
//! h.advance(15 * dunlin::MINUTE); // fires timers
//! ```

use crate::abi;
use crate::guest::Guest;
use crate::{Kind, Plugin, Severity, Time};
use std::borrow::ToOwned;
use std::collections::BTreeMap;
use std::string::String;
use std::vec::Vec;

/// The harness's clock at first: 2026-01-01 00:00 UTC.
pub const START: Time = 1_767_225_600_000_000;

/// A reading, to send or derived.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// The metric's name.
    pub metric: String,
    /// The unit, "" if none.
    pub unit: String,
    /// When it was measured; 0 to send: now.
    pub time: Time,
    /// What the value is.
    pub kind: Kind,
    /// Of a number, or 0 and 1 of a boolean.
    pub value: f64,
    /// Of a text or data.
    pub bytes: Vec<u8>,
}

fn sample(metric: &str, kind: Kind, value: f64, bytes: &[u8]) -> Sample {
    Sample { metric: metric.to_owned(), unit: String::new(), time: 0, kind, value, bytes: bytes.to_vec() }
}

/// A number to send.
pub fn number(metric: &str, value: f64) -> Sample {
    sample(metric, Kind::Number, value, &[])
}

/// A boolean to send.
pub fn boolean(metric: &str, value: bool) -> Sample {
    sample(metric, Kind::Boolean, f64::from(u8::from(value)), &[])
}

/// A text to send.
pub fn text(metric: &str, value: &str) -> Sample {
    sample(metric, Kind::Text, 0.0, value.as_bytes())
}

/// What the plugin did to an alert.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// It raised it.
    Raise,
    /// It changed what an active one says.
    Update,
    /// It ended it.
    Clear,
}

/// An alert that the plugin spoke of.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub struct Said {
    pub signal: Signal,
    pub input: usize,
    pub rule: String,
    pub key: String,
    pub severity: Severity,
    pub text: String,
    /// NaN: none.
    pub value: f64,
}

/// What came of one turn.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Of which device.
    pub device: String,
    /// What was said of alerts.
    pub alerts: Vec<Said>,
    /// Derived readings.
    pub readings: Vec<Sample>,
    /// Commands: name, content format, payload, deadline.
    pub commands: Vec<(String, u16, Vec<u8>, Time)>,
    /// Messages: topic, content format, payload.
    pub published: Vec<(String, u16, Vec<u8>)>,
    /// Lines of the log.
    pub logs: Vec<String>,
    /// Inputs that were refused alone.
    pub refused: Vec<(usize, String)>,
    /// Why the whole turn was refused.
    pub failure: Option<String>,
}

/// A plugin with a configuration, a clock and devices.
pub struct Harness<P> {
    config: String,
    used: Instance<P>,
    now: Time,
    devices: BTreeMap<String, Device>,
}

#[derive(Default)]
struct Device {
    seq: u64,
    state: Vec<u8>,
    timers: BTreeMap<String, Time>,
    active: BTreeMap<(String, String), Said>,
}

struct Instance<P> {
    guest: Guest<P>,
    known: Vec<String>,
    names: Vec<u8>, // NAME records for the next frame
}

impl<P: Plugin> Instance<P> {
    fn new(config: &str) -> Result<Self, String> {
        let mut in_ = Instance { guest: Guest::new(), known: Vec::new(), names: Vec::new() };
        let frame = record(abi::CONFIG, 0, &[config.as_bytes()]);
        match in_.guest.init(&frame) {
            Ok(_) => Ok(in_),
            Err(why) => Err(why.to_owned()),
        }
    }

    fn id(&mut self, name: &str) -> u32 {
        if name.is_empty() {
            return 0;
        }
        if let Some(i) = self.known.iter().position(|k| k == name) {
            return i as u32 + 1;
        }
        self.known.push(name.to_owned());
        let id = self.known.len() as u32;
        self.names.extend(record(abi::NAME, 0, &[&id.to_le_bytes(), name.as_bytes()]));
        id
    }
}

/// A record with its padding.
fn record(kind: u16, flags: u16, parts: &[&[u8]]) -> Vec<u8> {
    let mut b = std::vec![0; 8];
    for p in parts {
        b.extend_from_slice(p);
    }
    let size = b.len() as u64;
    abi::put_u64(&mut b, 0, size | u64::from(kind) << 32 | u64::from(flags) << 48);
    b.resize(abi::align(b.len()), 0);
    b
}

fn words(a: u64, b: u32, c: u32) -> [u8; 16] {
    let mut w = [0; 16];
    abi::put_u64(&mut w, 0, a);
    abi::put_u32(&mut w, 8, b);
    abi::put_u32(&mut w, 12, c);
    w
}

/// What a plugin says against a configuration; `None` if it takes it.
pub fn refusal<P: Plugin>(config: &str) -> Option<String> {
    Instance::<P>::new(config).err()
}

impl<P: Plugin> Harness<P> {
    /// A harness with a configuration, a JSON object. It panics if the plugin refuses it; see [`refusal`].
    pub fn new(config: &str) -> Self {
        match Instance::new(config) {
            Ok(used) => Harness { config: config.to_owned(), used, now: START, devices: BTreeMap::new() },
            Err(why) => panic!("the plugin refuses the configuration: {}", why),
        }
    }

    /// The clock.
    pub fn now(&self) -> Time {
        self.now
    }

    /// Delivers one report; readings without a time get the clock's.
    pub fn send(&mut self, device: &str, samples: &[Sample]) -> Outcome {
        let now = self.now;
        self.turn(device, |in_| {
            let fixed = abi::TWO_WORDS + samples.len() * abi::READING_SIZE;
            let mut body = words(now as u64, samples.len() as u32, 0).to_vec();
            let mut tail = Vec::new();
            for s in samples {
                let value = match s.kind {
                    Kind::Text | Kind::Data => {
                        let at = (fixed + tail.len()) as u64 | (s.bytes.len() as u64) << 32;
                        tail.extend_from_slice(&s.bytes);
                        at
                    }
                    _ => s.value.to_bits(),
                };
                let time = if s.time == 0 { now } else { s.time };
                let (metric, unit) = (in_.id(&s.metric), in_.id(&s.unit));
                body.extend_from_slice(&words(
                    u64::from(metric) | u64::from(unit as u16) << 32 | (s.kind as u64) << 48,
                    time as u32,
                    (time >> 32) as u32,
                ));
                body.extend_from_slice(&value.to_le_bytes());
            }
            record(abi::TELEMETRY, 0, &[&body, &tail])
        })
    }

    /// Delivers a payload that the runtime doesn't decode.
    pub fn send_raw(&mut self, device: &str, format: u16, payload: &[u8]) -> Outcome {
        let fixed = words(self.now as u64, u32::from(format), 0);
        self.turn(device, |_| record(abi::RAW, 0, &[&fixed, payload]))
    }

    /// Delivers the answer to a command; `None`: its deadline passed.
    pub fn result(&mut self, device: &str, id: &str, answer: Option<&[u8]>) -> Outcome {
        let fixed = words(self.now as u64, 42, id.len() as u32);
        let mut padded = id.as_bytes().to_vec();
        padded.resize(abi::align(padded.len()), 0);
        self.turn(device, |_| record(abi::RESULT, u16::from(answer.is_none()), &[&fixed, &padded, answer.unwrap_or(&[])]))
    }

    /// Delivers an event of the device's registration, a JSON object.
    pub fn lifecycle(&mut self, device: &str, event: &str) -> Outcome {
        let now = self.now.to_le_bytes();
        self.turn(device, |_| record(abi::LIFECYCLE, 0, &[&now, event.as_bytes()]))
    }

    /// Has the device's state taken over from another version of the plugin.
    pub fn migrate(&mut self, device: &str, state: &[u8], module: u32) -> Outcome {
        self.devices.entry(device.to_owned()).or_default().state = state.to_vec();
        self.turn(device, |_| record(abi::MIGRATE, 0, &[&u64::from(module).to_le_bytes()]))
    }

    /// Moves the clock on, firing what timers become due in their order, and returns what came of them.
    pub fn advance(&mut self, span: Time) -> Vec<Outcome> {
        let end = self.now + span;
        let mut outcomes = Vec::new();
        for _ in 0..10_000 {
            let next = self.devices.iter().flat_map(|(id, d)| d.timers.iter().map(move |(name, due)| (*due, id, name))).min();
            let (due, id, name) = match next {
                Some((due, id, name)) if due <= end => (due, id.clone(), name.clone()),
                _ => {
                    self.now = end;
                    return outcomes;
                }
            };
            self.now = self.now.max(due);
            self.devices.entry(id.clone()).or_default().timers.remove(&name);
            outcomes.push(self.turn(&id, |_| record(abi::TIMER, 0, &[&due.to_le_bytes(), name.as_bytes()])));
        }
        panic!("10,000 timers fired: the plugin arms them in the past");
    }

    /// The device's state.
    pub fn state(&self, device: &str) -> &[u8] {
        self.devices.get(device).map_or(&[], |d| &d.state)
    }

    /// The active alert of a rule and key.
    pub fn active(&self, device: &str, rule: &str, key: &str) -> Option<&Said> {
        self.devices.get(device)?.active.get(&(rule.to_owned(), key.to_owned()))
    }

    /// When the timer of that name is due.
    pub fn timer(&self, device: &str, name: &str) -> Option<Time> {
        self.devices.get(device)?.timers.get(name).copied()
    }

    fn turn(&mut self, id: &str, input: impl Fn(&mut Instance<P>) -> Vec<u8>) -> Outcome {
        let dev = self.devices.entry(id.to_owned()).or_default();
        dev.seq += 1;
        let mut fresh = match Instance::new(&self.config) {
            Ok(fresh) => fresh,
            Err(why) => panic!("the plugin takes its configuration only sometimes: {}", why),
        };
        let mut answers = Vec::new();
        for in_ in [&mut self.used, &mut fresh] {
            let body = input(in_); // defines names
            let mut frame = record(abi::BATCH, 0, &[&words(self.now as u64, 1, 1)]);
            frame.append(&mut in_.names);
            let mut padded = id.as_bytes().to_vec();
            padded.resize(abi::align(padded.len()), 0);
            frame.extend(record(abi::DEVICE, 0, &[&words(dev.seq, id.len() as u32, dev.state.len() as u32), &padded, &dev.state]));
            frame.extend(body);
            match in_.guest.process(&frame) {
                Ok(out) => answers.push(out.to_vec()),
                Err(why) => panic!("device {}, input {}: {}", id, dev.seq, why),
            }
        }
        assert!(
            answers[0] == answers[1],
            "device {}, input {}: an instance that was made just now answers otherwise than an old one: the plugin keeps something outside its state",
            id, dev.seq
        );
        dev.apply(id, &answers[0])
    }
}

fn string(b: &[u8]) -> String {
    String::from_utf8_lossy(b).into_owned()
}

impl Device {
    fn apply(&mut self, id: &str, out: &[u8]) -> Outcome {
        let mut o = Outcome { device: id.to_owned(), ..Outcome::default() };
        let mut at = 0;
        while at < out.len() {
            let (size, kind, flags) = (abi::u32_at(out, at) as usize, abi::u16_at(out, at + 4), abi::u16_at(out, at + 6));
            let rec = &out[at..at + size];
            at += abi::align(size);
            let lens = abi::u64_at(rec, 8);
            match kind {
                abi::STATE => self.state = rec[8..].to_vec(),
                abi::ALERT => self.alert(flags, rec, &mut o),
                abi::READING => {
                    let (metric, unit) = ((lens >> 16) as u16 as usize, (lens >> 32) as u16 as usize);
                    let (name, rest) = rec[abi::THREE_WORDS..].split_at(metric);
                    let kind = [Kind::Unknown, Kind::Number, Kind::Boolean, Kind::Text, Kind::Data][usize::from(rec[8])];
                    o.readings.push(Sample {
                        metric: string(name),
                        unit: string(&rest[..unit]),
                        time: abi::u64_at(rec, 16) as Time,
                        kind,
                        value: f64::from_bits(abi::u64_at(rec, 24)),
                        bytes: rest[unit..].to_vec(),
                    });
                }
                abi::SET => {
                    let name = string(&rec[abi::ONE_WORD..]);
                    self.timers.remove(&name);
                    if lens != 0 {
                        self.timers.insert(name, lens as Time);
                    }
                }
                abi::LOG => o.logs.push(string(&rec[8..])),
                abi::ERROR if flags & abi::FLAG_ONE_INPUT != 0 => o.refused.push((lens as u32 as usize, string(&rec[12..]))),
                abi::ERROR => o.failure = Some(string(&rec[8..])),
                abi::COMMAND => {
                    let name = abi::u16_at(rec, 18) as usize;
                    let (name, payload) = rec[24..].split_at(name);
                    o.commands.push((string(name), abi::u16_at(rec, 16), payload.to_vec(), lens as Time));
                }
                abi::PUBLISH => {
                    let (topic, payload) = rec[16..].split_at(abi::u16_at(rec, 10) as usize);
                    o.published.push((string(topic), abi::u16_at(rec, 8), payload.to_vec()));
                }
                _ => {}
            }
        }
        o
    }

    fn alert(&mut self, flags: u16, rec: &[u8], o: &mut Outcome) {
        let (rule, key) = (abi::u16_at(rec, 14) as usize, abi::u16_at(rec, 16) as usize);
        let (rule, rest) = rec[abi::THREE_WORDS..].split_at(rule);
        let (key, text) = rest.split_at(key);
        let said = Said {
            signal: match flags {
                abi::FLAG_RAISE => Signal::Raise,
                abi::FLAG_UPDATE => Signal::Update,
                _ => Signal::Clear,
            },
            input: abi::u32_at(rec, 8) as usize,
            rule: string(rule),
            key: string(key),
            severity: [Severity::Info, Severity::Info, Severity::Warning, Severity::Major, Severity::Critical][usize::from(rec[12])],
            text: string(text),
            value: f64::from_bits(abi::u64_at(rec, 24)),
        };
        let name = (said.rule.clone(), said.key.clone());
        match said.signal {
            Signal::Clear => {
                self.active.remove(&name);
            }
            Signal::Update if !self.active.contains_key(&name) => {}
            _ => {
                self.active.insert(name, said.clone());
            }
        }
        o.alerts.push(said);
    }
}
