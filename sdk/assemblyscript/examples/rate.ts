// Derives how fast a metric changes, in its unit per minute, and raises an alert while that is too fast.

import { Config, Context, Metric, Plugin, Reading, Readings, Severity, register } from "@dunlin/plugin";

class Rate extends Plugin {
  metric: Metric = Metric.named("level");
  derived: string = "level.rate";
  limit: f64 = 5;

  configure(cfg: Config): void {
    this.metric = cfg.metric("metric", "level");
    this.derived = this.metric.name + ".rate";
    this.limit = cfg.number("per_minute", 5);
  }

  readings(ctx: Context, rs: Readings): void {
    for (let i = 0; i < rs.length; i++) {
      const r = rs[i];
      if (r.is(this.metric) && r.isNumber) this.reading(ctx, r);
    }
  }

  reading(ctx: Context, r: Reading): void {
    const state = ctx.load();
    const lastTime = state.time();
    const last = state.float();
    let active = state.bool();
    if (state.ok) {
      if (r.time <= lastTime) return;
      const rate = (r.value - last) / (<f64>(r.time - lastTime) / 60e6);
      ctx.emit(this.derived, rate, "", r.time);
      const fast = abs(rate) > this.limit;
      if (fast && !active) ctx.alert("rate", Severity.Warning, "", rate);
      if (!fast && active) ctx.clear("rate", "", rate);
      active = fast;
    }
    ctx.save().time(r.time).float(r.value).bool(active);
  }
}

register(new Rate());

export * from "@dunlin/plugin/exports";
