//! A threshold with hysteresis: an alert above one limit, which ends below another.
//!
//! Settings: `{"metric": "temp", "above": 8, "clear": 7, "severity": "major"}`, all optional.

#![cfg_attr(target_arch = "wasm32", no_std)]

use dunlin::{Alert, Config, Context, Metric, Plugin, Readings, Refused, Severity, State, StateReader, StateWriter};

/// The plugin, as its settings made it.
pub struct Threshold {
    metric: Metric,
    above: f64,
    clear: f64,
    severity: Severity,
}

/// Whether the alert is active; `None` while it never was, so that most devices need no state.
pub struct Active(Option<bool>);

impl State for Active {
    fn load(r: &mut StateReader<'_>) -> Self {
        Active(if r.is_empty() { None } else { Some(r.boolean()) })
    }

    fn save(&self, w: &mut StateWriter<'_>) {
        if let Some(active) = self.0 {
            w.boolean(active);
        }
    }
}

impl Plugin for Threshold {
    type State = Active;

    fn configure(cfg: &mut Config<'_>) -> Result<Self, Refused> {
        let t = Threshold {
            metric: cfg.metric("metric", "temp"),
            above: cfg.number("above", 8.0),
            clear: cfg.number("clear", 7.0),
            severity: cfg.severity("severity", Severity::Major),
        };
        if t.clear > t.above {
            return Err("setting clear must not be larger than above".into());
        }
        Ok(t)
    }

    fn readings(&self, ctx: &mut Context<'_>, mem: &mut Active, rs: Readings<'_>) {
        for r in rs {
            let value = match r.number() {
                Some(v) if r.is(self.metric) => v,
                _ => continue,
            };
            let active = mem.0 == Some(true);
            if !active && value > self.above {
                mem.0 = Some(true);
                ctx.alert("threshold", self.severity, "", value);
            } else if active && value < self.clear {
                mem.0 = Some(false);
                ctx.clear_with(&Alert { rule: "threshold", value, ..Alert::default() });
            }
        }
    }
}

dunlin::plugin!(Threshold);

#[cfg(test)]
mod tests {
    use super::*;
    use dunlin::testing::{number, refusal, Harness};

    #[test]
    fn told_once_and_cleared_below_the_other_limit() {
        let mut h = Harness::<Threshold>::new(r#"{"above": 10, "clear": 9}"#);
        assert!(h.send("d", &[number("temp", 9.5)]).alerts.is_empty());
        assert!(h.state("d").is_empty());
        assert_eq!(h.send("d", &[number("temp", 10.5)]).alerts[0].severity, Severity::Major);
        assert!(h.send("d", &[number("temp", 11.0), number("temp", 9.5)]).alerts.is_empty());
        assert!(h.active("d", "threshold", "").is_some());
        h.send("d", &[number("temp", 8.5)]);
        assert!(h.active("d", "threshold", "").is_none());
        assert_eq!(h.state("d"), [0]);
    }

    #[test]
    fn settings() {
        assert_eq!(refusal::<Threshold>(r#"{"above": "8"}"#), Some(r#"setting above must be a number, not "8""#.into()));
        assert_eq!(refusal::<Threshold>(r#"{"above": 5}"#), Some("setting clear must not be larger than above".into()));
    }
}
