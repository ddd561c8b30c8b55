package store

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"github.com/dunlin-iot/dunlin"
)

// retainHistory goes over the devices of all domains and drops the rows of history that are older than their domain keeps.
func (db *DB) retainHistory(ctx context.Context, b *pebble.Batch, now dunlin.Time) error {
	if db.cfg.Retention == nil {
		return nil
	}
	type domain struct {
		tenant dunlin.Tenant
		id     dunlin.DomainID
	}
	for i := range db.state.shards {
		shard := dunlin.ShardID(i)
		head := appendHead(nil, shard, tabDomain)
		var last domain
		var age time.Duration
		var inner error
		err := db.state.keys(head, head, func(key, _ []byte) bool {
			if inner = ctx.Err(); inner != nil {
				return false
			}
			tenant, rest, err := cutName(key[keyHead:])
			if err != nil {
				inner = err
				return false
			}
			id, device, err := cutName(rest)
			if err != nil {
				inner = err
				return false
			}
			if d := (domain{dunlin.Tenant(tenant), dunlin.DomainID(id)}); d != last {
				last, age = d, db.cfg.Retention(d.tenant, d.id)
			}
			if age > 0 {
				_, inner = db.state.retainReadings(b, shard, dunlin.DeviceKey{Tenant: last.tenant, Device: dunlin.DeviceID(device)}, now.Add(-age))
			}
			return inner == nil
		})
		if err = cmp.Or(err, inner); err != nil {
			return err
		}
	}
	return nil
}

// retainDead keeps all dead letters together below their bound by dropping those of the devices whose newest is oldest.
func (db *DB) retainDead(ctx context.Context, b *pebble.Batch) error {
	type row struct {
		key   []byte
		at    dunlin.Time
		bytes int64
	}
	var rows []row
	total := int64(0)
	for i := range db.state.shards {
		if err := ctx.Err(); err != nil {
			return err
		}
		head := appendHead(nil, dunlin.ShardID(i), tabDead)
		var inner error
		err := db.state.keys(head, head, func(key, v []byte) bool {
			r := row{key: slices.Clone(key), bytes: int64(len(v))}
			items, err := cutLetters(nil, v)
			for k := len(items) - 1; k >= 0 && err == nil && r.at == 0; k-- { // 0: all of them were deleted
				if items[k].kind == itemLetter {
					var l dunlin.DeadLetter
					l, err = cutLetter(items[k].letter)
					r.at = l.At
				}
			}
			if err != nil {
				inner = err
				return false
			}
			total += r.bytes
			rows = append(rows, r)
			return true
		})
		if err = cmp.Or(err, inner); err != nil {
			return err
		}
	}
	slices.SortStableFunc(rows, func(x, y row) int { return cmp.Compare(x.at, y.at) })
	for _, r := range rows {
		if total <= db.cfg.DeadLetterBytes {
			break
		}
		if err := b.Delete(r.key, nil); err != nil {
			return err
		}
		total -= r.bytes
	}
	return nil
}
