/* my-plugin is a plugin for dunlin: it raises an alert when a metric is above a limit, and clears it when it is below another.
 *
 * Settings, all optional: {"metric": "temp", "above": 8, "clear": 7, "severity": "major"}. dunlin.yaml describes them for people
 * and tools. */
#include "sdk/dunlin.h"

/* The settings. */
static dunlin_metric metric;
static double above, clear;
static uint8_t severity;

/* The memory of the device whose turn it is: begin fills it from the device's state, end writes it back. Nothing else may be
 * remembered about devices: one instance serves many, and may be replaced at any time. */
static bool active, was_ever;

/* Reads the settings. A value of the wrong type refuses them by itself; dunlin_refuse does, too. */
static void configure(dunlin_config *cfg) {
  metric = dunlin_config_metric(cfg, "metric", "temp");
  above = dunlin_config_number(cfg, "above", 8);
  clear = dunlin_config_number(cfg, "clear", 7);
  severity = dunlin_config_severity(cfg, "severity", DUNLIN_MAJOR);
  if (clear > above) dunlin_refuse(cfg, "setting clear must not be more than above");
}

static void begin(dunlin_ctx *c) {
  active = dunlin_get_u8(c) != 0;
  was_ever = dunlin_got(c); /* false for a device that is new */
}

/* Writes the state. It goes to disk when it changed: tens of bytes, not thousands. */
static void end(dunlin_ctx *c) {
  if (was_ever) dunlin_put_u8(c, active);
}

/* Takes one report. */
static void readings(dunlin_ctx *c, const dunlin_reading *r, uint32_t n) {
  for (; n > 0; r++, n--) {
    if (!dunlin_is(r, metric) || !dunlin_is_number(r)) continue;
    if (!active && r->value > above) {
      dunlin_alert(c, "threshold", severity, "", r->value);
      active = was_ever = true;
    } else if (active && r->value < clear) {
      dunlin_clear_with(c, &(dunlin_signal){.rule = "threshold", .value = r->value});
      active = false;
    }
  }
}

DUNLIN_PLUGIN(.configure = configure, .begin = begin, .readings = readings, .end = end)
