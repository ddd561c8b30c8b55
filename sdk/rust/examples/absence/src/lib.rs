//! Absence: an alert about a device that was not heard of for a while.
//!
//! Settings: `{"after_s": 60}`, optional.

#![cfg_attr(target_arch = "wasm32", no_std)]

use dunlin::{Config, Context, Plugin, Raw, Readings, Refused, Severity, State, StateReader, StateWriter, Time, NO_VALUE};

/// The plugin, as its settings made it.
pub struct Absence {
    after: Time,
}

/// What is remembered of a device.
pub struct Seen {
    last: Time,
    active: bool,
    armed: bool,
}

impl State for Seen {
    fn load(r: &mut StateReader<'_>) -> Self {
        Seen { last: r.time(), active: r.boolean(), armed: r.boolean() }
    }

    fn save(&self, w: &mut StateWriter<'_>) {
        w.time(self.last);
        w.boolean(self.active);
        w.boolean(self.armed);
    }
}

impl Absence {
    fn sign(&self, ctx: &mut Context<'_>, mem: &mut Seen) {
        if mem.active {
            mem.active = false;
            ctx.clear("absence");
        }
        mem.last = ctx.received();
        // The timer is not moved with each sign, since every arming is written to disk: it is armed once, and looks at the
        // note when it fires.
        if !mem.armed {
            mem.armed = true;
            ctx.set_timer("silence", mem.last.saturating_add(self.after));
        }
    }
}

impl Plugin for Absence {
    type State = Seen;

    fn configure(cfg: &mut Config<'_>) -> Result<Self, Refused> {
        Ok(Absence { after: cfg.seconds("after_s", 60) })
    }

    fn readings(&self, ctx: &mut Context<'_>, mem: &mut Seen, _: Readings<'_>) {
        self.sign(ctx, mem);
    }

    fn raw(&self, ctx: &mut Context<'_>, mem: &mut Seen, _: Raw<'_>) {
        self.sign(ctx, mem);
    }

    fn timer(&self, ctx: &mut Context<'_>, mem: &mut Seen, name: &str) {
        if name != "silence" {
            return;
        }
        let due = mem.last.saturating_add(self.after);
        if ctx.received() >= due {
            mem.armed = false;
            mem.active = true;
            ctx.alert("absence", Severity::Major, "", NO_VALUE);
        } else {
            mem.armed = true;
            ctx.set_timer("silence", due);
        }
    }
}

dunlin::plugin!(Absence);

#[cfg(test)]
mod tests {
    use super::*;
    use dunlin::testing::{number, Harness};
    use dunlin::SECOND;

    #[test]
    fn silence_is_noticed_and_ends() {
        let mut h = Harness::<Absence>::new("{}");
        h.send("d", &[number("temp", 1.0)]);
        h.advance(50 * SECOND);
        h.send_raw("d", 42, b"still here");
        h.advance(50 * SECOND);
        assert!(h.active("d", "absence", "").is_none());
        h.advance(10 * SECOND);
        assert!(h.active("d", "absence", "").is_some());
        h.send("d", &[number("temp", 1.0)]);
        assert!(h.active("d", "absence", "").is_none());
    }
}
