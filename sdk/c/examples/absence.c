/* Absence: an alert about a device that was not heard of for a while.
 * Settings: {"after_s": 60}, optional. */
#include "../dunlin.h"

static dunlin_time after;

static struct {
  dunlin_time last;
  bool active, armed, known;
} seen; /* of the device at hand */

static void configure(dunlin_config *cfg) { after = dunlin_config_seconds(cfg, "after_s", 60); }

static void begin(dunlin_ctx *c) {
  seen.last = dunlin_get_i64(c);
  seen.active = dunlin_get_u8(c) != 0;
  seen.armed = dunlin_get_u8(c) != 0;
  seen.known = dunlin_got(c);
}

static void end(dunlin_ctx *c) {
  if (!seen.known) return;
  dunlin_put_i64(c, seen.last);
  dunlin_put_u8(c, seen.active);
  dunlin_put_u8(c, seen.armed);
}

static void sign(dunlin_ctx *c) {
  if (seen.active) {
    seen.active = false;
    dunlin_clear(c, "absence");
  }
  seen.known = true;
  seen.last = dunlin_received(c);
  /* The timer is not moved with each sign, since every arming is written to disk: it is armed once, and looks at the note
   * when it fires. */
  if (!seen.armed) {
    seen.armed = true;
    dunlin_set_timer(c, "silence", (dunlin_time)((uint64_t)seen.last + (uint64_t)after));
  }
}

static void readings(dunlin_ctx *c, const dunlin_reading *r, uint32_t n) {
  (void)r, (void)n;
  sign(c);
}

static void raw(dunlin_ctx *c, uint16_t format, const uint8_t *payload, uint32_t n) {
  (void)format, (void)payload, (void)n;
  sign(c);
}

static void timer(dunlin_ctx *c, dunlin_text name) {
  dunlin_time due = (dunlin_time)((uint64_t)seen.last + (uint64_t)after);
  if (!dunlin_same(name, "silence")) return;
  seen.known = true;
  if (dunlin_received(c) >= due) {
    seen.armed = false;
    seen.active = true;
    dunlin_alert(c, "absence", DUNLIN_MAJOR, "", DUNLIN_NO_VALUE);
  } else {
    seen.armed = true;
    dunlin_set_timer(c, "silence", due);
  }
}

DUNLIN_PLUGIN(.configure = configure, .begin = begin, .readings = readings, .raw = raw, .timer = timer, .end = end)
