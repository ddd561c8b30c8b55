/* A plugin of two files, as one in another language is: this one has the handlers and only declarations of the rest. */
#define DUNLIN_SPLIT
#include "../dunlin.h"

static dunlin_metric temp;

static void configure(dunlin_config *cfg) { temp = dunlin_config_metric(cfg, "metric", "temp"); }

static void readings(dunlin_ctx *c, const dunlin_reading *r, uint32_t n) {
  for (; n > 0; r++, n--)
    if (dunlin_is(r, temp) && r->value > 8) dunlin_alert(c, "too-warm", DUNLIN_MAJOR, "warmer than 8 °C", r->value);
}

const dunlin_handlers dunlin_plugin = {.configure = configure, .readings = readings};
