//go:build unix

package replay

import (
	"crypto/sha256"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/actors/device"
	"github.com/dunlin-iot/dunlin/cluster/shard"
	"github.com/dunlin-iot/dunlin/plugins"
	"github.com/dunlin-iot/dunlin/store"
)

const (
	benchShards  = 64
	benchDevices = 1000
	benchSegment = 1150 // changes, as 128 KiB of entries have
)

func benchShardOf(k dunlin.DeviceKey) dunlin.ShardID { return shard.Of(k, benchShards) }

// benchDays is how many days of readings each minute the devices have.
func benchDays() int {
	if n, err := strconv.Atoi(os.Getenv("DUNLIN_REPLAY_DAYS")); err == nil && n > 0 {
		return n
	}
	return 1
}

type benchDevice struct {
	key     dunlin.DeviceKey
	phase   float64
	version uint64
	alert   *dunlin.Alert
}

// record writes a recording of 1,000 devices that report each minute, of which the threshold plugin was deployed.
func record(b *testing.B, db *store.DB, hash dunlin.ModuleHash, days int) (readings int) {
	rng := rand.New(rand.NewPCG(1, 2))
	devices := make([][]*benchDevice, benchShards)
	for i := range benchDevices {
		d := &benchDevice{key: dunlin.DeviceKey{Tenant: "default", Device: dunlin.DeviceID(fmt.Sprintf("fridge-%04d", i))}, phase: rng.Float64() * 2 * math.Pi}
		sh := benchShardOf(d.key)
		devices[sh] = append(devices[sh], d)
	}
	for sh := range dunlin.ShardID(benchShards) {
		index := uint64(1)
		items := make([]dunlin.FeedItem, 0, benchSegment)
		for m := range days * 1440 {
			for i, d := range devices[sh] {
				at := worldStart + dunlin.Time(m)*60e6 + dunlin.Time(i*60e6/len(devices[sh])) + dunlin.Time(rng.IntN(1000))
				items = append(items, dunlin.FeedItem{Index: index, Entry: d.entry(rng, sh, at, hash)})
				index++
				readings++
			}
			if len(items) >= benchSegment-len(devices[sh]) || m == days*1440-1 {
				if err := db.ImportRecording(sh, items); err != nil {
					b.Fatal(err)
				}
				items = items[:0]
			}
		}
	}
	return readings
}

func (d *benchDevice) entry(rng *rand.Rand, sh dunlin.ShardID, at dunlin.Time, hash dunlin.ModuleHash) *dunlin.Entry {
	day := float64(at-worldStart) / 86_400e6
	v := math.Round((5+2.5*math.Sin(2*math.Pi*day+d.phase)+rng.NormFloat64()*0.3)*100) / 100
	d.version++
	c := dunlin.Change{DeviceKey: d.key, Domain: "d", Version: d.version, Created: d.version == 1,
		Inputs: []dunlin.Input{{Kind: dunlin.InputTelemetry, Format: dunlin.FormatSenMLJSON, MessageID: rng.Uint64(), Received: at - dunlin.Time(rng.IntN(2000)),
			Records: []dunlin.Record{{Metric: "temp", Unit: "Cel", Kind: dunlin.Number, Num: v, Time: at - dunlin.Time(20_000+rng.IntN(50_000))}}}},
		Stages: []dunlin.StageResult{{Hash: hash}}}
	switch {
	case d.alert == nil && v > 8:
		d.alert = &dunlin.Alert{Tenant: "default", Device: d.key.Device, Domain: "d", Rule: "threshold", Severity: dunlin.Major, State: dunlin.AlertRaised,
			Value: &v, RaisedAt: c.Inputs[0].Received, RaisedSeq: d.version, At: c.Inputs[0].Received, Seq: d.version}
		c.Alerts = append(c.Alerts, *d.alert)
	case d.alert != nil && v < 7:
		a := *d.alert
		a.State, a.At, a.Seq, a.ClearedAt, a.Value = dunlin.AlertCleared, c.Inputs[0].Received, d.version, c.Inputs[0].Received, &v
		c.Alerts = append(c.Alerts, a)
		d.alert = nil
	}
	return &dunlin.Entry{Shard: sh, Term: 1, At: at, Changes: []dunlin.Change{c}}
}

func cpuTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkBacktest runs the threshold plugin of each language that is built over a recording of 1,000 devices that report each
// minute, for a day, or as many days as DUNLIN_REPLAY_DAYS says; and the deployed one, exactly and turn by turn.
func BenchmarkBacktest(b *testing.B) {
	langs := []struct{ name, file string }{{"c", "../../sdk/c/build/threshold.wasm"},
		{"rust", "../../sdk/rust/target/wasm32-unknown-unknown/release/threshold.wasm"}, {"assemblyscript", "../../sdk/assemblyscript/build/threshold.wasm"},
		{"go", filepath.Join(tempDir(), "fickle.wasm")}}
	if _, err := fickle(); err != nil {
		b.Fatal(err)
	}
	var running []byte // what is deployed: the first one that is built
	for i := len(langs) - 1; i >= 0; i-- {
		if wasm, err := os.ReadFile(langs[i].file); err == nil {
			running = wasm
		}
	}
	deployed := dunlin.ModuleHash(sha256.Sum256(running))
	days := benchDays()
	db, err := store.Open(store.Config{Dir: filepath.Join(b.TempDir(), "data"), Identity: store.Identity{Cluster: "c", Node: "n", Shards: benchShards},
		ShardOf: benchShardOf, ArchiveAge: -1, ArchiveBytes: -1})
	if err != nil {
		b.Fatal(err)
	}
	defer db.Close()
	began := time.Now()
	readings := record(b, db, deployed, days)
	b.Logf("recorded %d readings in %v", readings, time.Since(began))
	w := &world{t: b, modules: map[dunlin.ModuleHash][]byte{deployed: running}, domain: &dunlin.Domain{Tenant: "default", ID: "d"}, plugins: map[string]*dunlin.Plugin{"threshold": {Name: "threshold", Hash: deployed}}}
	w.rules = &device.Rules{Tenant: "default", Domain: "d", Stages: []dunlin.Stage{{Plugin: "threshold", Name: "threshold", Hash: deployed, Config: []byte(`{}`)}}}
	s, err := New(Config{Shards: benchShards, ShardOf: benchShardOf}, Deps{Registry: w, Module: w.module,
		Past: func(sh dunlin.ShardID, since dunlin.Time, states bool) (Reader, error) {
			return db.Journal().Recording(sh, since, states)
		},
		Open: func() (Processor, error) {
			return plugins.Open(plugins.Config{CacheDir: filepath.Join(tempDir(), "cache"), Module: w.module})
		}})
	if err != nil {
		b.Fatal(err)
	}
	query := func() dunlin.Backtest {
		return dunlin.Backtest{Domain: "d", Since: worldStart, Until: worldStart + dunlin.Time(days)*86_400e6}
	}
	run := func(name string, backtest func() (*dunlin.BacktestReport, error)) {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				cpu, began := cpuTime(b), time.Now()
				rep, err := backtest()
				if err != nil {
					b.Fatal(err)
				}
				spent, took := cpuTime(b)-cpu, time.Since(began)
				var mem runtime.MemStats
				runtime.ReadMemStats(&mem)
				b.ReportMetric(float64(spent.Nanoseconds())/float64(rep.Readings), "cpu-ns/reading")
				b.ReportMetric(float64(rep.Readings)/took.Seconds(), "readings/s")
				b.ReportMetric(43.2e6/float64(rep.Readings)*took.Seconds(), "s/43.2M")
				b.ReportMetric(float64(mem.HeapInuse)/1e6, "heap-MB")
				b.Log(summary(rep))
				if int(rep.Readings) != readings || name != "go" && (rep.Alerts.Same != rep.Alerts.Recorded || rep.Alerts.Added > 0 || rep.Alerts.Same == 0) {
					b.Error("another result")
				}
			}
		})
	}
	for _, lang := range langs {
		wasm, err := os.ReadFile(lang.file)
		if err != nil {
			b.Logf("%s is not built", lang.file)
			continue
		}
		run(lang.name, func() (*dunlin.BacktestReport, error) {
			q := query()
			q.Config = []byte(`{"above": 8.0}`) // another configuration that says the same
			return s.Backtest(b.Context(), q, wasm, nil)
		})
	}
	run("exact", func() (*dunlin.BacktestReport, error) { return s.Backtest(b.Context(), query(), nil, nil) })
	run("by-turn", func() (*dunlin.BacktestReport, error) {
		q := query()
		q.Config = []byte(`{"above": 8.0}`)
		t, err := s.plan(b.Context(), &q, nil)
		if err != nil {
			return nil, err
		}
		t.byTurn = true
		k, _, err := s.round(b.Context(), &q, t, nil, nil)
		if err != nil {
			return nil, err
		}
		return &dunlin.BacktestReport{Mode: t.mode(), Readings: k.readings, Alerts: k.alerts}, nil
	})
}
