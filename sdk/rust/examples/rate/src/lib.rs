//! The rate of change: a derived metric, and an alert while it is beyond a limit.
//!
//! Settings: `{"metric": "level", "per_minute": 5}`, all optional.

#![cfg_attr(target_arch = "wasm32", no_std)]

use dunlin::{Alert, Config, Context, Derived, Metric, Plugin, Readings, Refused, Severity, State, StateReader, StateWriter, Time, MINUTE};

/// The plugin, as its settings made it.
pub struct Rate {
    metric: Metric,
    derived: &'static str,
    per_minute: f64,
}

/// The last reading, if there was one.
pub struct Last(Option<(Time, f64)>, bool);

impl State for Last {
    fn load(r: &mut StateReader<'_>) -> Self {
        let (last, active) = ((r.time(), r.float()), r.boolean());
        if r.ok() {
            Last(Some(last), active)
        } else {
            Last(None, false)
        }
    }

    fn save(&self, w: &mut StateWriter<'_>) {
        if let Last(Some((time, value)), active) = *self {
            w.time(time);
            w.float(value);
            w.boolean(active);
        }
    }
}

impl Plugin for Rate {
    type State = Last;

    fn configure(cfg: &mut Config<'_>) -> Result<Self, Refused> {
        let metric = cfg.metric("metric", "level");
        let name = cfg.name(metric);
        Ok(Rate { metric, derived: cfg.join(&[name, ".rate"]), per_minute: cfg.number("per_minute", 5.0) })
    }

    fn readings(&self, ctx: &mut Context<'_>, Last(last, active): &mut Last, rs: Readings<'_>) {
        for r in rs {
            let (time, value) = match r.number() {
                Some(v) if r.is(self.metric) => (r.time(), v),
                _ => continue,
            };
            let (last_time, last_value) = match *last {
                Some((t, _)) if time <= t => continue, // an old one that comes late
                Some(last) => last,
                None => {
                    *last = Some((time, value));
                    continue;
                }
            };
            *last = Some((time, value));
            let minutes = time.wrapping_sub(last_time) as f64 / MINUTE as f64;
            let rate = (value - last_value) / minutes;
            ctx.derive(&Derived { metric: self.derived, time, value: rate, ..Derived::default() });
            let beyond = rate > self.per_minute || rate < -self.per_minute;
            if beyond && !*active {
                ctx.alert("rate", Severity::Warning, "", rate);
            } else if !beyond && *active {
                ctx.clear_with(&Alert { rule: "rate", value: rate, ..Alert::default() });
            }
            *active = beyond;
        }
    }
}

dunlin::plugin!(Rate);

#[cfg(test)]
mod tests {
    use super::*;
    use dunlin::testing::{number, Harness};

    #[test]
    fn a_tank_that_empties_too_fast() {
        let mut h = Harness::<Rate>::new(r#"{"per_minute": 3}"#);
        assert!(h.send("tank", &[number("level", 50.0)]).readings.is_empty());
        h.advance(2 * MINUTE);
        let got = h.send("tank", &[number("level", 46.0)]);
        assert_eq!((got.readings[0].metric.as_str(), got.readings[0].value), ("level.rate", -2.0));
        h.advance(MINUTE);
        h.send("tank", &[number("level", 42.0)]);
        assert_eq!(h.active("tank", "rate", "").map(|a| a.value), Some(-4.0));
        assert!(h.send("tank", &[number("level", 0.0)]).readings.is_empty()); // of the same moment
        h.advance(MINUTE);
        h.send("tank", &[number("level", 42.0)]);
        assert!(h.active("tank", "rate", "").is_none());
    }
}
