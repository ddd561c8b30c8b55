// my-plugin is a plugin for dunlin: it raises an alert when a metric is above a limit, and clears it when it is below another.
//
// Settings, all optional: {"metric": "temp", "above": 8, "clear": 7, "severity": "major"}. dunlin.yaml describes them for people
// and tools.

import { Config, Context, Metric, Plugin, Readings, Severity, register } from "@dunlin/plugin";

/** Fields are for settings. Nothing about devices may be kept here: one instance serves many, and may be replaced at any time. */
class Threshold extends Plugin {
  metric: Metric = Metric.named("temp");
  above: f64 = 8;
  below: f64 = 7;
  severity: u8 = Severity.Major;

  /** Reads the settings. A value of the wrong type refuses them by itself; cfg.refuse does, too. */
  configure(cfg: Config): void {
    this.metric = cfg.metric("metric", "temp");
    this.above = cfg.number("above", 8);
    this.below = cfg.number("clear", 7);
    this.severity = Severity.parse(cfg.choice("severity", "major", ["info", "warning", "major", "critical"]));
    if (this.below > this.above) cfg.refuse("setting clear must not be more than above");
  }

  /** Takes one report. */
  readings(ctx: Context, rs: Readings): void {
    for (let i = 0; i < rs.length; i++) {
      const r = rs[i];
      if (!r.is(this.metric) || !r.isNumber) continue;
      // The device's state comes with its readings; for a device that is new every value is zero.
      const active = ctx.load().bool();
      if (!active && r.value > this.above) {
        ctx.alert("threshold", this.severity, "", r.value);
        ctx.save().bool(true); // goes to disk when it changed: tens of bytes, not thousands
      } else if (active && r.value < this.below) {
        ctx.clear("threshold", "", r.value);
        ctx.save().bool(false);
      }
    }
  }
}

register(new Threshold());
export * from "@dunlin/plugin/exports";
