package store

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/dunlin-iot/dunlin"
)

// The scripts drive a log of two shards:
//
//	append [sync]      lines "shard index term data", or "shard hard data"
//	read shard=1 lo=1 hi=9 [bytes=n]
//	term shard=1 index=3
//	truncate shard=1 to=3
//	load shard=1
//	applied shard=1 to=3   the state has surely applied these
//	reopen | crash     crash: what was not synced is gone
func TestLogScripts(t *testing.T) {
	datadriven.Walk(t, "testdata/log", func(t *testing.T, path string) {
		fs := vfs.NewCrashableMem()
		c := small(fs, 2)
		c.ArchiveOff = true // the rows here are no entries
		db, err := Open(c)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = db.Close() }()
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			if d.Cmd == "reopen" || d.Cmd == "crash" {
				crashed := fs.CrashClone(vfs.CrashCloneCfg{})
				if err := db.Close(); err != nil {
					t.Fatal(err)
				}
				if d.Cmd == "crash" {
					fs = crashed
				}
				c.FS = fs
				if db, err = Open(c); err != nil {
					t.Fatal(err)
				}
				return ""
			}
			if d.Cmd == "applied" {
				var shard, to int
				d.ScanArgs(t, "shard", &shard)
				d.ScanArgs(t, "to", &to)
				var batch []dunlin.Committed
				for i := db.State().Applied(dunlin.ShardID(shard)) + 1; i <= uint64(to); i++ {
					batch = append(batch, dunlin.Committed{Shard: dunlin.ShardID(shard), Index: i})
				}
				err := db.State().Apply(batch)
				if err = errors.Join(err, db.Sync(t.Context())); err != nil {
					t.Fatal(err)
				}
				return fmt.Sprintln("durable", db.State().Durable(dunlin.ShardID(shard)))
			}
			return logCommand(t, db.Log(), d)
		})
	})
}

func logCommand(t *testing.T, l *Log, d *datadriven.TestData) string {
	var out strings.Builder
	var shard, lo, hi, index int
	bytesMax := 1 << 20
	d.MaybeScanArgs(t, "shard", &shard)
	d.MaybeScanArgs(t, "lo", &lo)
	d.MaybeScanArgs(t, "hi", &hi)
	d.MaybeScanArgs(t, "bytes", &bytesMax)
	d.MaybeScanArgs(t, "index", &index)
	d.MaybeScanArgs(t, "to", &index)
	sh := dunlin.ShardID(shard)
	var err error
	switch d.Cmd {
	case "append":
		err = l.Append(parseRows(t, d.Input), d.HasArg("sync"))
	case "read":
		var rows []dunlin.LogRow
		rows, err = l.Read(sh, uint64(lo), uint64(hi), bytesMax)
		for _, r := range rows {
			fmt.Fprintf(&out, "%d/%d term %d %s\n", r.Shard, r.Index, r.Term, r.Data)
		}
	case "term":
		var term uint64
		if term, err = l.Term(sh, uint64(index)); err == nil {
			fmt.Fprintln(&out, term)
		}
	case "truncate":
		err = l.Truncate(sh, uint64(index))
	case "load":
		hard, first, last, e := l.Load(sh)
		err = e
		fmt.Fprintf(&out, "hard %q first %d last %d\n", hard, first, last)
	default:
		t.Fatalf("unknown command %s", d.Cmd)
	}
	switch {
	case errors.Is(err, dunlin.ErrCursorLost):
		fmt.Fprintln(&out, "truncated:", err)
	case err != nil:
		fmt.Fprintln(&out, "error:", err)
	}
	return out.String()
}

func parseRows(t *testing.T, input string) (rows []dunlin.LogRow) {
	for line := range strings.Lines(input) {
		f := strings.Fields(line)
		var r dunlin.LogRow
		if _, err := fmt.Sscan(f[0], &r.Shard); err != nil {
			t.Fatal(err)
		}
		if f[1] == "hard" {
			r.Hard = []byte(f[2])
		} else {
			if _, err := fmt.Sscan(strings.Join(f[1:3], " "), &r.Index, &r.Term); err != nil {
				t.Fatal(err)
			}
			r.Data = []byte(f[3])
		}
		rows = append(rows, r)
	}
	return rows
}
