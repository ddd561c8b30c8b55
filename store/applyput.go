package store

import (
	"encoding/json"

	"github.com/cockroachdb/pebble/v2"

	"github.com/dunlin-iot/dunlin"
)

// put writes or deletes a row of the registry. A device's row has a shadow in the index of its domain, and gives the
// device a state, so that activation finds its domain before its first uplink.
func (a *applier) put(shard dunlin.ShardID, p *dunlin.Put) error {
	if p.Table == dunlin.TableDeadLetters {
		return a.dropLetter(shard, p)
	}
	if p.Table == dunlin.TableDevices {
		if err := a.putDevice(shard, p); err != nil {
			return err
		}
	}
	a.key = appendRow(a.key[:0], shard, p.Table, p.Key)
	if p.Value == nil {
		return a.batch.Delete(a.key, nil)
	}
	return a.batch.Set(a.key, p.Value, nil)
}

func (a *applier) putDevice(shard dunlin.ShardID, p *dunlin.Put) error {
	key, ok := cutDeviceKey(p.Key)
	if !ok {
		return nil // no device's: a row like any other
	}
	a.key = appendRow(a.key[:0], shard, p.Table, p.Key)
	old, found, err := get(a.read, a.key)
	if err != nil {
		return err
	}
	was, is := domainOf(old), domainOf(p.Value)
	if found && was != "" && was != is {
		a.key = appendDomain(a.key[:0], shard, key.Tenant, was, key.Device)
		if err := a.batch.Delete(a.key, nil); err != nil {
			return err
		}
	}
	if p.Value == nil {
		return a.deleteDevice(shard, key)
	}
	if is == "" {
		return nil
	}
	a.key = appendDomain(a.key[:0], shard, key.Tenant, is, key.Device)
	if err := a.batch.Set(a.key, nil, nil); err != nil {
		return err
	}
	return a.mergeState(shard, &dunlin.DeviceState{DeviceKey: key, Domain: is})
}

// domainOf reads the domain out of a device's document; "" if it has none.
func domainOf(doc []byte) dunlin.DomainID {
	var d struct {
		Domain dunlin.DomainID `json:"domain"`
	}
	if len(doc) == 0 || json.Unmarshal(doc, &d) != nil {
		return ""
	}
	return d.Domain
}

// deleteDevice removes all rows of a device but that of the registry. It reads through the batch.
func (a *applier) deleteDevice(shard dunlin.ShardID, key dunlin.DeviceKey) error {
	st, found, err := loadDevice(a.read, shard, key)
	if err != nil {
		return err
	}
	if found {
		for _, t := range st.Timers {
			a.timed = append(a.timed, timerMove{shard, key, t.Name, 0})
			a.key = appendTimer(a.key[:0], shard, t.Due, key, t.Name)
			if err := a.batch.Delete(a.key, nil); err != nil {
				return err
			}
		}
	}
	if err := a.deleteAlerts(shard, key); err != nil {
		return err
	}
	for _, table := range []byte{tabDevice, tabDead} {
		a.key = appendDevice(a.key[:0], shard, table, key)
		if err := a.batch.Delete(a.key, nil); err != nil {
			return err
		}
	}
	for _, table := range []byte{tabReadings, tabAlert} {
		a.key = appendDevice(a.key[:0], shard, table, key)
		if err := a.batch.DeleteRange(a.key, after(a.key), nil); err != nil {
			return err
		}
	}
	return nil
}

// deleteAlerts removes a device's rows from the index by time.
func (a *applier) deleteAlerts(shard dunlin.ShardID, key dunlin.DeviceKey) error {
	head := appendDevice(nil, shard, tabAlert, key)
	it, err := a.read.NewIter(&pebble.IterOptions{LowerBound: head, UpperBound: after(head)})
	if err != nil {
		return err
	}
	defer it.Close()
	for ok := it.First(); ok; ok = it.Next() {
		place, al, err := cutAlert(it.Value())
		if err != nil {
			return err
		}
		a.end = appendAlertTime(a.end[:0], shard, al, place)
		if err := a.batch.Delete(a.end, nil); err != nil {
			return err
		}
		delete(a.alerts, string(it.Key()))
	}
	return it.Error()
}
