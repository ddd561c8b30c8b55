/* dunlin.h: plugins for dunlin, the IoT runtime, in C11. Apache-2.0.
 *
 * A plugin is one file that includes this header, defines handlers and ends with DUNLIN_PLUGIN:
 *
 *   #include "dunlin.h"
 *
 *   static void readings(dunlin_ctx *c, const dunlin_reading *r, uint32_t n) {
 *     for (; n > 0; r++, n--)
 *       if (dunlin_is_number(r) && dunlin_same(dunlin_metric_name(r), "temp") && r->value > 8)
 *         dunlin_alert(c, "too-warm", DUNLIN_MAJOR, "warmer than 8 °C", r->value);
 *   }
 *
 *   DUNLIN_PLUGIN(.readings = readings)
 *
 *   clang --target=wasm32 -O3 -mbulk-memory -nostdlib -Wl,--no-entry -o my-plugin.wasm my-plugin.c
 *
 * There is no libc, and none is needed. docs/plugins-c.md is the tutorial.
 *
 * What to rely on. The runtime keeps a plugin's memory of a device: the state, bytes which come with the device's inputs and
 * are committed with what the plugin made of them. Nothing else survives: an instance serves many devices and may be replaced
 * between any two calls, so a static variable may hold what configure() derived from the settings, or what begin() read from
 * the state, and nothing else. Time is the device's: dunlin_now() is the moment of the input, the same in a replay.
 *
 * Names that begin with dunlin__ are the header's own.
 *
 * Several files, or another language: define DUNLIN_SPLIT before including the header; then it only declares. One C file
 * defines DUNLIN_SPLIT and DUNLIN_IMPLEMENTATION, and ends with DUNLIN_PLUGIN or DUNLIN_PLUGIN_EXTERN.
 */
#ifndef DUNLIN_H
#define DUNLIN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef DUNLIN_SPLIT
#define DUNLIN_API
#else
#define DUNLIN_API static inline __attribute__((unused))
#endif

/* ---- what a plugin sees ---------------------------------------------------------------------------------------------- */

/* A moment, or a span of time, in microseconds; moments since 1970-01-01 00:00 UTC. */
typedef int64_t dunlin_time;
#define DUNLIN_SECOND INT64_C(1000000)
#define DUNLIN_MINUTE (60 * DUNLIN_SECOND)
#define DUNLIN_HOUR (60 * DUNLIN_MINUTE)

/* A text or bytes that lie in the runtime's frame: yours until the handler returns. */
typedef struct {
  const char *p;
  uint32_t n;
} dunlin_text;

enum { DUNLIN_INFO = 1, DUNLIN_WARNING = 2, DUNLIN_MAJOR = 3, DUNLIN_CRITICAL = 4 };               /* of an alert */
enum { DUNLIN_LOG_DEBUG = 0, DUNLIN_LOG_INFO = 1, DUNLIN_LOG_WARNING = 2, DUNLIN_LOG_ERROR = 3 };  /* of a line of the log */
enum { DUNLIN_NUMBER = 1, DUNLIN_BOOLEAN = 2, DUNLIN_TEXT = 3, DUNLIN_DATA = 4 };                  /* of a value */

/* The value of an alert that has none. */
#define DUNLIN_NO_VALUE (__builtin_nan(""))

/* One value of one metric, as it lies in the frame. */
typedef struct {
  uint32_t metric; /* see dunlin_is and dunlin_metric_name */
  uint16_t unit;   /* see dunlin_unit_name */
  uint8_t kind;    /* DUNLIN_NUMBER … */
  uint8_t flags;
  dunlin_time time; /* when it was measured */
  double value;     /* of a number; 0 or 1 of a boolean. Else see dunlin_value */
} dunlin_reading;

/* A metric that a plugin looks out for: see dunlin_config_metric. */
typedef uint32_t dunlin_metric;

/* What came of a command. */
typedef struct {
  dunlin_text id;      /* as the runtime made it: the number of the input that sent it, and which of its commands it was */
  bool timed_out;      /* the deadline passed without an answer; then there is no payload */
  uint16_t format;     /* content format of the payload, as in CoAP */
  dunlin_text payload; /* the device's answer */
} dunlin_result;

/* What happened to a device's registration. Texts are as in JSON, with escapes as they stand. */
typedef struct {
  dunlin_text event;  /* "registered", or "changed" if it is its domain or its labels that changed */
  dunlin_text domain; /* the device's domain */
  dunlin_text was;    /* the domain before; empty if it is the same */
  dunlin_text labels; /* a JSON object; see dunlin_member */
} dunlin_lifecycle;

typedef struct dunlin_ctx dunlin_ctx;       /* a device's turn: what came, and where to put what comes of it */
typedef struct dunlin_config dunlin_config; /* the settings */

/* The handlers; those that are missing are not called.
 *
 * For each device with new inputs the runtime calls begin, then migrate and configured if there is reason to, then readings,
 * raw, timer, result or lifecycle for each input in order, then end. */
typedef struct {
  /* Reads the settings, once for each instance, before anything else. dunlin_refuse says what is wrong with them; a value of
   * the wrong type does so by itself. */
  void (*configure)(dunlin_config *cfg);
  /* The place to read the state: dunlin_get_… */
  void (*begin)(dunlin_ctx *c);
  /* Takes the readings of one report. */
  void (*readings)(dunlin_ctx *c, const dunlin_reading *r, uint32_t n);
  /* Takes a payload that the runtime doesn't decode, with its content format as in CoAP; 42 is octets. */
  void (*raw)(dunlin_ctx *c, uint16_t format, const uint8_t *payload, uint32_t n);
  /* A timer that dunlin_set_timer armed is due. */
  void (*timer)(dunlin_ctx *c, dunlin_text name);
  /* A command was answered, or its deadline passed. */
  void (*result)(dunlin_ctx *c, const dunlin_result *r);
  /* The device was registered, or its domain or labels changed. */
  void (*lifecycle)(dunlin_ctx *c, const dunlin_lifecycle *e);
  /* The state was made by another version of the plugin, whose module's hash begins with these four bytes. */
  void (*migrate)(dunlin_ctx *c, uint32_t module);
  /* The state was made under other settings. */
  void (*configured)(dunlin_ctx *c);
  /* The place to write the state: dunlin_put_… */
  void (*end)(dunlin_ctx *c);
} dunlin_handlers;

/* What is to be said about a condition: see dunlin_raise. */
typedef struct {
  const char *rule;  /* at most 64 bytes of [A-Za-z0-9._:~@-] */
  const char *key;   /* which of the rule's alerts at the device, in the alphabet of metrics; NULL if there is one */
  uint8_t severity;  /* DUNLIN_INFO …; not for dunlin_clear_with */
  const char *text;  /* a sentence for people, or NULL */
  double value;      /* what did it, or DUNLIN_NO_VALUE */
} dunlin_signal;

/* A reading that a plugin makes: see dunlin_derive. */
typedef struct {
  const char *metric;
  const char *unit; /* SenML, or NULL */
  dunlin_time time; /* when it was measured; 0: when the input at hand was received */
  uint8_t kind;     /* DUNLIN_NUMBER …; 0: a number */
  double value;     /* of a number; 0 or 1 of a boolean */
  dunlin_text text; /* of a text or of data */
} dunlin_derived;

/* The settings. They are read by key, with what to use if the key isn't there. Texts live as long as the instance. */
DUNLIN_API bool dunlin_config_has(dunlin_config *cfg, const char *key);
DUNLIN_API double dunlin_config_number(dunlin_config *cfg, const char *key, double otherwise);
DUNLIN_API int64_t dunlin_config_int(dunlin_config *cfg, const char *key, int64_t otherwise); /* at most 15 digits */
DUNLIN_API bool dunlin_config_bool(dunlin_config *cfg, const char *key, bool otherwise);
DUNLIN_API const char *dunlin_config_text(dunlin_config *cfg, const char *key, const char *otherwise);
DUNLIN_API uint8_t dunlin_config_severity(dunlin_config *cfg, const char *key, uint8_t otherwise);
DUNLIN_API dunlin_time dunlin_config_seconds(dunlin_config *cfg, const char *key, int64_t otherwise); /* a number of them */
DUNLIN_API dunlin_time dunlin_config_duration(dunlin_config *cfg, const char *key, dunlin_time otherwise); /* "90s", "1h30m" */
DUNLIN_API dunlin_metric dunlin_config_metric(dunlin_config *cfg, const char *key, const char *otherwise);
/* A metric to look out for that is no setting. At most 64 can be. */
DUNLIN_API dunlin_metric dunlin_watch(dunlin_config *cfg, const char *name);
/* The name of a metric that is looked out for. */
DUNLIN_API const char *dunlin_watched(dunlin_metric m);
/* One text from two, say the name of a derived metric. It lives as long as the instance. */
DUNLIN_API const char *dunlin_join(const char *a, const char *b);
/* Refuses the settings: a sentence for the person who made them. */
DUNLIN_API void dunlin_refuse(dunlin_config *cfg, const char *why);

/* Readings. dunlin_is compares two numbers, not two texts. */
DUNLIN_API bool dunlin_is(const dunlin_reading *r, dunlin_metric m);
DUNLIN_API bool dunlin_is_number(const dunlin_reading *r);
DUNLIN_API dunlin_text dunlin_metric_name(const dunlin_reading *r);
DUNLIN_API dunlin_text dunlin_unit_name(const dunlin_reading *r);
/* The bytes of a text or of data of the report at hand. */
DUNLIN_API dunlin_text dunlin_value(dunlin_ctx *c, const dunlin_reading *r);
/* Whether the device's clock is off by more than its domain allows: then times are those of the receipt. */
DUNLIN_API bool dunlin_clock_off(dunlin_ctx *c);

/* The device. */
DUNLIN_API dunlin_text dunlin_device(dunlin_ctx *c);
DUNLIN_API uint64_t dunlin_seq(dunlin_ctx *c);          /* the number of the input at hand: 1 for a device's first */
DUNLIN_API dunlin_time dunlin_received(dunlin_ctx *c);  /* when it was received; of a timer, when it was due */
DUNLIN_API dunlin_time dunlin_now(dunlin_ctx *c);       /* the runtime's clock: later if the input had to wait */

/* The state, in begin, migrate or end. For a device that is new to the plugin every value reads as zero; dunlin_got says
 * whether all so far were there. It is written to disk whenever it changes: keep it to tens of bytes. What is put replaces
 * the state; without a put it stays. */
DUNLIN_API dunlin_text dunlin_state(dunlin_ctx *c); /* all of it, as it came */
DUNLIN_API uint8_t dunlin_get_u8(dunlin_ctx *c);
DUNLIN_API uint32_t dunlin_get_u32(dunlin_ctx *c);
DUNLIN_API int64_t dunlin_get_i64(dunlin_ctx *c);
DUNLIN_API double dunlin_get_f64(dunlin_ctx *c);
DUNLIN_API bool dunlin_get(dunlin_ctx *c, void *to, uint32_t n); /* zeros if there are fewer */
DUNLIN_API bool dunlin_got(dunlin_ctx *c);
DUNLIN_API void dunlin_put_u8(dunlin_ctx *c, uint8_t v);
DUNLIN_API void dunlin_put_u32(dunlin_ctx *c, uint32_t v);
DUNLIN_API void dunlin_put_i64(dunlin_ctx *c, int64_t v);
DUNLIN_API void dunlin_put_f64(dunlin_ctx *c, double v);
DUNLIN_API void dunlin_put(dunlin_ctx *c, const void *from, uint32_t n);

/* Alerts. Raising again what is active only updates it: people are told once. dunlin_update does nothing if it isn't. */
DUNLIN_API void dunlin_alert(dunlin_ctx *c, const char *rule, uint8_t severity, const char *text, double value);
DUNLIN_API void dunlin_clear(dunlin_ctx *c, const char *rule);
DUNLIN_API void dunlin_raise(dunlin_ctx *c, const dunlin_signal *s);
DUNLIN_API void dunlin_update(dunlin_ctx *c, const dunlin_signal *s);
DUNLIN_API void dunlin_clear_with(dunlin_ctx *c, const dunlin_signal *s);

/* Derived readings: a number at the time of the input, and any. */
DUNLIN_API void dunlin_emit(dunlin_ctx *c, const char *metric, double value);
DUNLIN_API void dunlin_derive(dunlin_ctx *c, const dunlin_derived *d);

/* Timers. One fires once, as a call of the handler, also after a restart. Every arming is written to disk: don't move a timer
 * with each reading; let it fire, and arm it for the remainder. */
DUNLIN_API void dunlin_set_timer(dunlin_ctx *c, const char *name, dunlin_time at);
DUNLIN_API void dunlin_cancel_timer(dunlin_ctx *c, const char *name);

/* Asks the device to do something by a deadline, 0: a day from now. The manifest must ask for the capability "command". */
DUNLIN_API void dunlin_command(dunlin_ctx *c, const char *name, uint16_t format, const void *payload, uint32_t n, dunlin_time deadline);
/* Sends a message to the applications that subscribe to the topic. The manifest must ask for "publish". */
DUNLIN_API void dunlin_publish(dunlin_ctx *c, const char *topic, uint16_t format, const void *payload, uint32_t n);

/* Refuses all inputs of the turn: nothing that was made of them counts. The reason is kept with them in the list of dead
 * letters; the readings themselves are kept. */
DUNLIN_API void dunlin_fail(dunlin_ctx *c, const char *why);
/* Refuses the input at hand alone: nothing that was said about it counts. What was noted for the state stays noted, so look
 * at the input first. */
DUNLIN_API void dunlin_fail_input(dunlin_ctx *c, const char *why);
/* Writes a line to the node's log, at most 20 a second for the plugin. */
DUNLIN_API void dunlin_log(dunlin_ctx *c, uint8_t level, const char *text);
/* Ends the call with a trap, and its reason in the log: for what must not happen. */
_Noreturn DUNLIN_API void dunlin_die(const char *why);

/* Texts. */
DUNLIN_API bool dunlin_same(dunlin_text a, const char *b);
/* The value of a member of a JSON object; of a string what is between its quotes. */
DUNLIN_API dunlin_text dunlin_member(dunlin_text object, const char *key);

/* A line to write: char buf[64]; dunlin_line l = {buf, sizeof buf, 0}; dunlin_str(&l, "it is "); dunlin_fixed(&l, v, 1);
 * then buf is the text. What is too long is cut. */
typedef struct {
  char *p;
  uint32_t size, n;
} dunlin_line;
DUNLIN_API void dunlin_str(dunlin_line *l, const char *s);
DUNLIN_API void dunlin_int(dunlin_line *l, int64_t v);
DUNLIN_API void dunlin_fixed(dunlin_line *l, double v, uint32_t decimals); /* at most 9 */

#ifdef __wasm__
#define DUNLIN_EXPORT(name) __attribute__((export_name(name), used))
#else
#define DUNLIN_EXPORT(name) __attribute__((used))
#endif

/* Makes handlers the module's plugin: DUNLIN_PLUGIN(.configure = configure, .readings = readings) */
#define DUNLIN_PLUGIN(...)                                      \
  static const dunlin_handlers dunlin__handlers = {__VA_ARGS__}; \
  DUNLIN__EXPORTS(dunlin__handlers)

/* The same for handlers that another file defines: const dunlin_handlers NAME. */
#define DUNLIN_PLUGIN_EXTERN(name)      \
  extern const dunlin_handlers name;     \
  DUNLIN__EXPORTS(name)

#define DUNLIN__EXPORTS(handlers)                                                                       \
  DUNLIN_EXPORT("dunlin_abi_v1") void dunlin_abi_v1(void) {}                                            \
  DUNLIN_EXPORT("dunlin_buffer") uint32_t dunlin_buffer(uint32_t size) { return dunlin__buffer(size); } \
  DUNLIN_EXPORT("dunlin_init") uint64_t dunlin_init(uint32_t len) {                                     \
    if (len > dunlin__g.in.n) return dunlin__result(dunlin__error("bad frame"));                        \
    return dunlin__result(dunlin__init(&handlers, dunlin__g.in.p, len));                                \
  }                                                                                                     \
  DUNLIN_EXPORT("dunlin_process") uint64_t dunlin_process(uint32_t len) {                               \
    if (len > dunlin__g.in.n) return dunlin__result(dunlin__error("bad frame"));                        \
    return dunlin__result(dunlin__process(&handlers, dunlin__g.in.p, len));                             \
  }

#ifdef DUNLIN_SPLIT
#ifdef DUNLIN_IMPLEMENTATION
#define DUNLIN__BODY
#endif
#else
#define DUNLIN__BODY
#endif

#ifdef DUNLIN__BODY
/* ---- the header's own ------------------------------------------------------------------------------------------------ */

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "frames are little-endian, and used where they lie"
#endif

#define DUNLIN__HOT static inline __attribute__((always_inline, unused))
#define DUNLIN__COLD static __attribute__((noinline, unused)) /* or of a size that should be paid alone */

enum {
  DUNLIN__NAME = 1, DUNLIN__FORGET, DUNLIN__CONFIG, DUNLIN__BATCH, DUNLIN__DEVICE,
  DUNLIN__TELEMETRY, DUNLIN__RAW, DUNLIN__TIMER, DUNLIN__RESULT, DUNLIN__LIFECYCLE,
  DUNLIN__INPUT_LAST = 127, DUNLIN__MIGRATE = 128, DUNLIN__CONFIGURED = 129,
  DUNLIN__GROUP = 256, DUNLIN__STATE, DUNLIN__ALERT, DUNLIN__READING, DUNLIN__SET, DUNLIN__LOG, DUNLIN__ERROR,
  DUNLIN__COMMAND, DUNLIN__PUBLISH,
};
enum { DUNLIN__WATCH_MAX = 64, DUNLIN__NAMES_MAX = 65536, DUNLIN__DEPTH_MAX = 16, DUNLIN__DIGITS_MAX = 100, DUNLIN__LIMBS = 50 };

/* Bytes that grow. They double, and what they were before is not given back: all of it is at most twice what they are. */
typedef struct {
  uint8_t *p;
  uint32_t n, cap;
} dunlin__buf;

struct dunlin_ctx {
  const uint8_t *rec; /* the report at hand */
  uint32_t rec_n;
  dunlin_time now, received;
  uint32_t index; /* of the device in the frame, from 1; 0 before the first */
  uint32_t input; /* of the device, from 1; 0 in what is called before the first */
  uint64_t seq;
  dunlin_text id, state;
  uint32_t at; /* of what was got of the state */
  bool short_, put;
  uint32_t start, input_start; /* in the answer: of the device's records, and of the input's */
  bool opened, input_opened;   /* the answer names the device */
  bool failed, input_failed;
};

struct dunlin_config {
  dunlin_text text;
  uint64_t read[4]; /* which members were asked for, of the first 256 */
  bool wrong;
};

static struct {
  dunlin__buf in, out, names, spans, state;
  uint32_t count;                      /* ids known, with 0, the empty name */
  uint32_t ids[DUNLIN__WATCH_MAX + 1]; /* of the watched; 0: not spoken of yet. The last is of no metric */
  const char *watched[DUNLIN__WATCH_MAX];
  uint32_t watching;
  bool full, configured; /* no memory for the answer; the settings were taken */
  char why[200];         /* an error's text */
  dunlin_ctx ctx;
} dunlin__g;

#ifdef __wasm__
extern uint8_t __heap_base;
__attribute__((import_module("dunlin_v1"), import_name("log"))) void dunlin__host_log(uint32_t level, const char *p, uint32_t n);
static uint8_t *dunlin__top;

/* Returns n bytes, 8-aligned and zero; NULL if there is no memory. */
DUNLIN__COLD uint8_t *dunlin__alloc(uint32_t n) {
  uint64_t top, end;
  if (!dunlin__top) dunlin__top = &__heap_base;
  top = ((uint64_t)(uintptr_t)dunlin__top + 7) & ~(uint64_t)7;
  end = (uint64_t)__builtin_wasm_memory_size(0) << 16;
  if (top + n > end && __builtin_wasm_memory_grow(0, (size_t)((top + n - end + 65535) >> 16)) == (size_t)-1) return NULL;
  dunlin__top = (uint8_t *)(uintptr_t)(top + n);
  return (uint8_t *)(uintptr_t)top;
}
#else
#include <stdio.h>
#include <stdlib.h>
DUNLIN__COLD uint8_t *dunlin__alloc(uint32_t n) { return (uint8_t *)calloc(n ? n : 1, 1); }
DUNLIN__COLD void dunlin__host_log(uint32_t level, const char *p, uint32_t n) { fprintf(stderr, "log %u: %.*s\n", level, (int)n, p); }
#endif

DUNLIN__HOT uint16_t dunlin__u16(const uint8_t *p) { uint16_t v; __builtin_memcpy(&v, p, 2); return v; }
DUNLIN__HOT uint32_t dunlin__u32(const uint8_t *p) { uint32_t v; __builtin_memcpy(&v, p, 4); return v; }
DUNLIN__HOT uint64_t dunlin__u64(const uint8_t *p) { uint64_t v; __builtin_memcpy(&v, p, 8); return v; }
DUNLIN__HOT void dunlin__put32(uint8_t *p, uint32_t v) { __builtin_memcpy(p, &v, 4); }
DUNLIN__HOT void dunlin__put64(uint8_t *p, uint64_t v) { __builtin_memcpy(p, &v, 8); }
DUNLIN__HOT uint32_t dunlin__align(uint32_t n) { return (n + 7) & ~7u; }

DUNLIN__HOT void dunlin__copy(void *to, const void *from, uint32_t n) {
  if (n) __builtin_memcpy(to, from, n);
}

DUNLIN__HOT bool dunlin__equal(const void *a, const void *b, uint32_t n) {
  const uint8_t *x = a, *y = b;
  for (; n >= 8; x += 8, y += 8, n -= 8)
    if (dunlin__u64(x) != dunlin__u64(y)) return false;
  for (; n; n--)
    if (*x++ != *y++) return false;
  return true;
}

/* The length of a text; a constant, if the text is one. */
DUNLIN__HOT uint32_t dunlin__len(const char *s) {
  uint32_t n = 0;
  if (!s) return 0;
  if (__builtin_constant_p(__builtin_strlen(s))) return (uint32_t)__builtin_strlen(s);
  while (((const volatile char *)s)[n]) n++; /* volatile, or the compiler makes it a call of strlen */
  return n;
}

DUNLIN__COLD bool dunlin__grow(dunlin__buf *b, uint32_t n) {
  uint64_t need = (uint64_t)b->n + n, cap = 2 * (uint64_t)b->cap;
  uint8_t *p;
  if (cap < need) cap = need;
  if (cap < 1024) cap = 1024;
  if (cap > UINT32_MAX / 4 || !(p = dunlin__alloc((uint32_t)cap))) return false;
  dunlin__copy(p, b->p, b->n);
  b->p = p;
  b->cap = (uint32_t)cap;
  return true;
}

/* Makes b longer by n bytes, whatever they are; NULL if there is no memory. */
DUNLIN__HOT uint8_t *dunlin__extend(dunlin__buf *b, uint32_t n) {
  uint8_t *p;
  if (n > b->cap - b->n && !dunlin__grow(b, n)) return NULL;
  p = b->p + b->n;
  b->n += n;
  return p;
}

/* A copy, with a zero behind it, that lives as long as the instance. */
DUNLIN__COLD char *dunlin__keep(const char *p, uint32_t n) {
  char *copy = n < UINT32_MAX / 4 ? (char *)dunlin__alloc(n + 1) : NULL;
  if (copy) {
    dunlin__copy(copy, p, n);
    copy[n] = 0;
  }
  return copy;
}

/* ---- texts */

DUNLIN_API bool dunlin_same(dunlin_text a, const char *b) {
  uint32_t n = dunlin__len(b);
  return a.n == n && dunlin__equal(a.p, b, n);
}

DUNLIN__COLD void dunlin__cat(dunlin_line *l, const char *p, uint32_t n) {
  if (l->size == 0) return;
  if (n > l->size - 1 - l->n) {
    n = l->size - 1 - l->n;
    while (n > 0 && ((uint8_t)p[n] & 0xc0) == 0x80) n--; /* not within a character */
  }
  dunlin__copy(l->p + l->n, p, n);
  l->n += n;
  l->p[l->n] = 0;
}

DUNLIN_API void dunlin_str(dunlin_line *l, const char *s) { dunlin__cat(l, s, dunlin__len(s)); }

DUNLIN__COLD void dunlin__digits(dunlin_line *l, uint64_t v, uint32_t at_least) {
  char text[20];
  uint32_t at = sizeof text;
  while (at > 0 && (v > 0 || sizeof text - at < at_least)) {
    text[--at] = (char)('0' + v % 10);
    v /= 10;
  }
  dunlin__cat(l, text + at, (uint32_t)sizeof text - at);
}

DUNLIN_API void dunlin_int(dunlin_line *l, int64_t v) {
  if (v < 0) dunlin_str(l, "-");
  dunlin__digits(l, v < 0 ? 0 - (uint64_t)v : (uint64_t)v, 1);
}

DUNLIN_API void dunlin_fixed(dunlin_line *l, double v, uint32_t decimals) {
  uint64_t scale = 1, n;
  uint32_t i;
  double size;
  if (v != v) {
    dunlin_str(l, "NaN");
    return;
  }
  if (decimals > 9) decimals = 9;
  for (i = 0; i < decimals; i++) scale *= 10;
  size = (v < 0 ? -v : v) * (double)scale + 0.5;
  if (size >= 1.8e19) {
    dunlin_str(l, v < 0 ? "-huge" : "huge");
    return;
  }
  n = (uint64_t)size;
  if (v < 0 && n > 0) dunlin_str(l, "-");
  dunlin__digits(l, n / scale, 1);
  if (decimals > 0) {
    dunlin_str(l, ".");
    dunlin__digits(l, n % scale, decimals);
  }
}

_Noreturn DUNLIN_API void dunlin_die(const char *why) {
  dunlin__host_log(DUNLIN_LOG_ERROR, why, dunlin__len(why));
  __builtin_trap();
}

/* ---- numbers of JSON, exactly */

typedef struct {
  uint32_t limb[DUNLIN__LIMBS], n;
} dunlin__big;

DUNLIN__COLD void dunlin__mul(dunlin__big *b, uint32_t by, uint32_t plus) {
  uint64_t carry = plus;
  uint32_t i;
  for (i = 0; i < b->n; i++) {
    carry += (uint64_t)b->limb[i] * by;
    b->limb[i] = (uint32_t)carry;
    carry >>= 32;
  }
  if (carry && b->n < DUNLIN__LIMBS) b->limb[b->n++] = (uint32_t)carry;
}

DUNLIN__COLD int32_t dunlin__bits(const dunlin__big *b) {
  uint32_t i = b->n;
  while (i-- > 0)
    if (b->limb[i]) return (int32_t)(32 * i + 32) - __builtin_clz(b->limb[i]);
  return 0;
}

DUNLIN__COLD void dunlin__halve(dunlin__big *b) {
  uint32_t carry = 0, i = b->n;
  while (i-- > 0) {
    uint32_t next = b->limb[i] << 31;
    b->limb[i] = b->limb[i] >> 1 | carry;
    carry = next;
  }
}

/* Subtracts b if it is not larger. */
DUNLIN__COLD bool dunlin__take(dunlin__big *a, const dunlin__big *b) {
  uint32_t i = a->n > b->n ? a->n : b->n;
  int64_t borrow = 0;
  while (i-- > 0) {
    uint32_t x = i < a->n ? a->limb[i] : 0, y = i < b->n ? b->limb[i] : 0;
    if (x < y) return false;
    if (x > y) break;
  }
  for (i = 0; i < a->n; i++) {
    borrow += (int64_t)a->limb[i] - (i < b->n ? b->limb[i] : 0);
    a->limb[i] = (uint32_t)borrow;
    borrow >>= 32;
  }
  return true;
}

/* The double nearest to (q, and a little more if sticky) × 2^exp. */
DUNLIN__COLD bool dunlin__round(uint64_t q, bool sticky, int32_t exp, double *to) {
  int32_t bits = 64 - __builtin_clzll(q), top = bits - 1 + exp;
  int32_t cut = bits - (top >= -1022 ? 53 : 53 + top + 1022);
  uint64_t m, rest, half;
  *to = 0;
  if (cut > 63) return true;
  m = q >> cut;
  rest = q & ((UINT64_C(1) << cut) - 1);
  half = UINT64_C(1) << (cut - 1);
  if (rest > half || (rest == half && (sticky || (m & 1)))) m++;
  if (top >= -1022) {
    if (m == UINT64_C(1) << 53) {
      m >>= 1;
      top++;
    }
    if (top > 1023) return false;
    m = (uint64_t)(top + 1023) << 52 | (m & ((UINT64_C(1) << 52) - 1));
  }
  __builtin_memcpy(to, &m, 8);
  return true;
}

/* Divides big numbers, bit by bit. */
DUNLIN__COLD bool dunlin__divide(const char *p, uint32_t n, int32_t exp, double *to) {
  dunlin__big num, den;
  uint64_t q = 0;
  int32_t i, shift;
  num.n = den.n = 1;
  num.limb[0] = 0;
  den.limb[0] = 1;
  for (; n > 0 && *p != 'e' && *p != 'E'; p++, n--)
    if (*p >= '0' && *p <= '9') dunlin__mul(&num, 10, (uint32_t)(*p - '0'));
  for (i = exp; i > 0; i--) dunlin__mul(&num, 10, 0);
  for (i = exp; i < 0; i++) dunlin__mul(&den, 10, 0);
  /* 2^61 < num × 2^shift / den < 2^63 */
  shift = 62 - (dunlin__bits(&num) - dunlin__bits(&den));
  for (i = shift; i > 0; i--) dunlin__mul(&num, 2, 0);
  for (i = shift; i < 0; i++) dunlin__mul(&den, 2, 0);
  for (i = 0; i < 63; i++) dunlin__mul(&den, 2, 0);
  for (i = 0; i < 64; i++) {
    q = q << 1 | (dunlin__take(&num, &den) ? 1 : 0);
    dunlin__halve(&den);
  }
  return dunlin__round(q, dunlin__bits(&num) > 0, -shift, to);
}

/* The nearest double of a JSON number; false: it is no number, or too large, or has more than 100 digits. */
DUNLIN__COLD bool dunlin__number(const char *p, uint32_t n, double *to) {
  uint64_t m = 0;
  uint32_t i = 0, digits = 0, first;
  int32_t exp = 0, e = 0, k;
  bool negative, minus;
#define DUNLIN__AT(i) ((i) < n ? p[i] : 0)
#define DUNLIN__DIGIT(c) ((c) >= '0' && (c) <= '9')
  negative = DUNLIN__AT(0) == '-';
  for (first = i = negative; DUNLIN__DIGIT(DUNLIN__AT(i)); i++)
    if (digits > 0 || p[i] != '0') digits++, m = m * 10 + (uint64_t)(p[i] - '0');
  if (i == first || (p[first] == '0' && i > first + 1)) return false;
  if (DUNLIN__AT(i) == '.') {
    for (first = ++i; DUNLIN__DIGIT(DUNLIN__AT(i)); i++, exp--)
      if (digits > 0 || p[i] != '0') digits++, m = m * 10 + (uint64_t)(p[i] - '0');
    if (i == first) return false;
  }
  if ((DUNLIN__AT(i) | 0x20) == 'e') {
    minus = DUNLIN__AT(i + 1) == '-';
    i += minus || DUNLIN__AT(i + 1) == '+' ? 2 : 1;
    for (first = i; DUNLIN__DIGIT(DUNLIN__AT(i)); i++)
      if (e < 10000) e = e * 10 + (p[i] - '0');
    if (i == first) return false;
    exp += minus ? -e : e;
  }
  if (i != n || digits > DUNLIN__DIGITS_MAX || n >= 10000) return false;
#undef DUNLIN__AT
#undef DUNLIN__DIGIT
  if (m < UINT64_C(1) << 53 && digits <= 19 && exp >= -22 && exp <= 22) {
    double ten = 1; /* both are exact as doubles, so that one operation rounds once */
    for (k = exp < 0 ? -exp : exp; k > 0; k--) ten *= 10;
    *to = exp < 0 ? (double)m / ten : (double)m * ten;
  } else if (digits == 0 || (int32_t)digits + exp < -330) {
    *to = 0;
  } else if ((int32_t)digits + exp > 310 || !dunlin__divide(p, n, exp, to)) {
    return false;
  }
  if (negative) *to = -*to;
  return true;
}

/* ---- JSON: a strict scanner, which walks, checks and copies nothing */

typedef struct {
  const char *s;
  uint32_t n, i;
  bool bad; /* something was wrong at i */
} dunlin__scan;

typedef struct {
  const char *p; /* between the quotes, with escapes as they stand */
  uint32_t n;
  bool escaped;
} dunlin__quoted;

DUNLIN__COLD char dunlin__peek(const dunlin__scan *s) { return s->i < s->n ? s->s[s->i] : 0; }

DUNLIN__COLD void dunlin__space(dunlin__scan *s) {
  while (s->i < s->n && (s->s[s->i] == ' ' || s->s[s->i] == '\t' || s->s[s->i] == '\n' || s->s[s->i] == '\r')) s->i++;
}

DUNLIN__COLD bool dunlin__want(dunlin__scan *s, char c) {
  if (s->bad || dunlin__peek(s) != c) {
    s->bad = true;
    return false;
  }
  s->i++;
  return true;
}

DUNLIN__COLD int32_t dunlin__hex4(const char *p, uint32_t n, uint32_t at) {
  int32_t v = 0, i;
  if (n < 4 || at > n - 4) return -1;
  for (i = 0; i < 4; i++) {
    char c = p[at + (uint32_t)i];
    if (c >= '0' && c <= '9') v = v << 4 | (c - '0');
    else if ((c | 0x20) >= 'a' && (c | 0x20) <= 'f') v = v << 4 | ((c | 0x20) - 'a' + 10);
    else return -1;
  }
  return v;
}

DUNLIN__COLD dunlin__quoted dunlin__string(dunlin__scan *s) {
  dunlin__quoted q = {"", 0, false};
  uint32_t start;
  if (!dunlin__want(s, '"')) return q;
  for (start = s->i; (uint8_t)dunlin__peek(s) >= ' '; s->i++) {
    char c = dunlin__peek(s);
    if (c == '"') {
      q.p = s->s + start;
      q.n = s->i++ - start;
      return q;
    }
    if (c != '\\') continue;
    q.escaped = true;
    s->i++;
    switch (dunlin__peek(s)) {
    case '"': case '\\': case '/': case 'b': case 'f': case 'n': case 'r': case 't': continue;
    case 'u':
      if (dunlin__hex4(s->s, s->n, s->i + 1) >= 0) {
        s->i += 4;
        continue;
      }
    }
    break;
  }
  s->bad = true;
  return q;
}

/* Writes the text, which is never longer than it is in JSON, and returns how long it is. */
DUNLIN__COLD uint32_t dunlin__unquote(const dunlin__quoted *q, char *to) {
  uint32_t i = 0, n = 0;
  while (i < q->n) {
    int32_t v;
    char c = q->p[i++];
    if (c != '\\' || i == q->n) {
      to[n++] = c;
      continue;
    }
    switch (c = q->p[i++]) {
    case 'b': to[n++] = 8; continue;
    case 'f': to[n++] = 12; continue;
    case 'n': to[n++] = '\n'; continue;
    case 'r': to[n++] = '\r'; continue;
    case 't': to[n++] = '\t'; continue;
    case 'u': break;
    default: to[n++] = c; continue;
    }
    v = dunlin__hex4(q->p, q->n, i);
    i += 4;
    if ((v & 0xfc00) == 0xd800 && i + 1 < q->n && q->p[i] == '\\' && q->p[i + 1] == 'u') {
      int32_t low = dunlin__hex4(q->p, q->n, i + 2);
      i += 6;
      if ((low & 0xfc00) == 0xdc00) v = 0x10000 + ((v - 0xd800) << 10) + (low - 0xdc00);
    }
    if (v < 0 || (v & 0xfffff800) == 0xd800) v = 0xfffd;
    if (v < 0x80) {
      to[n++] = (char)v;
      continue;
    }
    if (v < 0x800) {
      to[n++] = (char)(0xc0 | v >> 6);
    } else {
      if (v < 0x10000) {
        to[n++] = (char)(0xe0 | v >> 12);
      } else {
        to[n++] = (char)(0xf0 | v >> 18);
        to[n++] = (char)(0x80 | (v >> 12 & 0x3f));
      }
      to[n++] = (char)(0x80 | (v >> 6 & 0x3f));
    }
    to[n++] = (char)(0x80 | (v & 0x3f));
  }
  return n;
}

/* Walks to the next member's value; false behind the last, and if something is wrong. first is set before the first. */
DUNLIN__COLD bool dunlin__next(dunlin__scan *s, bool *first, dunlin__quoted *key) {
  dunlin__space(s);
  if (!s->bad && *first && dunlin__peek(s) == '}') {
    s->i++;
    return false;
  }
  if (!*first) {
    if (dunlin__peek(s) != ',') {
      dunlin__want(s, '}');
      return false;
    }
    s->i++;
    dunlin__space(s);
  }
  *first = false;
  *key = dunlin__string(s);
  dunlin__space(s);
  dunlin__want(s, ':');
  dunlin__space(s);
  return !s->bad;
}

DUNLIN__COLD void dunlin__word(dunlin__scan *s, const char *w, uint32_t n) {
  if (n <= s->n - s->i && dunlin__equal(s->s + s->i, w, n)) s->i += n;
  else s->bad = true;
}

/* Walks one value of any kind. */
DUNLIN__COLD void dunlin__skip(dunlin__scan *s, uint32_t depth) {
  dunlin__quoted key;
  bool first = true;
  uint32_t start;
  double v;
  if (depth > DUNLIN__DEPTH_MAX) {
    s->bad = true;
    return;
  }
  dunlin__space(s);
  switch (dunlin__peek(s)) {
  case '{':
    s->i++;
    while (dunlin__next(s, &first, &key)) dunlin__skip(s, depth + 1);
    return;
  case '[':
    s->i++;
    dunlin__space(s);
    if (dunlin__peek(s) == ']') {
      s->i++;
      return;
    }
    while (!s->bad) {
      dunlin__skip(s, depth + 1);
      dunlin__space(s);
      if (dunlin__peek(s) != ',') {
        dunlin__want(s, ']');
        return;
      }
      s->i++;
    }
    return;
  case '"': dunlin__string(s); return;
  case 't': dunlin__word(s, "true", 4); return;
  case 'f': dunlin__word(s, "false", 5); return;
  case 'n': dunlin__word(s, "null", 4); return;
  }
  for (start = s->i; s->i < s->n; s->i++) {
    char c = s->s[s->i];
    if (!((c >= '0' && c <= '9') || c == '+' || c == '-' || c == '.' || c == 'e' || c == 'E')) break;
  }
  if (!dunlin__number(s->s + start, s->i - start, &v)) {
    s->i = start;
    s->bad = true;
  }
}

/* The value of a member of an object, and which one it is; −1 if there is none. */
DUNLIN__COLD int32_t dunlin__find(dunlin_text object, const char *key, dunlin_text *value) {
  dunlin__scan s = {object.p, object.n, 0, false};
  dunlin__quoted k;
  bool first = true;
  int32_t n;
  dunlin__space(&s);
  if (!dunlin__want(&s, '{')) return -1;
  for (n = 0; dunlin__next(&s, &first, &k); n++) {
    uint32_t start = s.i;
    char name[256];
    dunlin_text is = {k.p, k.n};
    dunlin__skip(&s, 0);
    if (s.bad) return -1;
    if (k.escaped && k.n <= sizeof name) {
      is.n = dunlin__unquote(&k, name);
      is.p = name;
    }
    if (dunlin_same(is, key)) {
      value->p = s.s + start;
      value->n = s.i - start;
      return n;
    }
  }
  return -1;
}

DUNLIN_API dunlin_text dunlin_member(dunlin_text object, const char *key) {
  dunlin_text v = {"", 0};
  if (dunlin__find(object, key, &v) >= 0 && v.n >= 2 && v.p[0] == '"') {
    v.p++;
    v.n -= 2;
  }
  return v;
}

/* ---- the answer */

/* Appends a record of size bytes with its padding, and writes the header; NULL if there is no memory. */
DUNLIN__HOT uint8_t *dunlin__record(uint32_t kind, uint32_t flags, uint32_t size) {
  uint32_t whole = dunlin__align(size);
  uint8_t *p = dunlin__extend(&dunlin__g.out, whole);
  if (!p) {
    dunlin__g.full = true;
    return NULL;
  }
  dunlin__put64(p + whole - 8, 0);
  dunlin__put64(p, size | (uint64_t)kind << 32 | (uint64_t)flags << 48);
  return p;
}

/* Names the device before the first record about it. */
DUNLIN__HOT void dunlin__open(dunlin_ctx *c) {
  uint8_t *p;
  if (c->opened) return;
  c->opened = true;
  p = dunlin__record(DUNLIN__GROUP, 0, 12);
  if (p) dunlin__put32(p + 8, c->index - 1);
}

/* Appends a record about the device; NULL if it has failed. */
DUNLIN__COLD uint8_t *dunlin__about(dunlin_ctx *c, uint32_t kind, uint32_t flags, uint64_t size) {
  if (c->failed || c->input_failed) return NULL;
  if (size > UINT32_MAX / 4) {
    dunlin__g.full = true;
    return NULL;
  }
  dunlin__open(c);
  return dunlin__record(kind, flags, (uint32_t)size);
}

/* A text whose length is a u16 in a record; the host refuses much shorter ones. */
DUNLIN__HOT uint32_t dunlin__len16(const char *s) {
  uint32_t n = dunlin__len(s);
  return n <= 65535 ? n : 0;
}

DUNLIN__COLD void dunlin__say(dunlin_ctx *c, uint32_t flags, uint32_t severity, const dunlin_signal *s, uint32_t rule) {
  uint32_t key = dunlin__len16(s->key), text = dunlin__len(s->text);
  uint8_t *p = dunlin__about(c, DUNLIN__ALERT, flags, 32 + (uint64_t)rule + key + text);
  if (!p) return;
  dunlin__put64(p + 8, (c->input ? c->input - 1 : 0) | (uint64_t)severity << 32 | (uint64_t)rule << 48);
  dunlin__put64(p + 16, key | (uint64_t)text << 32);
  __builtin_memcpy(p + 24, &s->value, 8);
  dunlin__copy(p + 32, s->rule, rule);
  dunlin__copy(p + 32 + rule, s->key, key);
  dunlin__copy(p + 32 + rule + key, s->text, text);
}

DUNLIN_API void dunlin_raise(dunlin_ctx *c, const dunlin_signal *s) { dunlin__say(c, 1, s->severity, s, dunlin__len16(s->rule)); }
DUNLIN_API void dunlin_update(dunlin_ctx *c, const dunlin_signal *s) { dunlin__say(c, 2, s->severity, s, dunlin__len16(s->rule)); }
DUNLIN_API void dunlin_clear_with(dunlin_ctx *c, const dunlin_signal *s) { dunlin__say(c, 0, 0, s, dunlin__len16(s->rule)); }

DUNLIN_API void dunlin_alert(dunlin_ctx *c, const char *rule, uint8_t severity, const char *text, double value) {
  dunlin_signal s = {rule, NULL, severity, text, value};
  dunlin_raise(c, &s);
}

DUNLIN_API void dunlin_clear(dunlin_ctx *c, const char *rule) {
  dunlin_signal s = {rule, NULL, 0, NULL, DUNLIN_NO_VALUE};
  dunlin_clear_with(c, &s);
}

DUNLIN__COLD void dunlin__derive(dunlin_ctx *c, const dunlin_derived *d, uint32_t metric, uint32_t unit) {
  uint8_t *p = dunlin__about(c, DUNLIN__READING, 0, 32 + (uint64_t)metric + unit + d->text.n);
  if (!p) return;
  dunlin__put64(p + 8, (d->kind ? d->kind : DUNLIN_NUMBER) | (uint64_t)metric << 16 | (uint64_t)unit << 32);
  dunlin__put64(p + 16, (uint64_t)(d->time ? d->time : c->received));
  __builtin_memcpy(p + 24, &d->value, 8);
  dunlin__copy(p + 32, d->metric, metric);
  dunlin__copy(p + 32 + metric, d->unit, unit);
  dunlin__copy(p + 32 + metric + unit, d->text.p, d->text.n);
}

DUNLIN_API void dunlin_derive(dunlin_ctx *c, const dunlin_derived *d) { dunlin__derive(c, d, dunlin__len16(d->metric), dunlin__len16(d->unit)); }

DUNLIN_API void dunlin_emit(dunlin_ctx *c, const char *metric, double value) {
  dunlin_derived d = {metric, NULL, 0, DUNLIN_NUMBER, value, {NULL, 0}};
  dunlin_derive(c, &d);
}

DUNLIN__COLD void dunlin__set(dunlin_ctx *c, const char *name, uint32_t n, dunlin_time at) {
  uint8_t *p = dunlin__about(c, DUNLIN__SET, 0, 16 + (uint64_t)n);
  if (!p) return;
  dunlin__put64(p + 8, (uint64_t)at);
  dunlin__copy(p + 16, name, n);
}

DUNLIN_API void dunlin_set_timer(dunlin_ctx *c, const char *name, dunlin_time at) { dunlin__set(c, name, dunlin__len(name), at > 1 ? at : 1); }
DUNLIN_API void dunlin_cancel_timer(dunlin_ctx *c, const char *name) { dunlin__set(c, name, dunlin__len(name), 0); }

DUNLIN_API void dunlin_command(dunlin_ctx *c, const char *name, uint16_t format, const void *payload, uint32_t n, dunlin_time deadline) {
  uint32_t len = dunlin__len16(name);
  uint8_t *p = dunlin__about(c, DUNLIN__COMMAND, 0, 24 + (uint64_t)len + n);
  if (!p) return;
  dunlin__put64(p + 8, (uint64_t)deadline);
  dunlin__put64(p + 16, format | (uint64_t)len << 16 | (uint64_t)n << 32);
  dunlin__copy(p + 24, name, len);
  dunlin__copy(p + 24 + len, payload, n);
}

DUNLIN_API void dunlin_publish(dunlin_ctx *c, const char *topic, uint16_t format, const void *payload, uint32_t n) {
  uint32_t len = dunlin__len16(topic);
  uint8_t *p = dunlin__about(c, DUNLIN__PUBLISH, 0, 16 + (uint64_t)len + n);
  if (!p) return;
  dunlin__put64(p + 8, format | (uint64_t)len << 16 | (uint64_t)n << 32);
  dunlin__copy(p + 16, topic, len);
  dunlin__copy(p + 16 + len, payload, n);
}

DUNLIN_API void dunlin_log(dunlin_ctx *c, uint8_t level, const char *text) {
  uint32_t n = dunlin__len(text);
  uint8_t *p = dunlin__about(c, DUNLIN__LOG, level, 8 + (uint64_t)n);
  if (p) dunlin__copy(p + 8, text, n);
}

DUNLIN_API void dunlin_fail(dunlin_ctx *c, const char *why) {
  uint32_t n = dunlin__len(why);
  uint8_t *p;
  if (c->failed) return;
  c->input_failed = c->opened = false;
  dunlin__g.out.n = c->start;
  p = dunlin__about(c, DUNLIN__ERROR, 0, 8 + (uint64_t)n);
  if (p) dunlin__copy(p + 8, why, n);
  c->failed = true;
}

DUNLIN_API void dunlin_fail_input(dunlin_ctx *c, const char *why) {
  uint32_t n = dunlin__len(why);
  uint8_t *p;
  if (c->failed || c->input_failed) return;
  if (c->input == 0) {
    dunlin_fail(c, why);
    return;
  }
  dunlin__g.out.n = c->input_start;
  c->opened = c->input_opened;
  p = dunlin__about(c, DUNLIN__ERROR, 1, 12 + (uint64_t)n);
  if (p) {
    dunlin__put32(p + 8, c->input - 1);
    dunlin__copy(p + 12, why, n);
  }
  c->input_failed = true;
}

/* ---- names and readings */

/* Takes a NAME record; false says that it is none. Ids count up from 1; another one would be a host of another kind. */
DUNLIN__COLD bool dunlin__define(const uint8_t *rec, uint32_t n) {
  uint32_t id, i;
  uint8_t *name, *span;
  if (n < 12) return false;
  id = dunlin__u32(rec + 8);
  n -= 12;
  if (id != dunlin__g.count || id >= DUNLIN__NAMES_MAX) return true;
  name = dunlin__extend(&dunlin__g.names, n);
  span = dunlin__extend(&dunlin__g.spans, 8);
  if (!name || !span) return true; /* no memory: this one and the ids that follow read as "" */
  dunlin__copy(name, rec + 12, n);
  dunlin__put64(span, (uint64_t)(dunlin__g.names.n - n) | (uint64_t)n << 32);
  dunlin__g.count++;
  for (i = 0; i < dunlin__g.watching; i++) {
    dunlin_text t = {(const char *)rec + 12, n};
    if (dunlin_same(t, dunlin__g.watched[i])) dunlin__g.ids[i] = id;
  }
  return true;
}

DUNLIN__COLD void dunlin__forget(void) {
  uint32_t i;
  dunlin__g.names.n = dunlin__g.spans.n = 0;
  dunlin__g.count = 1;
  for (i = 0; i < DUNLIN__WATCH_MAX; i++) dunlin__g.ids[i] = 0;
}

DUNLIN__COLD dunlin_text dunlin__lookup(uint32_t id) {
  dunlin_text t = {"", 0};
  uint64_t span;
  if (id == 0 || id >= dunlin__g.count) return t;
  span = dunlin__u64(dunlin__g.spans.p + 8 * (id - 1));
  t.p = (const char *)dunlin__g.names.p + (uint32_t)span;
  t.n = (uint32_t)(span >> 32);
  return t;
}

DUNLIN_API bool dunlin_is(const dunlin_reading *r, dunlin_metric m) {
  return r->metric != 0 && r->metric == dunlin__g.ids[m < DUNLIN__WATCH_MAX ? m : DUNLIN__WATCH_MAX];
}

DUNLIN_API bool dunlin_is_number(const dunlin_reading *r) { return r->kind == DUNLIN_NUMBER; }
DUNLIN_API dunlin_text dunlin_metric_name(const dunlin_reading *r) { return dunlin__lookup(r->metric); }
DUNLIN_API dunlin_text dunlin_unit_name(const dunlin_reading *r) { return dunlin__lookup(r->unit); }
DUNLIN_API bool dunlin_clock_off(dunlin_ctx *c) { return c->rec_n >= 24 && (dunlin__u32(c->rec + 20) & 1); }

DUNLIN_API dunlin_text dunlin_value(dunlin_ctx *c, const dunlin_reading *r) {
  dunlin_text t = {"", 0};
  uint64_t span;
  __builtin_memcpy(&span, &r->value, 8);
  if ((r->kind == DUNLIN_TEXT || r->kind == DUNLIN_DATA) && (uint32_t)span + (span >> 32) <= c->rec_n) {
    t.p = (const char *)c->rec + (uint32_t)span;
    t.n = (uint32_t)(span >> 32);
  }
  return t;
}

DUNLIN_API dunlin_text dunlin_device(dunlin_ctx *c) { return c->id; }
DUNLIN_API uint64_t dunlin_seq(dunlin_ctx *c) { return c->seq + (c->input ? c->input - 1 : 0); }
DUNLIN_API dunlin_time dunlin_received(dunlin_ctx *c) { return c->received; }
DUNLIN_API dunlin_time dunlin_now(dunlin_ctx *c) { return c->now; }

/* ---- the state */

DUNLIN_API dunlin_text dunlin_state(dunlin_ctx *c) { return c->state; }
DUNLIN_API bool dunlin_got(dunlin_ctx *c) { return !c->short_; }

DUNLIN__HOT const char *dunlin__take_state(dunlin_ctx *c, uint32_t n) {
  const char *p = c->state.p + c->at;
  if (n > c->state.n - c->at) {
    c->at = c->state.n;
    c->short_ = true;
    return NULL;
  }
  c->at += n;
  return p;
}

DUNLIN_API bool dunlin_get(dunlin_ctx *c, void *to, uint32_t n) {
  const char *p = dunlin__take_state(c, n);
  if (p) dunlin__copy(to, p, n);
  else if (n) __builtin_memset(to, 0, n);
  return p != NULL;
}

DUNLIN_API uint8_t dunlin_get_u8(dunlin_ctx *c) { const char *p = dunlin__take_state(c, 1); return p ? (uint8_t)*p : 0; }
DUNLIN_API uint32_t dunlin_get_u32(dunlin_ctx *c) { const char *p = dunlin__take_state(c, 4); return p ? dunlin__u32((const uint8_t *)p) : 0; }
DUNLIN_API int64_t dunlin_get_i64(dunlin_ctx *c) { const char *p = dunlin__take_state(c, 8); return p ? (int64_t)dunlin__u64((const uint8_t *)p) : 0; }
DUNLIN_API double dunlin_get_f64(dunlin_ctx *c) { int64_t i = dunlin_get_i64(c); double v; __builtin_memcpy(&v, &i, 8); return v; }

DUNLIN_API void dunlin_put(dunlin_ctx *c, const void *from, uint32_t n) {
  uint8_t *p;
  if (!c->put) dunlin__g.state.n = 0;
  c->put = true;
  p = dunlin__extend(&dunlin__g.state, n);
  if (p) dunlin__copy(p, from, n);
  else dunlin__g.full = true;
}

DUNLIN_API void dunlin_put_u8(dunlin_ctx *c, uint8_t v) { dunlin_put(c, &v, 1); }
DUNLIN_API void dunlin_put_u32(dunlin_ctx *c, uint32_t v) { dunlin_put(c, &v, 4); }
DUNLIN_API void dunlin_put_i64(dunlin_ctx *c, int64_t v) { dunlin_put(c, &v, 8); }
DUNLIN_API void dunlin_put_f64(dunlin_ctx *c, double v) { dunlin_put(c, &v, 8); }

/* ---- the settings */

DUNLIN__COLD void dunlin__wrong(dunlin_config *cfg, const char *key, const char *want, dunlin_text got) {
  dunlin_line l = {dunlin__g.why, sizeof dunlin__g.why, 0};
  if (cfg->wrong) return;
  cfg->wrong = true;
  dunlin_str(&l, "setting ");
  dunlin_str(&l, key);
  dunlin_str(&l, " must be ");
  dunlin_str(&l, want);
  dunlin_str(&l, ", not ");
  if (got.n > 40) {
    uint32_t n = 40;
    while (n > 0 && ((uint8_t)got.p[n] & 0xc0) == 0x80) n--;
    dunlin__cat(&l, got.p, n);
    dunlin_str(&l, "…");
  } else {
    dunlin__cat(&l, got.p, got.n);
  }
}

DUNLIN__COLD bool dunlin__setting(dunlin_config *cfg, const char *key, dunlin_text *raw) {
  int32_t n = dunlin__find(cfg->text, key, raw);
  if (n < 0) return false;
  if (n < 256) cfg->read[n / 64] |= UINT64_C(1) << (n % 64);
  return !dunlin_same(*raw, "null");
}

DUNLIN_API bool dunlin_config_has(dunlin_config *cfg, const char *key) {
  dunlin_text raw;
  return dunlin__setting(cfg, key, &raw);
}

DUNLIN_API double dunlin_config_number(dunlin_config *cfg, const char *key, double otherwise) {
  dunlin_text raw;
  double v;
  if (!dunlin__setting(cfg, key, &raw)) return otherwise;
  if (dunlin__number(raw.p, raw.n, &v)) return v;
  dunlin__wrong(cfg, key, "a number", raw);
  return otherwise;
}

DUNLIN_API int64_t dunlin_config_int(dunlin_config *cfg, const char *key, int64_t otherwise) {
  dunlin_text raw;
  uint32_t i, first;
  int64_t v = 0;
  if (!dunlin__setting(cfg, key, &raw)) return otherwise;
  first = raw.p[0] == '-';
  for (i = first; i < raw.n && i - first < 15 && raw.p[i] >= '0' && raw.p[i] <= '9'; i++) v = v * 10 + (raw.p[i] - '0');
  if (i == raw.n && i > first) return first ? -v : v;
  dunlin__wrong(cfg, key, "a whole number", raw);
  return otherwise;
}

DUNLIN_API bool dunlin_config_bool(dunlin_config *cfg, const char *key, bool otherwise) {
  dunlin_text raw;
  if (!dunlin__setting(cfg, key, &raw)) return otherwise;
  if (dunlin_same(raw, "true")) return true;
  if (dunlin_same(raw, "false")) return false;
  dunlin__wrong(cfg, key, "true or false", raw);
  return otherwise;
}

DUNLIN_API const char *dunlin_config_text(dunlin_config *cfg, const char *key, const char *otherwise) {
  dunlin_text raw;
  dunlin__quoted q;
  char *copy;
  if (!dunlin__setting(cfg, key, &raw)) return otherwise;
  if (raw.n < 2 || raw.p[0] != '"') {
    dunlin__wrong(cfg, key, "a text", raw);
    return otherwise;
  }
  q.p = raw.p + 1;
  q.n = raw.n - 2;
  q.escaped = true;
  copy = dunlin__keep(q.p, q.n);
  if (!copy) return otherwise;
  copy[dunlin__unquote(&q, copy)] = 0;
  return copy;
}

DUNLIN_API uint8_t dunlin_config_severity(dunlin_config *cfg, const char *key, uint8_t otherwise) {
  dunlin_text raw;
  if (!dunlin__setting(cfg, key, &raw)) return otherwise;
  if (dunlin_same(raw, "\"info\"")) return DUNLIN_INFO;
  if (dunlin_same(raw, "\"warning\"")) return DUNLIN_WARNING;
  if (dunlin_same(raw, "\"major\"")) return DUNLIN_MAJOR;
  if (dunlin_same(raw, "\"critical\"")) return DUNLIN_CRITICAL;
  dunlin__wrong(cfg, key, "info, warning, major or critical", raw);
  return otherwise;
}

DUNLIN_API dunlin_time dunlin_config_seconds(dunlin_config *cfg, const char *key, int64_t otherwise) {
  dunlin_text raw;
  double v;
  if (!dunlin__setting(cfg, key, &raw)) return otherwise * DUNLIN_SECOND;
  if (dunlin__number(raw.p, raw.n, &v) && v >= 0 && v <= 1e10) return (dunlin_time)(v * 1e6);
  dunlin__wrong(cfg, key, "a number of seconds", raw);
  return otherwise * DUNLIN_SECOND;
}

DUNLIN_API dunlin_time dunlin_config_duration(dunlin_config *cfg, const char *key, dunlin_time otherwise) {
  dunlin_text raw;
  uint32_t i = 1, start;
  double sum = 0, v;
  if (!dunlin__setting(cfg, key, &raw)) return otherwise;
  while (raw.n > 2 && raw.p[0] == '"' && i < raw.n - 1) {
    dunlin_text unit;
    for (start = i; (raw.p[i] >= '0' && raw.p[i] <= '9') || raw.p[i] == '.';) i++;
    if (!dunlin__number(raw.p + start, i - start, &v)) break;
    for (start = i; raw.p[i] >= 'a' && raw.p[i] <= 'z';) i++;
    unit.p = raw.p + start;
    unit.n = i - start;
    if (dunlin_same(unit, "ms")) sum += v * 1000;
    else if (dunlin_same(unit, "s")) sum += v * 1e6;
    else if (dunlin_same(unit, "m")) sum += v * 60e6;
    else if (dunlin_same(unit, "h")) sum += v * 3600e6;
    else break;
    if (i == raw.n - 1 && sum <= 1e17) return (dunlin_time)sum;
  }
  dunlin__wrong(cfg, key, "a time span as 90s, 15m or 24h", raw);
  return otherwise;
}

DUNLIN_API void dunlin_refuse(dunlin_config *cfg, const char *why) {
  dunlin_line l = {dunlin__g.why, sizeof dunlin__g.why, 0};
  if (cfg->wrong) return;
  cfg->wrong = true;
  dunlin_str(&l, why);
}

DUNLIN_API dunlin_metric dunlin_watch(dunlin_config *cfg, const char *name) {
  if (dunlin__g.watching == DUNLIN__WATCH_MAX) {
    dunlin_refuse(cfg, "the plugin looks out for more than 64 metrics");
    return DUNLIN__WATCH_MAX;
  }
  dunlin__g.watched[dunlin__g.watching] = name;
  return dunlin__g.watching++;
}

DUNLIN_API dunlin_metric dunlin_config_metric(dunlin_config *cfg, const char *key, const char *otherwise) {
  return dunlin_watch(cfg, dunlin_config_text(cfg, key, otherwise));
}

DUNLIN_API const char *dunlin_watched(dunlin_metric m) { return m < dunlin__g.watching ? dunlin__g.watched[m] : ""; }

DUNLIN_API const char *dunlin_join(const char *a, const char *b) {
  uint32_t n = dunlin__len(a), m = dunlin__len(b);
  char *copy = (uint64_t)n + m < UINT32_MAX / 4 ? (char *)dunlin__alloc(n + m + 1) : NULL;
  if (!copy) return "";
  dunlin__copy(copy, a, n);
  dunlin__copy(copy + n, b, m);
  copy[n + m] = 0;
  return copy;
}

/* ---- frames */

/* An answer: a frame, or a text if failed. */
typedef struct {
  const void *p;
  uint32_t n;
  bool failed;
} dunlin__answer;

DUNLIN__HOT dunlin__answer dunlin__error(const char *why) {
  dunlin__answer a = {why, dunlin__len(why), true};
  return a;
}

DUNLIN__HOT dunlin__answer dunlin__done(void) {
  dunlin__answer a = {dunlin__g.out.p, dunlin__g.out.n, false};
  return dunlin__g.full ? dunlin__error("out of memory") : a;
}

DUNLIN__HOT uint64_t dunlin__result(dunlin__answer a) {
  if (a.n == 0 && !a.failed) return 0;
  return (uint64_t)(uint32_t)(uintptr_t)a.p << 32 | a.n | (a.failed ? UINT64_C(1) << 63 : 0);
}

DUNLIN__COLD uint32_t dunlin__buffer(uint32_t size) {
  dunlin__g.in.n = 0;
  return dunlin__extend(&dunlin__g.in, size) ? (uint32_t)(uintptr_t)dunlin__g.in.p : 0xfffffff8; /* where no memory is */
}

/* Takes the size of the record at p; 0: it is none. */
DUNLIN__HOT uint32_t dunlin__size(const uint8_t *p, uint32_t left) {
  uint32_t n;
  if (left < 8) return 0;
  n = dunlin__u32(p);
  return n >= 8 && n <= left ? n : 0;
}

DUNLIN__HOT uint32_t dunlin__step(uint32_t n, uint32_t left) { /* the last record's padding may be missing */
  uint32_t whole = dunlin__align(n);
  return n <= left && whole > left ? left : whole;
}

/* Warns of the first setting that nobody asked for. */
DUNLIN__COLD void dunlin__unread(const dunlin_config *cfg) {
  dunlin__scan s = {cfg->text.p, cfg->text.n, 0, false};
  dunlin__quoted key;
  bool first = true;
  int32_t n;
  dunlin__space(&s);
  dunlin__want(&s, '{');
  for (n = 0; n < 256 && dunlin__next(&s, &first, &key); n++) {
    dunlin__skip(&s, 0);
    if (!(cfg->read[n / 64] >> (n % 64) & 1)) {
      char text[160];
      dunlin_line l = {text, sizeof text, 0};
      uint8_t *p;
      dunlin_str(&l, "the plugin has no setting ");
      dunlin__cat(&l, key.p, key.n < 64 ? key.n : 64);
      dunlin_str(&l, ": a typing error?");
      p = dunlin__record(DUNLIN__LOG, DUNLIN_LOG_WARNING, 8 + l.n);
      if (p) dunlin__copy(p + 8, text, l.n);
      return;
    }
  }
}

DUNLIN__COLD bool dunlin__configure(const dunlin_handlers *h, const char *p, uint32_t n) {
  dunlin_config cfg = {{NULL, n}, {0, 0, 0, 0}, false};
  dunlin_line l = {dunlin__g.why, sizeof dunlin__g.why, 0};
  dunlin__quoted key;
  bool first = true;
  dunlin__scan s = {NULL, n, 0, false};
  char *copy = dunlin__keep(p, n);
  if (!copy) {
    dunlin_str(&l, "out of memory");
    return false;
  }
  s.s = copy;
  dunlin__space(&s);
  if (s.i == n) { /* no settings at all */
    s.s = "{}";
    s.n = 2;
    s.i = 0;
  }
  cfg.text.p = s.s;
  cfg.text.n = s.n;
  dunlin__want(&s, '{');
  while (!s.bad && dunlin__next(&s, &first, &key)) dunlin__skip(&s, 0);
  if (!s.bad) dunlin__space(&s);
  if (s.bad || s.i != s.n) {
    dunlin_str(&l, "the configuration is not a JSON object: see byte ");
    dunlin_int(&l, s.i);
    return false;
  }
  dunlin__g.watching = 0;
  if (h->configure) h->configure(&cfg);
  if (cfg.wrong) return false;
  if (h->configure) dunlin__unread(&cfg);
  return true;
}

DUNLIN__COLD dunlin__answer dunlin__init(const dunlin_handlers *h, const uint8_t *frame, uint32_t len) {
  uint32_t n;
  if (dunlin__g.count == 0) dunlin__g.count = 1;
  dunlin__g.out.n = 0;
  dunlin__g.full = false;
  for (; len > 0; frame += dunlin__step(n, len), len -= dunlin__step(n, len)) {
    n = dunlin__size(frame, len);
    if (n == 0) return dunlin__error("bad frame");
    if (dunlin__u16(frame + 4) == DUNLIN__NAME && !dunlin__define(frame, n)) return dunlin__error("bad frame");
    if (dunlin__u16(frame + 4) == DUNLIN__CONFIG) {
      dunlin__g.configured = dunlin__configure(h, (const char *)frame + 8, n - 8);
      if (!dunlin__g.configured) return dunlin__error(dunlin__g.why);
    }
  }
  return dunlin__done();
}

DUNLIN__HOT void dunlin__effects(dunlin_ctx *c) {
  c->input_start = dunlin__g.out.n;
  c->input_opened = c->opened;
  c->input_failed = false;
}

DUNLIN__HOT void dunlin__input(dunlin_ctx *c, const uint8_t *rec) {
  c->received = (dunlin_time)dunlin__u64(rec + 8);
  c->input++;
  dunlin__effects(c);
}

/* Takes a DEVICE record; false says that it is none. */
DUNLIN__HOT bool dunlin__begin(const dunlin_handlers *h, dunlin_ctx *c, const uint8_t *rec, uint32_t n) {
  uint64_t id, state, at;
  if (n < 24) return false;
  id = dunlin__u32(rec + 16);
  state = dunlin__u32(rec + 20);
  at = (24 + id + 7) & ~(uint64_t)7;
  if (at + state > n) return false;
  c->index++;
  c->seq = dunlin__u64(rec + 8);
  c->id.p = (const char *)rec + 24;
  c->id.n = (uint32_t)id;
  c->state.p = (const char *)rec + at;
  c->state.n = (uint32_t)state;
  c->at = c->input = 0;
  c->received = c->now;
  c->start = dunlin__g.out.n;
  c->opened = c->failed = c->short_ = c->put = false;
  c->rec_n = 0;
  dunlin__effects(c);
  if (h->begin) h->begin(c);
  return true;
}

/* Completes a device's turn: its state goes into the answer if it isn't the one that came. */
DUNLIN__COLD void dunlin__end(const dunlin_handlers *h, dunlin_ctx *c) {
  uint8_t *p;
  if (c->index == 0 || c->failed) return;
  c->input_failed = false;
  if (h->end) h->end(c);
  if (!c->put || c->failed || (dunlin__g.state.n == c->state.n && dunlin__equal(dunlin__g.state.p, c->state.p, c->state.n))) return;
  dunlin__open(c);
  p = dunlin__record(DUNLIN__STATE, 0, 8 + dunlin__g.state.n);
  if (p) dunlin__copy(p + 8, dunlin__g.state.p, dunlin__g.state.n);
}

/* Works off a record that is no DEVICE and no TELEMETRY; false says that it is none. */
DUNLIN__COLD bool dunlin__seldom(const dunlin_handlers *h, dunlin_ctx *c, const uint8_t *rec, uint32_t n) {
  uint32_t kind = dunlin__u16(rec + 4), id;
  if (kind == DUNLIN__NAME) return dunlin__define(rec, n);
  if (kind == DUNLIN__FORGET) dunlin__forget();
  if (kind == DUNLIN__BATCH) {
    if (n < 24) return false;
    c->now = (dunlin_time)dunlin__u64(rec + 8);
  }
  if (kind < DUNLIN__RAW || kind > DUNLIN__CONFIGURED) return true;
  if (c->index == 0) return kind > DUNLIN__LIFECYCLE; /* of no device: those that are known are not a host's */
  switch (kind) { /* lengths first: they are checked also where nobody listens */
  case DUNLIN__RAW: case DUNLIN__RESULT: if (n < 24) return false; break;
  case DUNLIN__TIMER: case DUNLIN__LIFECYCLE: case DUNLIN__MIGRATE: if (n < 16) return false; break;
  }
  id = kind == DUNLIN__RESULT ? dunlin__u32(rec + 20) : 0;
  if (id > 0 && id > n - 24) return false;
  if (c->failed) return true;
  if (kind == DUNLIN__MIGRATE) {
    if (h->migrate) h->migrate(c, dunlin__u32(rec + 8));
  } else if (kind == DUNLIN__CONFIGURED) {
    if (h->configured) h->configured(c);
  } else if (kind > DUNLIN__LIFECYCLE) {
    c->input += kind <= DUNLIN__INPUT_LAST; /* an input that is younger than this header, or a note */
  } else {
    dunlin_text text = {(const char *)rec + 16, n - 16};
    dunlin__input(c, rec);
    if (kind == DUNLIN__RAW && h->raw) {
      h->raw(c, (uint16_t)dunlin__u32(rec + 16), rec + 24, n - 24);
    } else if (kind == DUNLIN__TIMER && h->timer) {
      h->timer(c, text);
    } else if (kind == DUNLIN__RESULT && h->result) {
      uint32_t at = dunlin__align(24 + id);
      dunlin_result r = {{(const char *)rec + 24, id}, dunlin__u16(rec + 6) & 1, (uint16_t)dunlin__u32(rec + 16), {"", 0}};
      if (at < n) r.payload.p = (const char *)rec + at, r.payload.n = n - at;
      h->result(c, &r);
    } else if (kind == DUNLIN__LIFECYCLE && h->lifecycle) {
      dunlin_lifecycle e = {dunlin_member(text, "event"), dunlin_member(text, "domain"), dunlin_member(text, "was"), dunlin_member(text, "labels")};
      h->lifecycle(c, &e);
    }
  }
  return true;
}

/* Each kind has a function of its own: a module pays fuel for all code of a loop at each pass, whether it runs or not. The
 * handlers are known when these are compiled, so that they become part of them. */
DUNLIN__COLD bool dunlin__telemetry(const dunlin_handlers *h, dunlin_ctx *c, const uint8_t *rec, uint32_t n) {
  uint32_t readings;
  if (n < 24 || c->index == 0) return false;
  readings = dunlin__u32(rec + 16);
  if (readings > (n - 24) / sizeof(dunlin_reading)) return false;
  dunlin__input(c, rec);
  c->rec = rec;
  c->rec_n = n;
  if (h->readings && !c->failed) h->readings(c, (const dunlin_reading *)(const void *)(rec + 24), readings);
  return true;
}

DUNLIN__COLD bool dunlin__device(const dunlin_handlers *h, dunlin_ctx *c, const uint8_t *rec, uint32_t n) {
  dunlin__end(h, c);
  return dunlin__begin(h, c, rec, n);
}

/* Works off a frame of a batch. */
DUNLIN__HOT dunlin__answer dunlin__process(const dunlin_handlers *h, const uint8_t *p, uint32_t left) {
  dunlin_ctx *c = &dunlin__g.ctx;
  uint32_t n, step, kind;
  bool ok;
  if (!dunlin__g.configured) return dunlin__error("the plugin has no configuration");
  dunlin__g.out.n = 0;
  dunlin__g.full = false;
  c->index = 0;
  c->now = c->received = 0;
  for (; left > 0; p += step, left -= step) {
    n = dunlin__size(p, left);
    if (n == 0) return dunlin__error("bad frame");
    kind = dunlin__u16(p + 4);
    if (kind == DUNLIN__TELEMETRY) ok = dunlin__telemetry(h, c, p, n);
    else if (kind == DUNLIN__DEVICE) ok = dunlin__device(h, c, p, n);
    else ok = dunlin__seldom(h, c, p, n);
    if (!ok) return dunlin__error("bad frame");
    step = dunlin__step(n, left);
  }
  dunlin__end(h, c);
  return dunlin__done();
}
#endif /* DUNLIN__BODY */
#endif /* DUNLIN_H */
