package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/dunlin-iot/dunlin"
)

// Device implements dunlin.Registrar.
func (r *Registry) Device(_ context.Context, key dunlin.DeviceKey) (*dunlin.Device, error) {
	key.Tenant = tenant(key.Tenant)
	return r.device(r.cfg.ShardOf(key), key)
}

func (r *Registry) device(shard dunlin.ShardID, key dunlin.DeviceKey) (*dunlin.Device, error) {
	row, known, err := r.deps.Rows.Row(shard, dunlin.TableDevices, key.String())
	if err != nil {
		return nil, err
	}
	if !known {
		return nil, notFound("device", string(key.Device))
	}
	d := &dunlin.Device{}
	if err := json.Unmarshal(row, d); err != nil {
		return nil, fmt.Errorf("device %s: %w", key, err)
	}
	return d, nil
}

// PutDevice implements dunlin.Registrar.
func (r *Registry) PutDevice(ctx context.Context, d dunlin.Device, ifRevision uint64) (*dunlin.Device, error) {
	d.Tenant = tenant(d.Tenant)
	key := dunlin.DeviceKey{Tenant: d.Tenant, Device: d.ID}
	if err := checkDevice(&d); err != nil {
		return nil, err
	}
	if err := r.domainFor(d.Tenant, d.Domain); err != nil {
		return nil, err
	}
	err := r.updateIn(ctx, r.cfg.ShardOf(key), &key, dunlin.TableDevices, key.String(), func(at dunlin.Time, old []byte) ([]byte, error) {
		var was dunlin.Device
		if err := revised("device "+string(d.ID), old, &was, &was.Revision, ifRevision); err != nil {
			return nil, err
		}
		if err := r.domainFor(d.Tenant, d.Domain); err != nil { // again: it may be leaving by now
			return nil, err
		}
		d.Revision, d.CreatedAt, d.UpdatedAt = was.Revision+1, was.CreatedAt, at
		if old == nil {
			d.CreatedAt = at
		}
		return json.Marshal(d)
	})
	if err != nil {
		return nil, fmt.Errorf("put device %s: %w", d.ID, err)
	}
	return &d, nil
}

func checkDevice(d *dunlin.Device) error {
	if err := errors.Join(d.Tenant.Validate(), d.ID.Validate()); err != nil {
		return err
	}
	if len(d.Labels) > labelsMax {
		return invalid("device %s has %d labels, want at most %d", d.ID, len(d.Labels), labelsMax)
	}
	for k, v := range d.Labels {
		if k == "" {
			return invalid("a label of device %s has no name", d.ID)
		}
		if err := errors.Join(bounded("label name", k, labelBytesMax), bounded("label "+k, v, labelBytesMax)); err != nil {
			return err
		}
	}
	return nil
}

// DeleteDevice implements dunlin.Registrar. The store removes with the row all else that it has of the device.
func (r *Registry) DeleteDevice(ctx context.Context, key dunlin.DeviceKey, ifRevision uint64) error {
	key.Tenant = tenant(key.Tenant)
	err := r.updateIn(ctx, r.cfg.ShardOf(key), &key, dunlin.TableDevices, key.String(), func(_ dunlin.Time, old []byte) ([]byte, error) {
		var was dunlin.Device
		if old == nil {
			return nil, notFound("device", string(key.Device))
		}
		return nil, revised("device "+string(key.Device), old, &was, &was.Revision, ifRevision)
	})
	if err != nil {
		return fmt.Errorf("delete device %s: %w", key.Device, err)
	}
	return nil
}

// Devices implements dunlin.Registrar. It knows what this node's replicas have; router.Router asks the others, too.
func (r *Registry) Devices(ctx context.Context, q dunlin.DevicesQuery) (*dunlin.DevicesPage, error) {
	return r.DevicesIn(ctx, r.allShards(), q)
}

func (r *Registry) allShards() []dunlin.ShardID {
	all := make([]dunlin.ShardID, r.cfg.Shards)
	for i := range all {
		all[i] = dunlin.ShardID(i)
	}
	return all
}

// DevicesIn lists devices of some shards: a merge of what they have, each read in small pieces.
func (r *Registry) DevicesIn(ctx context.Context, shards []dunlin.ShardID, q dunlin.DevicesQuery) (*dunlin.DevicesPage, error) {
	q.Tenant = tenant(q.Tenant)
	if q.Limit == 0 {
		q.Limit = 100
	}
	if q.Limit < 0 || q.Limit > devicesLimitMax {
		return nil, invalid("limit is %d, want 1 to %d", q.Limit, devicesLimitMax)
	}
	after := dunlin.DeviceID(q.Cursor)
	if after != "" && after.Validate() != nil {
		return nil, invalid("cursor %q", q.Cursor)
	}
	piece := q
	piece.Limit = 2*q.Limit/max(len(shards), 1) + 4
	heads := make([]shardDevices, len(shards))
	for i, sh := range shards {
		heads[i] = shardDevices{r: r, shard: sh, q: piece, after: after}
	}
	page := &dunlin.DevicesPage{}
	for {
		least := -1
		for i := range heads {
			ok, err := heads[i].fill(ctx)
			if err != nil {
				return nil, fmt.Errorf("list devices: %w", err)
			}
			if ok && (least < 0 || heads[i].devices[0].ID < heads[least].devices[0].ID) {
				least = i
			}
		}
		if least < 0 {
			return page, nil
		}
		if len(page.Devices) == q.Limit {
			page.Next = string(page.Devices[q.Limit-1].ID)
			return page, nil
		}
		page.Devices = append(page.Devices, heads[least].devices[0])
		heads[least].devices = heads[least].devices[1:]
	}
}

// shardDevices is one shard's part of a list.
type shardDevices struct {
	r       *Registry
	shard   dunlin.ShardID
	q       dunlin.DevicesQuery // of a piece
	after   dunlin.DeviceID
	devices []dunlin.Device // read and not yet taken
	end     bool
}

// fill reads the next piece if there is nothing left of the last one; false at the end.
func (s *shardDevices) fill(ctx context.Context) (bool, error) {
	for len(s.devices) == 0 && !s.end {
		if err := ctx.Err(); err != nil {
			return false, context.Cause(ctx)
		}
		read := s.readAll
		if s.q.Domain != "" {
			read = s.readDomain
		}
		n, err := read()
		if err != nil {
			return false, err
		}
		s.end = n < s.q.Limit
	}
	return len(s.devices) > 0, nil
}

func (s *shardDevices) readAll() (int, error) {
	head := string(s.q.Tenant) + "/"
	after := ""
	if s.after != "" {
		after = head + string(s.after)
	}
	rows, err := s.r.deps.Rows.Rows(s.shard, dunlin.TableDevices, head+s.q.Prefix, after, s.q.Limit)
	if err != nil {
		return 0, err
	}
	for i := range rows {
		var d dunlin.Device
		if err := json.Unmarshal(rows[i].Value, &d); err != nil {
			return 0, fmt.Errorf("device %s: %w", rows[i].Key, err)
		}
		s.devices, s.after = append(s.devices, d), d.ID
	}
	return len(rows), nil
}

func (s *shardDevices) readDomain() (int, error) {
	ids, err := s.r.deps.Rows.DevicesOf(s.shard, s.q, s.after)
	if err != nil {
		return 0, err
	}
	for _, id := range ids {
		s.after = id
		d, err := s.r.device(s.shard, dunlin.DeviceKey{Tenant: s.q.Tenant, Device: id})
		if errors.Is(err, dunlin.ErrNotFound) {
			continue // deleted since
		}
		if err != nil {
			return 0, err
		}
		s.devices = append(s.devices, *d)
	}
	return len(ids), nil
}
