//! What the examples don't do: all that a handler can say, notes, names, failures, the harness.

#![allow(missing_docs)]

use dunlin::testing::{boolean, number, refusal, text, Harness, Signal, START};
use dunlin::*;
use std::cell::Cell;
use std::fs;

/// Says everything that can be said.
struct All {
    temp: Metric,
    sum: &'static str,
    broken: bool,
}

struct Count(u64, String);

impl State for Count {
    fn load(r: &mut StateReader<'_>) -> Self {
        Count(r.uint(), r.text().into())
    }
    fn save(&self, w: &mut StateWriter<'_>) {
        w.uint(self.0);
        w.text(&self.1);
    }
}

thread_local!(static OUTSIDE: Cell<u64> = const { Cell::new(0) }); // what a plugin must not have

impl Plugin for All {
    type State = Count;

    fn configure(cfg: &mut Config<'_>) -> Result<Self, Refused> {
        cfg.log(Level::Info, "hello");
        let temp = cfg.watch("temp");
        Ok(All { temp, sum: cfg.join(&[cfg.name(temp), "/sum"]), broken: cfg.boolean("broken", false) })
    }

    fn readings(&self, ctx: &mut Context<'_>, mem: &mut Count, rs: Readings<'_>) {
        mem.0 += rs.len() as u64;
        for r in &rs {
            match r.text() {
                Some("fail") => return ctx.fail("told to"),
                Some("fail-input") => {
                    ctx.emit("never", 1.0);
                    ctx.fail_input("told to");
                    return ctx.emit("never", 2.0);
                }
                Some(word) => mem.1 = format!("{}={} {}", r.metric(), word, r.unit()),
                None => {}
            }
            if r.is(self.temp) {
                ctx.derive(&Derived { metric: self.sum, time: r.time() + 1, value: mem.0 as f64, ..Derived::default() });
            }
        }
        if self.broken {
            mem.0 = OUTSIDE.with(|n| n.replace(n.get() + 1));
        }
    }

    fn timer(&self, ctx: &mut Context<'_>, _: &mut Count, name: &str) {
        ctx.command("reboot", 0, b"now", 0);
        ctx.publish(name, 50, b"{}");
    }

    fn result(&self, ctx: &mut Context<'_>, mem: &mut Count, r: CommandResult<'_>) {
        mem.1 = format!("{} {} {:?}", r.id, r.timed_out, r.payload);
        ctx.set_timer("later", ctx.received() + SECOND);
    }

    fn lifecycle(&self, ctx: &mut Context<'_>, _: &mut Count, e: Lifecycle<'_>) {
        let line = format!("{} {} {} {} {}", e.event(), e.domain(), e.was(), e.label("site"), e.label("none"));
        ctx.log(Level::Warning, &line);
    }

    fn migrate(&self, ctx: &mut Context<'_>, mem: &mut Count, module: u32) {
        mem.0 = ctx.state().len() as u64;
        mem.1 = format!("{:x}", module);
    }
}

#[test]
fn everything_that_a_handler_can_say() {
    let mut h = Harness::<All>::new("{}");
    let o = h.send("d", &[number("temp", 1.0), boolean("open", true)]);
    assert_eq!((o.readings[0].metric.as_str(), o.readings[0].time, o.readings[0].value), ("temp/sum", START + 1, 2.0));
    assert_eq!(h.state("d"), [2, 0]);
    let o = h.send("d", &[number("temp", 1.0), text("x", "fail")]);
    assert_eq!((o.failure.as_deref(), o.readings.len(), h.state("d").len()), (Some("told to"), 0, 2));
    let o = h.send("d", &[text("x", "fail-input"), number("temp", 1.0)]);
    assert_eq!((o.refused.as_slice(), o.readings.len()), (&[(0, "told to".to_string())][..], 0));
    h.result("d", "12-0", Some(b"ok"));
    assert_eq!(&h.state("d")[2..], b"12-0 false [111, 107]");
    h.result("d", "12-1", None);
    assert_eq!(&h.state("d")[2..], b"12-1 true []");
    let o = h.advance(MINUTE).remove(0);
    assert_eq!(o.commands, [("reboot".to_string(), 0, b"now".to_vec(), 0)]);
    assert_eq!(o.published, [("later".to_string(), 50, b"{}".to_vec())]);
    let o = h.lifecycle("d", r#"{"event":"changed","domain":"cold","was":"warm","labels":{"site":"N\u00fcrnberg"}}"#);
    assert_eq!(o.logs, ["changed cold warm Nürnberg "]);
    h.migrate("d", b"of another kind", 0xcafe);
    assert_eq!(h.state("d"), b"\x0f\x04cafe");
}

#[test]
#[should_panic(expected = "keeps something outside its state")]
fn the_harness_finds_a_plugin_that_remembers() {
    Harness::<All>::new(r#"{"broken": true}"#).send("d", &[number("temp", 1.0)]);
}

#[test]
fn a_setting_that_nobody_asks_for_is_warned_of() {
    let mut g = Guest::<All>::new();
    let config = br#"{"brokn":1}"#;
    let mut frame = vec![8 + config.len() as u8, 0, 0, 0, 3, 0, 0, 0];
    frame.extend_from_slice(config);
    let out = String::from_utf8_lossy(g.init(&frame).unwrap()).into_owned();
    assert!(out.contains("hello") && out.contains("the plugin has no setting brokn: a typing error?"), "{}", out);
    assert_eq!(refusal::<All>("{\"broken\": 3}"), Some("setting broken must be true or false, not 3".into()));
    assert_eq!(Guest::<All>::new().process(&[]), Err("the plugin has no configuration"));
}

/// Replays the records of ../vectors/records through the encoder: what each says is in its text.
struct Writes;

impl Plugin for Writes {
    type State = ();

    fn configure(_: &mut Config<'_>) -> Result<Self, Refused> {
        Ok(Writes)
    }

    fn raw(&self, ctx: &mut Context<'_>, _: &mut (), raw: Raw<'_>) {
        let line = std::str::from_utf8(raw.payload).unwrap();
        let w = words(line);
        let arg = |i: usize| if w[i] == "-" { "" } else { w[i].as_str() };
        let value = |i: usize| if w[i] == "-" { NO_VALUE } else { w[i].parse().unwrap() };
        let severity = |i: usize| match arg(i) {
            "critical" => Severity::Critical,
            "major" => Severity::Major,
            "warning" => Severity::Warning,
            _ => Severity::Info,
        };
        match w[0].as_str() {
            "log" => ctx.log([Level::Debug, Level::Info, Level::Warning, Level::Error][w[1].parse::<usize>().unwrap()], &w[2]),
            "raise" | "update" | "clear" => {
                let a = Alert { rule: arg(2), key: arg(3), severity: severity(4), value: value(5), text: arg(6) };
                match w[0].as_str() {
                    "raise" => ctx.raise(&a),
                    "update" => ctx.update(&a),
                    _ => ctx.clear_with(&a),
                }
            }
            "reading" => {
                let data: Vec<u8>;
                let d = Derived { metric: arg(1), unit: arg(2), time: moment(&w[3]), ..Derived::default() };
                let quoted = line.ends_with('"');
                match w[4].as_str() {
                    "true" => ctx.derive(&Derived { kind: Kind::Boolean, value: 1.0, ..d }),
                    "false" => ctx.derive(&Derived { kind: Kind::Boolean, ..d }),
                    s if quoted => ctx.derive(&Derived { kind: Kind::Text, bytes: s.as_bytes(), ..d }),
                    s if s.starts_with("0x") => {
                        data = (2..s.len()).step_by(2).map(|i| u8::from_str_radix(&s[i..i + 2], 16).unwrap()).collect();
                        ctx.derive(&Derived { kind: Kind::Data, bytes: &data, ..d })
                    }
                    s => ctx.derive(&Derived { value: s.parse().unwrap(), ..d }),
                }
            }
            "set" if w[2] == "off" => ctx.cancel_timer(&w[1]),
            "set" => ctx.set_timer(&w[1], moment(&w[2])),
            "refuse" => ctx.fail_input(&w[2]),
            "error" => ctx.fail(&w[1]),
            "command" => {
                let payload = w.get(4).map_or("", |s| s);
                ctx.command(&w[1], w[2].parse().unwrap(), payload.as_bytes(), if w[3] == "day" { 0 } else { moment(&w[3]) })
            }
            "publish" => ctx.publish(&w[1], w[2].parse().unwrap(), w.get(3).map_or("", |s| s).as_bytes()),
            _ => {}
        }
    }
}

fn moment(s: &str) -> Time {
    START + s.trim_start_matches('+').parse::<Time>().unwrap() * SECOND
}

/// Splits a line into words; one in quotes may have spaces and escapes.
fn words(line: &str) -> Vec<String> {
    let mut list = vec![String::new()];
    let (mut quoted, mut escaped) = (false, false);
    for c in line.chars() {
        match c {
            _ if escaped => {
                list.last_mut().unwrap().push(c);
                escaped = false;
            }
            '\\' => escaped = true,
            '"' => quoted = !quoted,
            ' ' if !quoted => list.push(String::new()),
            _ => list.last_mut().unwrap().push(c),
        }
    }
    list
}

#[test]
fn records_are_written_as_the_vectors_say() {
    let file = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../vectors/records/records.json")).unwrap();
    let (mut what, mut seen) = (String::new(), 0);
    for line in file.lines().map(|l| l.trim().trim_end_matches(',')) {
        if let Some(w) = line.strip_prefix("\"what\": \"") {
            what = w[..w.len() - 1].replace("\\\"", "\"").replace("\\\\", "\\");
        }
        let hex = match line.strip_prefix("\"hex\": \"") {
            Some(h) if !what.starts_with("state") && !what.starts_with("group") => &h[..h.len() - 1],
            _ => continue,
        };
        // Two inputs, of which the second one speaks if the record names input 1.
        let input = what.starts_with("raise 1") || what.starts_with("update 1") || what.starts_with("clear 1");
        let silent = rec(7, &[&0u64.to_le_bytes(), &[0; 8], b"nothing"]);
        let says = rec(7, &[&0u64.to_le_bytes(), &[0; 8], what.as_bytes()]);
        let mut frame = rec(5, &[&[0; 16]]);
        frame.extend(if input { &silent } else { &says });
        frame.extend(if input { &says } else { &silent });
        let mut g = Guest::<Writes>::new();
        g.init(&[]).unwrap_or_default();
        g.init(&rec(3, &[b"{}"])).unwrap();
        let out = g.process(&frame).unwrap();
        let got: String = out[16..].iter().map(|b| format!("{:02x}", b)).collect();
        assert_eq!(got, hex, "{}", what);
        seen += 1;
    }
    assert!(seen > 20, "{} records", seen);
}

fn rec(kind: u8, parts: &[&[u8]]) -> Vec<u8> {
    let body = parts.concat();
    let mut b = vec![8 + body.len() as u8, 0, 0, 0, kind, 0, 0, 0];
    b.extend(body);
    b.resize((b.len() + 7) & !7, 0);
    b
}

#[test]
fn update_says_nothing_new_of_what_is_not_active() {
    struct Updates;
    impl Plugin for Updates {
        type State = ();
        fn configure(_: &mut Config<'_>) -> Result<Self, Refused> {
            Ok(Updates)
        }
        fn readings(&self, ctx: &mut Context<'_>, _: &mut (), rs: Readings<'_>) {
            for r in rs {
                let a = Alert { rule: "r", key: r.metric(), value: 1.0, ..Alert::default() };
                if r.boolean() == Some(true) {
                    ctx.raise(&a)
                } else {
                    ctx.update(&Alert { text: "again", ..a })
                }
            }
        }
    }
    let mut h = Harness::<Updates>::new("{}");
    assert_eq!(h.send("d", &[boolean("k", false)]).alerts[0].signal, Signal::Update);
    assert!(h.active("d", "r", "k").is_none());
    h.send("d", &[boolean("k", true), boolean("k", false)]);
    assert_eq!(h.active("d", "r", "k").unwrap().text, "again");
}
