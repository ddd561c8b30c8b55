// Raises an alert while a metric is above a limit, and clears it below another one.

import { Config, Context, Metric, Plugin, Readings, Severity, register } from "@dunlin/plugin";

class Threshold extends Plugin {
  metric: Metric = Metric.named("temp");
  above: f64 = 8;
  below: f64 = 7;
  severity: u8 = Severity.Major;

  configure(cfg: Config): void {
    this.metric = cfg.metric("metric", "temp");
    this.above = cfg.number("above", 8);
    this.below = cfg.number("clear", 7);
    this.severity = Severity.parse(cfg.choice("severity", "major", ["info", "warning", "major", "critical"]));
    if (this.below > this.above) cfg.refuse("setting clear must not be more than above");
  }

  readings(ctx: Context, rs: Readings): void {
    for (let i = 0; i < rs.length; i++) {
      const r = rs[i];
      if (!r.is(this.metric) || !r.isNumber) continue;
      const active = ctx.load().bool();
      if (!active && r.value > this.above) {
        ctx.alert("threshold", this.severity, "", r.value);
        ctx.save().bool(true);
      } else if (active && r.value < this.below) {
        ctx.clear("threshold", "", r.value);
        ctx.save().bool(false);
      }
    }
  }
}

register(new Threshold());

export * from "@dunlin/plugin/exports";
