//! my-plugin is a plugin for dunlin: it raises an alert when a metric is above a limit, and clears it when it is below another.
//!
//! Settings: `{"metric": "temp", "above": 8, "clear": 7, "severity": "major"}`, all optional; dunlin.yaml describes them for
//! people and tools.

#![cfg_attr(target_arch = "wasm32", no_std)]

use dunlin::{Alert, Config, Context, Metric, Plugin, Readings, Refused, Severity, State, StateReader, StateWriter};

/// The settings. Nothing about devices may be remembered here: one instance serves many, and may be replaced at any time.
pub struct Threshold {
    metric: Metric,
    above: f64,
    clear: f64,
    severity: Severity,
}

/// What is remembered of a device: whether the alert is active, `None` while it never was, so that most need no state. It goes to
/// disk when it changed: tens of bytes, not thousands.
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

    /// Reads the settings. A value of the wrong type refuses them by itself; an error does, too.
    fn configure(cfg: &mut Config<'_>) -> Result<Self, Refused> {
        let t = Threshold {
            metric: cfg.metric("metric", "temp"),
            above: cfg.number("above", 8.0),
            clear: cfg.number("clear", 7.0),
            severity: cfg.severity("severity", Severity::Major),
        };
        if t.clear > t.above {
            return Err("setting clear must not be more than above".into());
        }
        Ok(t)
    }

    /// Takes one report.
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

// The handlers, natively: `cargo test`. The cases in tests/ run the module.
#[cfg(test)]
mod tests {
    use super::*;
    use dunlin::testing::{number, refusal, Harness};

    #[test]
    fn raised_once_and_cleared_below_the_lower_limit() {
        let mut h = Harness::<Threshold>::new(r#"{"above": 8, "clear": 7}"#);
        for (value, active) in [(7.5, false), (9.1, true), (7.5, true), (6.9, false), (7.5, false)] {
            h.send("fridge-1", &[number("temp", value)]);
            assert_eq!(h.active("fridge-1", "threshold", "").is_some(), active, "at {value}");
        }
    }

    #[test]
    fn settings() {
        assert_eq!(refusal::<Threshold>("{}"), None);
        assert_eq!(refusal::<Threshold>(r#"{"above": "8"}"#), Some(r#"setting above must be a number, not "8""#.into()));
        assert_eq!(refusal::<Threshold>(r#"{"above": 5}"#), Some("setting clear must not be more than above".into()));
    }
}
