/* An example, natively: against ../vectors, and against frames that nobody would send. Compiled with the example as EXAMPLE
 * and with sanitizers, so that a byte read behind a frame, which is allocated to its size, is found.
 *
 *   vectors NAME FILE...    plays the files that are for the example of that name */
#include EXAMPLE

#include <stdarg.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

/* Buffers grow and are not given back: that is no leak. */
const char *__asan_default_options(void);
const char *__asan_default_options(void) { return "detect_leaks=0"; }

typedef struct {
  char what[400];
  bool init, carry, error;
  uint8_t *in, *out;
  uint32_t in_n, out_n;
} call;

static call calls[200];
static uint32_t count;
static const char *file;

__attribute__((format(printf, 1, 2))) static void fail(const char *format, ...) {
  va_list args;
  va_start(args, format);
  fprintf(stderr, "%s: ", file);
  vfprintf(stderr, format, args);
  fprintf(stderr, "\n");
  va_end(args);
  _exit(1);
}

static uint8_t *unhex(const char *s, uint32_t *n) {
  uint32_t i;
  uint8_t *b;
  *n = (uint32_t)strcspn(s, "\"") / 2;
  b = malloc(*n);
  for (i = 0; i < *n; i++) {
    unsigned v;
    if (sscanf(s + 2 * i, "%2x", &v) != 1) fail("no hex: %.20s", s);
    b[i] = (uint8_t)v;
  }
  return b;
}

/* The files are made by a program: each member of a call stands on a line of its own. */
static bool load(const char *name, const char *path) {
  static char text[4 << 20], *line, *next;
  char example[64];
  bool in_calls = false;
  FILE *f = fopen(path, "r");
  if (!f) fail("can't be read");
  text[fread(text, 1, sizeof text - 1, f)] = 0;
  fclose(f);
  snprintf(example, sizeof example, "\"example\": \"%s\"", name);
  if (!strstr(text, example)) return false;
  count = 0;
  for (line = text; line; line = next) {
    call *c;
    if ((next = strchr(line, '\n'))) *next++ = 0;
    line += strspn(line, " ");
    if (strncmp(line, "\"calls\"", 7) == 0) in_calls = true;
    if (!in_calls) continue;
    if (line[0] == '{') {
      if (count == sizeof calls / sizeof *calls) fail("too many calls");
      memset(&calls[count++], 0, sizeof *calls);
    }
    c = count ? &calls[count - 1] : calls;
    if (sscanf(line, "\"what\": \"%399[^\n]", c->what) == 1) c->what[strlen(c->what) - 2] = 0;
    if (strncmp(line, "\"init\": true", 12) == 0) c->init = true;
    if (strncmp(line, "\"carry\": true", 13) == 0) c->carry = true;
    if (strncmp(line, "\"error\": true", 13) == 0) c->error = true;
    if (strncmp(line, "\"in\": \"", 7) == 0) c->in = unhex(line + 7, &c->in_n);
    if (strncmp(line, "\"out\": \"", 8) == 0) c->out = unhex(line + 8, &c->out_n);
  }
  if (count < 2 || !calls[0].init) fail("no calls");
  return true;
}

/* A call, with a frame of its very size. */
static dunlin__answer run(bool init, const uint8_t *in, uint32_t n, uint8_t **frame) {
  *frame = malloc(n ? n : 1);
  memcpy(*frame, in, n);
  return init ? dunlin__init(&dunlin__handlers, *frame, n) : dunlin__process(&dunlin__handlers, *frame, n);
}

static void check(const call *c, const char *on) {
  uint8_t *frame;
  dunlin__answer a = run(c->init, c->in, c->in_n, &frame);
  uint32_t i;
  if (c->error) {
    if (!a.failed) fail("%s instance, %s: an answer, want an error", on, c->what);
  } else if (a.failed) {
    fail("%s instance, %s: %.*s", on, c->what, (int)a.n, (const char *)a.p);
  } else if (a.n != c->out_n || (a.n && memcmp(a.p, c->out, a.n) != 0)) {
    fprintf(stderr, "got  ");
    for (i = 0; i < a.n; i++) fprintf(stderr, "%02x", ((const uint8_t *)a.p)[i]);
    fprintf(stderr, "\nwant ");
    for (i = 0; i < c->out_n; i++) fprintf(stderr, "%02x", c->out[i]);
    fprintf(stderr, "\n");
    fail("%s instance, %s", on, c->what);
  }
  free(frame);
}

/* Runs f in a process of its own, which is an instance of its own. */
static void instance(void (*f)(uint32_t), uint32_t i) {
  int status;
  pid_t pid = fork();
  if (pid == 0) {
    f(i);
    _exit(0);
  }
  if (pid < 0 || waitpid(pid, &status, 0) != pid || status != 0) fail("failed");
}

static void used(uint32_t unused) {
  (void)unused;
  for (uint32_t i = 0; i < count; i++) check(&calls[i], "used");
}

static void new(uint32_t i) {
  uint32_t first = i;
  while (calls[first].carry) first--;
  check(&calls[0], "new");
  for (; first <= i; first++) check(&calls[first], "new");
}

static uint64_t random_state = 0x9e3779b97f4a7c15;

static uint32_t pick(uint32_t n) {
  random_state ^= random_state << 13;
  random_state ^= random_state >> 7;
  random_state ^= random_state << 17;
  return n ? (uint32_t)(random_state >> 11) % n : 0;
}

/* Whether an answer is a frame: lengths, paddings, kinds, and groups in order. */
static void is_frame(const uint8_t *p, uint32_t n) {
  int64_t group = -1;
  while (n > 0) {
    uint32_t size = n >= 8 ? dunlin__u32(p) : 0, kind = size ? dunlin__u16(p + 4) : 0, i;
    if (size < 8 || dunlin__align(size) > n || kind < 256 || kind > 264) fail("the answer is no frame");
    if (kind == 256 && (int64_t)dunlin__u32(p + 8) <= group) fail("groups are out of order");
    if (kind == 256) group = dunlin__u32(p + 8);
    if (kind != 256 && kind != 261 && group < 0) fail("a record before any group");
    for (i = size; i < dunlin__align(size); i++)
      if (p[i]) fail("a padding is not zero");
    p += dunlin__align(size);
    n -= dunlin__align(size);
  }
}

/* Frames with bytes that are wrong, missing and lying: an answer that is a frame, or an error, and the instance goes on. */
static void mutate(uint32_t unused) {
  static const uint32_t lies[] = {0, 1, 7, 8, 9, 0x7fffffff, 0x80000000, 0xfffffff8, 0xffffffff, 24, 65536};
  static const uint8_t forget[8] = {8, 0, 0, 0, 2, 0, 0, 0}; /* what a host does after an error */
  static uint8_t b[1 << 16];
  uint32_t round, refused = 0, taken = 0;
  (void)unused;
  check(&calls[0], "mutated");
  for (round = 0; round < 20000; round++) {
    const call *c = &calls[pick(count)];
    uint32_t n = c->in_n, edits = 1 + pick(3), lie;
    uint8_t *frame;
    dunlin__answer a;
    memcpy(b, c->in, n);
    while (edits-- > 0) {
      uint32_t at = pick(n), from, size;
      switch (pick(5)) {
      case 0: n = at; break;
      case 1:
        lie = lies[pick(sizeof lies / sizeof *lies)];
        if (at + 4 <= n) memcpy(b + (at & ~3u), &lie, 4);
        break;
      case 2: b[at] = (uint8_t)pick(256); break;
      case 3: b[at] ^= (uint8_t)(1 << pick(8)); break;
      case 4: /* some records again */
        from = pick(n) & ~7u;
        size = (n - from) & ~7u;
        if (n % 8 == 0 && n + size <= sizeof b) {
          memcpy(b + n, b + from, size);
          n += size;
        }
      }
    }
    a = run(c->init, b, n, &frame);
    if (a.failed) {
      refused++;
      if (a.n == 0 || a.n > 300) fail("an error of %u bytes", a.n);
    } else {
      taken++;
      is_frame(a.p, a.n);
    }
    free(frame);
    if (round % 10 == 0 || c->init) {
      static uint8_t good[1 << 16];
      if (c->init) check(&calls[0], "mutated");
      memcpy(good, forget, 8);
      memcpy(good + 8, calls[1].in, calls[1].in_n);
      call again = calls[1];
      again.in = good;
      again.in_n += 8;
      check(&again, "mutated");
    }
  }
  if (refused < 100 || taken < 100) fail("%u refused, %u taken", refused, taken);
}

int main(int argc, char **argv) {
  int played = 0;
  for (int k = 2; k < argc; k++) {
    file = argv[k];
    if (!load(argv[1], file)) continue;
    instance(used, 0);
    for (uint32_t i = 1; i < count; i++) instance(new, i);
    instance(mutate, 0);
    played++;
  }
  if (played == 0) fail("no vectors of %s", argv[1]);
  printf("%s: %d files\n", argv[1], played);
  return 0;
}
