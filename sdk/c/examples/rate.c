/* The rate of change: a derived metric, and an alert while it is beyond a limit.
 * Settings: {"metric": "level", "per_minute": 5}, all optional. */
#include "../dunlin.h"

static dunlin_metric metric;
static const char *derived;
static double per_minute;

static struct {
  dunlin_time time;
  double value;
  bool active, known;
} last; /* reading of the device at hand */

static void configure(dunlin_config *cfg) {
  metric = dunlin_config_metric(cfg, "metric", "level");
  derived = dunlin_join(dunlin_watched(metric), ".rate");
  per_minute = dunlin_config_number(cfg, "per_minute", 5);
}

static void begin(dunlin_ctx *c) {
  last.time = dunlin_get_i64(c);
  last.value = dunlin_get_f64(c);
  last.active = dunlin_get_u8(c) != 0;
  last.known = dunlin_got(c);
}

static void end(dunlin_ctx *c) {
  if (!last.known) return;
  dunlin_put_i64(c, last.time);
  dunlin_put_f64(c, last.value);
  dunlin_put_u8(c, last.active);
}

static void reading(dunlin_ctx *c, const dunlin_reading *r) {
  double minutes, rate;
  bool beyond;
  if (last.known) {
    if (r->time <= last.time) return; /* an old one that comes late */
    minutes = (double)(int64_t)((uint64_t)r->time - (uint64_t)last.time) / (double)DUNLIN_MINUTE;
    rate = (r->value - last.value) / minutes;
    dunlin_derive(c, &(dunlin_derived){.metric = derived, .time = r->time, .value = rate});
    beyond = rate > per_minute || rate < -per_minute;
    if (beyond && !last.active) dunlin_alert(c, "rate", DUNLIN_WARNING, "", rate);
    if (!beyond && last.active) dunlin_clear_with(c, &(dunlin_signal){.rule = "rate", .value = rate});
    last.active = beyond;
  } else {
    last.active = false;
  }
  last.time = r->time;
  last.value = r->value;
  last.known = true;
}

static void readings(dunlin_ctx *c, const dunlin_reading *r, uint32_t n) {
  for (; n > 0; r++, n--)
    if (dunlin_is(r, metric) && dunlin_is_number(r)) reading(c, r);
}

DUNLIN_PLUGIN(.configure = configure, .begin = begin, .readings = readings, .end = end)
