/* A threshold with hysteresis: an alert above one limit, which ends below another.
 * Settings: {"metric": "temp", "above": 8, "clear": 7, "severity": "major"}, all optional. */
#include "../dunlin.h"

static dunlin_metric metric;
static double above, clear;
static uint8_t severity;

/* Of the device at hand. One that never was active needs no state. */
static bool active, was_ever;

static void configure(dunlin_config *cfg) {
  metric = dunlin_config_metric(cfg, "metric", "temp");
  above = dunlin_config_number(cfg, "above", 8);
  clear = dunlin_config_number(cfg, "clear", 7);
  severity = dunlin_config_severity(cfg, "severity", DUNLIN_MAJOR);
  if (clear > above) dunlin_refuse(cfg, "setting clear must not be larger than above");
}

static void begin(dunlin_ctx *c) {
  active = dunlin_get_u8(c) != 0;
  was_ever = dunlin_got(c);
}

static void end(dunlin_ctx *c) {
  if (was_ever) dunlin_put_u8(c, active);
}

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
