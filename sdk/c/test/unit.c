/* What the examples don't do: all that a handler can say against ../vectors/records, settings, numbers, lines. */
#include "../dunlin.h"

#include <math.h>
#include <string.h>

const char *__asan_default_options(void);
const char *__asan_default_options(void) { return "detect_leaks=0"; }

#define CHECK(cond) \
  do { \
    if (!(cond)) fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #cond), exit(1); \
  } while (0)

#define BASE INT64_C(1767225600000000) /* 2026-01-01 00:00 UTC */

static uint32_t words(char *line, char w[][200]);

static const char *dash(const char *w) { return strcmp(w, "-") == 0 ? "" : w; }
static dunlin_time moment(const char *w) { return BASE + strtoll(w + 1, NULL, 10) * DUNLIN_SECOND; }

static uint8_t severity(const char *w) {
  return strcmp(w, "critical") == 0 ? DUNLIN_CRITICAL : strcmp(w, "major") == 0 ? DUNLIN_MAJOR : strcmp(w, "warning") == 0 ? DUNLIN_WARNING : DUNLIN_INFO;
}

/* Says what a line of the vectors' source says. */
static void raw(dunlin_ctx *c, uint16_t format, const uint8_t *payload, uint32_t len) {
  char line[400] = {0}, w[8][200] = {{0}};
  bool quoted = len > 0 && payload[len - 1] == '"';
  uint32_t n;
  (void)format;
  memcpy(line, payload, len);
  n = words(line, w);
  if (strcmp(w[0], "log") == 0) {
    dunlin_log(c, (uint8_t)atoi(w[1]), w[2]);
  } else if (strcmp(w[0], "raise") == 0 || strcmp(w[0], "update") == 0 || strcmp(w[0], "clear") == 0) {
    dunlin_signal s = {dash(w[2]), dash(w[3]), severity(w[4]), dash(w[6]), strcmp(w[5], "-") == 0 ? DUNLIN_NO_VALUE : strtod(w[5], NULL)};
    (w[0][0] == 'r' ? dunlin_raise : w[0][0] == 'u' ? dunlin_update : dunlin_clear_with)(c, &s);
  } else if (strcmp(w[0], "reading") == 0) {
    dunlin_derived d = {.metric = dash(w[1]), .unit = dash(w[2]), .time = moment(w[3])};
    char data[100];
    if (quoted) {
      d.kind = DUNLIN_TEXT;
      d.text = (dunlin_text){w[4], (uint32_t)strlen(w[4])};
    } else if (strncmp(w[4], "0x", 2) == 0) {
      d.kind = DUNLIN_DATA;
      d.text = (dunlin_text){data, 0};
      for (const char *h = w[4] + 2; *h; h += 2) {
        unsigned v;
        CHECK(sscanf(h, "%2x", &v) == 1);
        data[d.text.n++] = (char)v;
      }
    } else if (w[4][0] == 't' || w[4][0] == 'f') {
      d.kind = DUNLIN_BOOLEAN;
      d.value = w[4][0] == 't';
    } else {
      d.value = strtod(w[4], NULL);
    }
    dunlin_derive(c, &d);
  } else if (strcmp(w[0], "set") == 0) {
    if (strcmp(w[2], "off") == 0) dunlin_cancel_timer(c, w[1]);
    else dunlin_set_timer(c, w[1], moment(w[2]));
  } else if (strcmp(w[0], "refuse") == 0) {
    dunlin_emit(c, "never", 1);
    dunlin_fail_input(c, w[2]);
    dunlin_emit(c, "never", 1);
  } else if (strcmp(w[0], "error") == 0) {
    dunlin_emit(c, "never", 1);
    dunlin_fail(c, w[1]);
    dunlin_emit(c, "never", 1);
  } else if (strcmp(w[0], "command") == 0) {
    dunlin_command(c, w[1], (uint16_t)atoi(w[2]), w[4], n > 4 ? (uint32_t)strlen(w[4]) : 0, w[3][0] == 'd' ? 0 : moment(w[3]));
  } else if (strcmp(w[0], "publish") == 0) {
    dunlin_publish(c, w[1], (uint16_t)atoi(w[2]), w[3], n > 3 ? (uint32_t)strlen(w[3]) : 0);
  }
}

/* What the rest of a turn makes is in the log, so that it can be looked at. */
static char said[1000];

static void say(const char *format, dunlin_text a, dunlin_text b, dunlin_text c, dunlin_text d) {
  snprintf(said, sizeof said, format, (int)a.n, a.p, (int)b.n, b.p, (int)c.n, c.p, (int)d.n, d.p);
}

static void result(dunlin_ctx *c, const dunlin_result *r) {
  (void)c;
  say("%.*s %.*s %.*s%.*s", r->id, r->payload, (dunlin_text){r->timed_out ? "late" : "in time", r->timed_out ? 4 : 7}, (dunlin_text){"", 0});
}

static void lifecycle(dunlin_ctx *c, const dunlin_lifecycle *e) {
  (void)c;
  say("%.*s %.*s %.*s %.*s", e->event, e->domain, e->was, dunlin_member(e->labels, "site"));
}

static void readings(dunlin_ctx *c, const dunlin_reading *r, uint32_t n) {
  CHECK(n == 2 && dunlin_clock_off(c));
  say("%.*s %.*s %.*s %.*s", dunlin_metric_name(r), dunlin_unit_name(r), dunlin_value(c, r), dunlin_value(c, r + 1));
}

static void migrate(dunlin_ctx *c, uint32_t module) {
  CHECK(module == 0xcafe && dunlin_same(dunlin_state(c), "old"));
  dunlin_put(c, "new", 3);
}

DUNLIN_PLUGIN(.raw = raw, .result = result, .lifecycle = lifecycle, .readings = readings, .migrate = migrate)

/* Splits a line into words; one in quotes may have spaces and escapes. */
static uint32_t words(char *line, char w[][200]) {
  uint32_t n = 0, at = 0;
  bool quoted = false;
  for (char *p = line; *p; p++) {
    if (*p == '\\') w[n][at++] = *++p;
    else if (*p == '"') quoted = !quoted;
    else if (*p == ' ' && !quoted) n++, at = 0;
    else w[n][at++] = *p;
  }
  return n + 1;
}

static uint8_t frame[4000];
static uint32_t frame_n;

static void record(uint32_t kind, uint32_t flags, const void *fixed, uint32_t fixed_n, const char *text, uint32_t n) {
  uint8_t *p = frame + frame_n;
  memset(p, 0, 8 + fixed_n + n + 8);
  dunlin__put64(p, (8 + fixed_n + n) | (uint64_t)kind << 32 | (uint64_t)flags << 48);
  memcpy(p + 8, fixed, fixed_n);
  memcpy(p + 8 + fixed_n, text, n);
  frame_n += dunlin__align(8 + fixed_n + n);
}

static const uint8_t zeros[24];

static dunlin__answer process(void) {
  dunlin__answer a = dunlin__process(&dunlin__handlers, frame, frame_n);
  CHECK(!a.failed);
  frame_n = 0;
  return a;
}

static void test_records(void) {
  char line[1000], what[400] = "";
  uint32_t seen = 0;
  FILE *f = fopen("../vectors/records/records.json", "r");
  CHECK(f);
  while (fgets(line, sizeof line, f)) {
    const char *hex = strstr(line, "\"hex\": \"");
    dunlin__answer a;
    uint32_t i, k = 0;
    bool second;
    if (strstr(line, "\"what\": \"")) {
      for (const char *p = strstr(line, ": \"") + 3; *p != '"'; p++) {
        if (*p == '\\') p++;
        what[k++] = *p;
      }
      what[k] = 0;
    }
    if (!hex || strncmp(what, "state", 5) == 0 || strncmp(what, "group", 5) == 0) continue;
    /* Two inputs, of which the second speaks if the record names input 1. */
    second = strncmp(what, "raise 1", 7) == 0 || strncmp(what, "update 1", 8) == 0 || strncmp(what, "clear 1", 7) == 0;
    record(5, 0, zeros, 16, "", 0);
    record(7, 0, zeros, 16, second ? "" : what, second ? 0 : (uint32_t)strlen(what));
    record(7, 0, zeros, 16, second ? what : "", second ? (uint32_t)strlen(what) : 0);
    a = process();
    CHECK(a.n >= 16);
    for (hex += 8, i = 16; i < a.n; i++, hex += 2) {
      unsigned v;
      if (sscanf(hex, "%2x", &v) != 1 || v != ((const uint8_t *)a.p)[i]) fprintf(stderr, "%s: byte %u\n", what, i - 16), exit(1);
    }
    CHECK(*hex == '"');
    seen++;
  }
  fclose(f);
  CHECK(seen > 20);
}

static void test_inputs(void) {
  uint8_t b[80] = {0};
  dunlin__answer a;
  dunlin__put64(b + 8, 50 | UINT64_C(4) << 32);
  record(5, 0, zeros, 16, "", 0);
  record(9, 0, b, 16, "12-0\0\0\0\0ok", 10);
  process();
  CHECK(strcmp(said, "12-0 ok in time") == 0);
  record(5, 0, zeros, 16, "", 0);
  record(9, 1, b, 16, "12-1\0\0\0\0", 8);
  process();
  CHECK(strcmp(said, "12-1  late") == 0);
  record(5, 0, zeros, 16, "", 0);
  record(10, 0, zeros, 8, "{\"event\":\"changed\",\"domain\":\"cold\",\"was\":\"warm\",\"labels\":{\"site\":\"north\"}}", 75);
  process();
  CHECK(strcmp(said, "changed cold warm north") == 0);
  memset(b, 0, sizeof b);
  dunlin__put64(b, UINT64_C(1) << 63);
  dunlin__put64(b + 8, 2 | UINT64_C(1) << 32);
  dunlin__put64(b + 16, 1 | UINT64_C(2) << 32 | UINT64_C(3) << 48); /* metric 1, unit 2, text */
  dunlin__put64(b + 32, 72 | UINT64_C(4) << 32);
  dunlin__put64(b + 40, 1 | UINT64_C(4) << 48);
  dunlin__put64(b + 56, 72 | UINT64_C(5) << 32); /* a byte too many */
  record(5, 0, zeros, 16, "", 0);
  record(1, 0, "\1\0\0\0", 4, "word", 4);
  record(1, 0, "\2\0\0\0", 4, "unit", 4);
  record(6, 0, b, 64, "text", 4);
  process();
  CHECK(strcmp(said, "word unit text ") == 0);
  memset(b, 0, sizeof b);
  dunlin__put64(b + 8, UINT64_C(3) << 32);
  record(5, 0, b, 16, "old", 3);
  record(128, 0, "\xfe\xca\0\0\0\0\0\0", 8, "", 0);
  a = process();
  CHECK(a.n == 32 && dunlin__u16((const uint8_t *)a.p + 20) == DUNLIN__STATE && memcmp((const char *)a.p + 24, "new", 3) == 0);
}

static dunlin_config settings(const char *text) {
  dunlin_config cfg = {{text, (uint32_t)strlen(text)}, {0, 0, 0, 0}, false};
  return cfg;
}

static void refused(const char *text, const char *want) {
  dunlin_config cfg = settings(text);
  dunlin_config_number(&cfg, "n", 0);
  dunlin_config_int(&cfg, "i", 0);
  dunlin_config_bool(&cfg, "b", false);
  dunlin_config_text(&cfg, "t", "");
  dunlin_config_severity(&cfg, "s", DUNLIN_INFO);
  dunlin_config_duration(&cfg, "d", 0);
  if (!cfg.wrong || strcmp(dunlin__g.why, want) != 0) fprintf(stderr, "%s:\ngot  %s\nwant %s\n", text, dunlin__g.why, want), exit(1);
}

static void no_object(const char *text, const char *want) {
  const dunlin_handlers none = {0};
  if (dunlin__configure(&none, text, (uint32_t)strlen(text)) || strcmp(dunlin__g.why, want) != 0)
    fprintf(stderr, "%s:\ngot  %s\nwant %s\n", text, dunlin__g.why, want), exit(1);
}

static void test_settings(void) {
  static char deep[20000];
  dunlin_config cfg = settings(
      "{\"n\": -1.5e1, \"i\": -7, \"b\": true, \"t\\u0065\": \"a\\tb\\u00e4\\ud83d\\ude00\\ud800\", \"s\": \"major\", \"after\": 2.5, \"d\": \"1h30m\", \"nothing\": null}");
  CHECK(dunlin_config_number(&cfg, "n", 1) == -15);
  CHECK(dunlin_config_int(&cfg, "i", 1) == -7);
  CHECK(dunlin_config_bool(&cfg, "b", false));
  CHECK(strcmp(dunlin_config_text(&cfg, "te", ""), "a\tbä😀\xef\xbf\xbd") == 0);
  CHECK(dunlin_config_severity(&cfg, "s", DUNLIN_INFO) == DUNLIN_MAJOR);
  CHECK(dunlin_config_seconds(&cfg, "after", 60) == 2500000);
  CHECK(dunlin_config_duration(&cfg, "d", 0) == 90 * DUNLIN_MINUTE);
  CHECK(dunlin_config_number(&cfg, "nothing", 4) == 4 && !dunlin_config_has(&cfg, "none"));
  CHECK(strcmp(dunlin_join("level", ".rate"), "level.rate") == 0 && !cfg.wrong);
  refused("{\"n\": \"x\"}", "setting n must be a number, not \"x\"");
  refused("{\"i\": 1.5}", "setting i must be a whole number, not 1.5");
  refused("{\"b\": 1}", "setting b must be true or false, not 1");
  refused("{\"t\": {\"x\": 1}}", "setting t must be a text, not {\"x\": 1}");
  refused("{\"s\": \"high\"}", "setting s must be info, warning, major or critical, not \"high\"");
  refused("{\"d\": \"90\"}", "setting d must be a time span as 90s, 15m or 24h, not \"90\"");
  refused("{\"t\": [1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1]}", "setting t must be a text, not [1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1…");
  no_object("[1]", "the configuration is not a JSON object: see byte 0");
  no_object("{\"n\": 1,}", "the configuration is not a JSON object: see byte 8");
  no_object("{\"a\":01}", "the configuration is not a JSON object: see byte 5");
  no_object("{\"a\":\"\\x\"}", "the configuration is not a JSON object: see byte 7");
  no_object("{\"a\":\"\\u12g4\"}", "the configuration is not a JSON object: see byte 7");
  no_object("{\"a\":[1,]}", "the configuration is not a JSON object: see byte 8");
  memset(deep, '[', sizeof deep - 1);
  memcpy(deep, "{\"a\":", 5);
  no_object(deep, "the configuration is not a JSON object: see byte 22");
  record(3, 0, "", 0, "{\"brokn\":1}", 11);
  CHECK(!dunlin__init(&(const dunlin_handlers){.raw = raw}, frame, frame_n).failed && dunlin__g.out.n == 0);
  frame_n = 0;
}

static void same(const char *s) {
  double v = 0, want = strtod(s, NULL);
  bool ok = dunlin__number(s, (uint32_t)strlen(s), &v);
  if (ok != (isfinite(want) != 0) || (ok && memcmp(&v, &want, 8) != 0)) fprintf(stderr, "%s: %d %.17g, want %.17g\n", s, ok, v, want), exit(1);
}

static void test_numbers(void) {
  static const char *const edges[] = {"0", "-0", "0.0e5", "1e22", "1e23", "9007199254740993", "5e-324", "2.4703282292062327e-324",
                                      "2.4703282292062328e-324", "2.2250738585072011e-308", "1.7976931348623158e308", "1.7976931348623159e308", "0.1",
                                      "1e-400", "123456789012345678901234567890", "9007199254740992.5000000000000000000000001", "1e999999999"};
  static const char *const bad[] = {"", "-", "01", "1.", ".5", "1e", "1e+", "+1", "0x10", "1_0", "NaN", "inf", "1 "};
  uint64_t x = 0x2545f4914f6cdd1d;
  uint32_t i;
  double v;
  for (i = 0; i < sizeof edges / sizeof *edges; i++) same(edges[i]);
  for (i = 0; i < sizeof bad / sizeof *bad; i++) CHECK(!dunlin__number(bad[i], (uint32_t)strlen(bad[i]), &v));
  for (i = 0; i < 20000; i++) {
    char s[100];
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    memcpy(&v, &x, 8);
    if (i % 2 && isfinite(v)) snprintf(s, sizeof s, "%.*e", (int)(x % 25), v);
    else snprintf(s, sizeof s, "%llu.%llue%d", (unsigned long long)(x >> x % 60), (unsigned long long)x, (int)(x >> 20) % 330);
    same(s);
  }
}

static void test_lines(void) {
  char b[12];
  dunlin_line l = {b, sizeof b, 0};
  dunlin_fixed(&l, -8.26, 1);
  dunlin_str(&l, " ");
  dunlin_int(&l, INT64_MIN);
  CHECK(strcmp(b, "-8.3 -92233") == 0);
  l.n = 0;
  dunlin_str(&l, "0123456789ä");
  CHECK(strcmp(b, "0123456789") == 0);
  l.n = 0;
  dunlin_fixed(&l, 0.05, 3);
  dunlin_fixed(&l, -0.0001, 1);
  CHECK(strcmp(b, "0.0500.0") == 0);
}

int main(void) {
  test_settings();
  record(3, 0, "", 0, "{}", 2);
  CHECK(!dunlin__init(&dunlin__handlers, frame, frame_n).failed);
  frame_n = 0;
  test_records();
  test_inputs();
  test_numbers();
  test_lines();
  puts("unit: ok");
  return 0;
}
