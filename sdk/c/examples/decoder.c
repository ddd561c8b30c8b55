/* A decoder: octets in, readings out.
 * A payload is a version, 1, and then triples of a channel and a little-endian i16 of hundredths. No settings. */
#include "../dunlin.h"

static const struct {
  const char *metric, *unit;
} channels[] = {{NULL, NULL}, {"temp", "Cel"}, {"humidity", "%RH"}, {"battery", "V"}};

static void raw(dunlin_ctx *c, uint16_t format, const uint8_t *p, uint32_t n) {
  uint32_t i;
  (void)format;
  if (n < 4 || n % 3 != 1 || p[0] != 1) {
    dunlin_fail_input(c, "bad payload");
    return;
  }
  for (i = 1; i < n; i += 3) {
    if (p[i] < 1 || p[i] > 3) {
      dunlin_fail_input(c, "bad payload"); /* what was derived from this payload is taken back */
      return;
    }
    dunlin_derive(c, &(dunlin_derived){.metric = channels[p[i]].metric, .unit = channels[p[i]].unit,
                                       .value = (int16_t)(p[i + 1] | p[i + 2] << 8) / 100.0});
  }
}

DUNLIN_PLUGIN(.raw = raw)
