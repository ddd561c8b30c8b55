package replica

import (
	"fmt"
	"log/slog"
	"strings"
)

// raftLogger lets Raft speak through slog. Its texts are formatted, so they are an attribute of a constant message. What
// Raft calls information is detail here: 64 groups say ten lines each when a node starts.
type raftLogger struct{ log *slog.Logger }

// lazy is formatted only if somebody listens at its level.
type lazy struct {
	format string
	v      []any
}

func (l lazy) String() string {
	if l.format == "" {
		return fmt.Sprint(l.v...)
	}
	return fmt.Sprintf(l.format, l.v...)
}

// LogValue implements slog.LogValuer.
func (l lazy) LogValue() slog.Value { return slog.StringValue(l.String()) }

func (l raftLogger) Debug(v ...any)            { l.log.Debug("raft", "text", lazy{"", v}) }
func (l raftLogger) Debugf(f string, v ...any) { l.log.Debug("raft", "text", lazy{f, v}) }
func (l raftLogger) Info(v ...any)             { l.log.Debug("raft", "text", lazy{"", v}) }
func (l raftLogger) Infof(f string, v ...any)  { l.log.Debug("raft", "text", lazy{f, v}) }
func (l raftLogger) Warning(v ...any)          { l.log.Warn("raft", "text", lazy{"", v}) }
func (l raftLogger) Warningf(f string, v ...any) {
	if strings.Contains(f, "unpromotable") { // a learner is, at every tick
		l.log.Debug("raft", "text", lazy{f, v})
		return
	}
	l.log.Warn("raft", "text", lazy{f, v})
}
func (l raftLogger) Error(v ...any)            { l.log.Error("raft", "text", lazy{"", v}) }
func (l raftLogger) Errorf(f string, v ...any) { l.log.Error("raft", "text", lazy{f, v}) }

// A broken invariant of Raft ends the node: going on could acknowledge what nobody keeps.
func (l raftLogger) Fatal(v ...any)            { panic("raft: " + lazy{"", v}.String()) }
func (l raftLogger) Fatalf(f string, v ...any) { panic("raft: " + lazy{f, v}.String()) }
func (l raftLogger) Panic(v ...any)            { panic("raft: " + lazy{"", v}.String()) }
func (l raftLogger) Panicf(f string, v ...any) { panic("raft: " + lazy{f, v}.String()) }
