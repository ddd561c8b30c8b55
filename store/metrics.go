package store

import (
	"github.com/cockroachdb/pebble/v2"
	"github.com/prometheus/client_golang/prometheus"
)

// metrics are the store's own. A nil one counts nothing.
type metrics struct {
	reg     prometheus.Registerer
	all     []prometheus.Collector
	entries prometheus.Counter
	records prometheus.Counter
	exports prometheus.Counter
	out, in prometheus.Counter
	whole   prometheus.Counter
}

func newMetrics(db *DB, reg prometheus.Registerer) *metrics {
	if reg == nil {
		return nil
	}
	m := &metrics{reg: reg}
	m.entries = m.counter("dunlin_store_entries_applied_total", "Raft entries applied to the state.")
	m.records = m.counter("dunlin_store_records_applied_total", "Records of devices and plugins written to history.")
	m.exports = m.counter("dunlin_store_snapshots_exported_total", "Snapshots of shards opened for other nodes.")
	m.whole = m.counter("dunlin_store_snapshots_installed_total", "Snapshots of shards installed.")
	m.out = m.counter("dunlin_store_snapshot_sent_bytes_total", "Bytes of chunks of snapshots made for other nodes.")
	m.in = m.counter("dunlin_store_snapshot_received_bytes_total", "Bytes of chunks of snapshots taken from other nodes.")
	m.gauge("dunlin_store_disk_free_bytes", "Bytes free on the disk of the data folder.", nil, func() float64 {
		d, err := db.cfg.FS.GetDiskUsage(db.cfg.Dir)
		if err != nil {
			return 0
		}
		return float64(d.AvailBytes)
	})
	m.gauge("dunlin_store_archive_bytes", "Bytes of archived entries.", nil, func() float64 { return float64(db.archive.total.Load()) })
	m.gauge("dunlin_store_tail_bytes", "Bytes of entries kept in memory for followers.", nil, func() float64 { return float64(db.journal.tailBytes()) })
	for i, name := range []string{"log", "state"} {
		e := db.engines[i]
		read := func(f func(*pebble.Metrics) float64) func() float64 {
			return func() float64 {
				if db.die.failed() != nil {
					return 0
				}
				return f(e.Metrics())
			}
		}
		l := prometheus.Labels{"engine": name}
		m.gauge("dunlin_store_disk_bytes", "Bytes on disk.", l, read(func(p *pebble.Metrics) float64 { return float64(p.DiskSpaceUsage()) }))
		m.gauge("dunlin_store_memtable_bytes", "Bytes of memtables.", l, read(func(p *pebble.Metrics) float64 { return float64(p.MemTable.Size) }))
		m.total("dunlin_store_flushes_total", "Memtables flushed.", l, read(func(p *pebble.Metrics) float64 { return float64(p.Flush.Count) }))
		m.total("dunlin_store_compactions_total", "Compactions done.", l, read(func(p *pebble.Metrics) float64 { return float64(p.Compact.Count) }))
		m.gauge("dunlin_store_compaction_debt_bytes", "Bytes that wait to be compacted.", l, read(func(p *pebble.Metrics) float64 { return float64(p.Compact.EstimatedDebt) }))
	}
	return m
}

func (m *metrics) counter(name, help string) prometheus.Counter {
	c := prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	m.add(c)
	return c
}

func (m *metrics) gauge(name, help string, l prometheus.Labels, f func() float64) {
	m.add(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help, ConstLabels: l}, f))
}

// total is a counter that is kept elsewhere.
func (m *metrics) total(name, help string, l prometheus.Labels, f func() float64) {
	m.add(prometheus.NewCounterFunc(prometheus.CounterOpts{Name: name, Help: help, ConstLabels: l}, f))
}

func (m *metrics) add(c prometheus.Collector) {
	if m.reg.Register(c) == nil {
		m.all = append(m.all, c)
	}
}

func (m *metrics) applied(entries []appliedEntry) {
	if m == nil {
		return
	}
	records := 0
	for i := range entries {
		e := entries[i].entry
		if e == nil {
			continue
		}
		for j := range e.Changes {
			for k := range e.Changes[j].Inputs {
				records += len(e.Changes[j].Inputs[k].Records)
			}
			for k := range e.Changes[j].Stages {
				records += len(e.Changes[j].Stages[k].Records)
			}
		}
	}
	m.entries.Add(float64(len(entries)))
	m.records.Add(float64(records))
}

// close takes the metrics back: a closed engine must not be asked.
func (m *metrics) close() {
	if m == nil {
		return
	}
	for _, c := range m.all {
		m.reg.Unregister(c)
	}
	m.all = nil
}

func (m *metrics) exported() {
	if m != nil {
		m.exports.Inc()
	}
}

func (m *metrics) installed() {
	if m != nil {
		m.whole.Inc()
	}
}

func (m *metrics) sent(bytes int) {
	if m != nil {
		m.out.Add(float64(bytes))
	}
}

func (m *metrics) received(bytes int) {
	if m != nil {
		m.in.Add(float64(bytes))
	}
}
