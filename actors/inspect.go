package actors

import (
	"context"
	"fmt"

	"github.com/dunlin-iot/dunlin"
)

// Twin implements dunlin.Inspector. It reads the store and not the actor: an uplink is acknowledged after its change was
// applied, so whoever has seen the acknowledgement finds it there, and nobody waits behind a turn.
func (d *Directory) Twin(_ context.Context, key dunlin.DeviceKey) (*dunlin.Twin, error) {
	return d.stored(d.cfg.ShardOf(key), key)
}

func (d *Directory) stored(shard dunlin.ShardID, key dunlin.DeviceKey) (*dunlin.Twin, error) {
	st, known, err := d.deps.States.LoadDevice(shard, key)
	if err != nil {
		return nil, fmt.Errorf("twin: %w", err)
	}
	if !known || st.Domain == "" {
		return nil, fmt.Errorf("twin of %s: %w", key, dunlin.ErrNotFound)
	}
	return st.Twin(), nil
}

// Readings implements dunlin.Inspector.
func (d *Directory) Readings(_ context.Context, q dunlin.ReadingsQuery) (*dunlin.ReadingsPage, error) {
	return d.deps.History.Readings(d.cfg.ShardOf(q.DeviceKey), q)
}

// Alerts implements dunlin.Inspector.
func (d *Directory) Alerts(_ context.Context, q dunlin.AlertsQuery) (*dunlin.AlertsPage, error) {
	return d.deps.History.Alerts(d.shardsOf(q.Tenant, q.Device), q)
}

// DeadLetters implements dunlin.Inspector.
func (d *Directory) DeadLetters(_ context.Context, q dunlin.DeadLettersQuery) (*dunlin.DeadLettersPage, error) {
	letters, err := d.deps.History.DeadLetters(d.shardsOf(q.Tenant, q.Device), q)
	if err != nil {
		return nil, err
	}
	return &dunlin.DeadLettersPage{Letters: letters}, nil
}

// shardsOf returns where rows of a device are; of any device, if it is not named.
func (d *Directory) shardsOf(t dunlin.Tenant, dev dunlin.DeviceID) []dunlin.ShardID {
	if dev != "" {
		return []dunlin.ShardID{d.cfg.ShardOf(dunlin.DeviceKey{Tenant: t, Device: dev})}
	}
	all := make([]dunlin.ShardID, d.cfg.Shards)
	for i := range all {
		all[i] = dunlin.ShardID(i)
	}
	return all
}
