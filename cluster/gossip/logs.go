package gossip

import (
	"log"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/dunlin-iot/dunlin"
)

// logs turns what memberlist says into log records. memberlist repeats itself with each probe and each packet: a kind of
// warning is written once in warnEvery, with the number of those left out.
type logs struct {
	out   *slog.Logger
	clock func() dunlin.Time
	mu    struct {
		sync.Mutex
		kinds map[string]*kind
	}
}

type kind struct {
	last    dunlin.Time
	skipped int
}

const (
	warnEvery    = 30 * time.Second
	warnKindsMax = 64
)

func newLogs(out *slog.Logger, clock func() dunlin.Time) *logs {
	l := &logs{out: out, clock: clock}
	l.mu.kinds = make(map[string]*kind)
	return l
}

func (l *logs) logger() *log.Logger { return log.New(l, "", 0) }

// Write implements io.Writer: one line of memberlist's, "[WARN] memberlist: …".
func (l *logs) Write(line []byte) (int, error) {
	text := strings.TrimSuffix(string(line), "\n")
	level := ""
	if rest, ok := strings.CutPrefix(text, "["); ok {
		if lv, rest, ok := strings.Cut(rest, "] "); ok {
			level, text = lv, rest
		}
	}
	text = strings.TrimPrefix(text, "memberlist: ")
	switch {
	case isKeyError(text) || strings.HasPrefix(text, "Decrypt packet failed"):
		l.warn("a node with another cluster secret was refused", "key", slog.String("text", text))
	case level == "WARN" || level == "ERR":
		l.warn("memberlist", kindOf(text), slog.String("text", text))
	default:
		l.out.Debug("memberlist", slog.String("text", text))
	}
	return len(line), nil
}

// refused logs a node that may not take part.
func (l *logs) refused(err error) {
	l.warn("two nodes claim to be one", "refused", slog.Any("err", err))
}

// kindOf is the words up to the first name, number or address.
func kindOf(text string) string {
	if i := strings.IndexAny(text, ":'(0123456789"); i >= 0 {
		text = text[:i]
	}
	return text[:min(len(text), 40)]
}

func (l *logs) warn(msg, of string, attr slog.Attr) {
	now := l.clock()
	l.mu.Lock()
	k := l.mu.kinds[of]
	if k == nil {
		if len(l.mu.kinds) >= warnKindsMax {
			clear(l.mu.kinds)
		}
		k = &kind{}
		l.mu.kinds[of] = k
	}
	if k.last != 0 && now.Sub(k.last) < warnEvery {
		k.skipped++
		l.mu.Unlock()
		return
	}
	skipped := k.skipped
	k.last, k.skipped = now, 0
	l.mu.Unlock()
	l.out.Warn(msg, attr, slog.Int("skipped", skipped))
}
