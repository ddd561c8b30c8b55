// Raises an alert when nothing was heard of a device for a while. Each report is only noted; the timer is not moved, but looks
// at the note when it fires, and is armed for the remainder: an arming is written to disk, a note is part of the state anyway.

import { Bytes, Config, Context, MINUTE, Plugin, Readings, Severity, Time, register } from "@dunlin/plugin";

class Absence extends Plugin {
  after: Time = MINUTE;

  configure(cfg: Config): void {
    this.after = <Time>(cfg.number("after_s", 60) * 1e6);
  }

  readings(ctx: Context, rs: Readings): void {
    this.heard(ctx);
  }

  raw(ctx: Context, payload: Bytes, format: u32): void {
    this.heard(ctx);
  }

  heard(ctx: Context): void {
    const state = ctx.load();
    state.time();
    const active = state.bool();
    const armed = state.bool();
    if (active) ctx.clear("absence");
    if (!armed) ctx.setTimer("silence", ctx.received + this.after);
    ctx.save().time(ctx.received).bool(false).bool(true);
  }

  timer(ctx: Context, name: string): void {
    if (name != "silence") return;
    const state = ctx.load();
    const last = state.time();
    let active = state.bool();
    const silent = ctx.received - last >= this.after;
    if (silent) {
      ctx.alert("absence", Severity.Major);
      active = true;
    } else {
      ctx.setTimer("silence", last + this.after);
    }
    ctx.save().time(last).bool(active).bool(!silent);
  }
}

register(new Absence());

export * from "@dunlin/plugin/exports";
