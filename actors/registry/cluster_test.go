package registry

import (
	"context"
	"errors"
	"slices"
	"testing"

	"github.com/dunlin-iot/dunlin"
)

// TestReload: after a snapshot of the meta shard the copy is what the store has, and nothing else.
func TestReload(t *testing.T) {
	w, ctx := newWorld(t, nil), t.Context()
	for _, id := range []dunlin.DomainID{"kept", "gone"} {
		must(w.reg.PutDomain(ctx, dunlin.Domain{ID: id, Owner: "o"}, 0))
	}
	must(w.reg.PutCredential(ctx, dunlin.Credential{Kind: dunlin.CredentialDevice, ID: "d1"}, ""))
	changed := w.reg.Changed()
	delete(w.rows[dunlin.MetaShard], dunlin.TableDomains+"/default/gone")
	delete(w.rows[dunlin.MetaShard], dunlin.TableCredentials+"/default/device/d1")
	w.rows[dunlin.MetaShard][dunlin.TableDomains+"/default/new"] = dunlin.Put{Table: dunlin.TableDomains, Key: "default/new", Value: []byte(`{"id":"new","owner":"o"}`)}
	if err := w.reg.OnInstalled(3); err != nil || w.reg.Rules("default", "new") != nil {
		t.Errorf("another shard's snapshot: %v", err)
	}
	if err := w.reg.OnInstalled(dunlin.MetaShard); err != nil {
		t.Fatal(err)
	}
	if w.reg.Rules("default", "gone") != nil || w.reg.Rules("default", "kept") == nil || w.reg.Rules("default", "new") == nil {
		t.Error("the domains are not the store's")
	}
	if c := must(w.reg.Credentials(ctx, "")); len(c) != 0 {
		t.Errorf("credentials %v", c)
	}
	select {
	case <-changed:
	default:
		t.Error("nobody is told")
	}
}

// TestForeignRows: the controller's rows are in the meta shard, too; they are nobody's change here.
func TestForeignRows(t *testing.T) {
	w := newWorld(t, nil)
	changed := w.reg.Changed()
	w.reg.OnApplied(dunlin.MetaShard, 1, &dunlin.Entry{Puts: []dunlin.Put{{Table: dunlin.TablePlacement, Key: "7", Value: []byte("{}")}}})
	select {
	case <-changed:
		t.Error("a placement is a change of the registry")
	default:
	}
}

// others are devices of shards that have no replica here.
type others struct {
	page dunlin.DevicesPage
	err  error
}

func (o *others) Devices(ctx context.Context, q dunlin.DevicesQuery) (*dunlin.DevicesPage, error) {
	if q.Domain != "d" || q.Limit != 1 || dunlin.ReadLevelOf(ctx).Stale != 0 {
		return nil, errors.New("asked for something else")
	}
	return &o.page, o.err
}

// TestDeleteDomainAsksTheFleet: a domain is only deleted if nobody in the fleet belongs to it, and that is known.
func TestDeleteDomainAsksTheFleet(t *testing.T) {
	w, ctx := newWorld(t, nil), t.Context()
	must(w.reg.PutDomain(ctx, dunlin.Domain{ID: "d", Owner: "o"}, 0))
	o := &others{page: dunlin.DevicesPage{Devices: []dunlin.Device{{ID: "far", Domain: "d"}}}}
	w.reg.AttachFleet(o)
	if err := w.reg.DeleteDomain(ctx, "", "d", dunlin.AnyRevision); !errors.Is(err, dunlin.ErrConflict) {
		t.Errorf("with a device elsewhere: %v", err)
	}
	o.page = dunlin.DevicesPage{Missing: []dunlin.MissingShard{{Shard: 5, Reason: "down"}}}
	if err := w.reg.DeleteDomain(ctx, "", "d", dunlin.AnyRevision); !errors.Is(err, dunlin.ErrUnavailable) {
		t.Errorf("with a shard that doesn't answer: %v", err)
	}
	o.page = dunlin.DevicesPage{}
	if err := w.reg.DeleteDomain(ctx, "", "d", dunlin.AnyRevision); err != nil {
		t.Error(err)
	}
	if err := w.reg.DeleteDomain(ctx, "", "d", dunlin.AnyRevision); !errors.Is(err, dunlin.ErrNotFound) {
		t.Errorf("once more: %v", err)
	}
}

// TestDevicesIn lists what some shards have, and no others.
func TestDevicesIn(t *testing.T) {
	w, ctx := newWorld(t, nil), t.Context()
	must(w.reg.PutDomain(ctx, dunlin.Domain{ID: "d", Owner: "o"}, 0))
	var want []dunlin.DeviceID
	for _, id := range []dunlin.DeviceID{"a", "b", "c", "d", "e", "f", "g", "h", "i", "j"} {
		must(w.reg.PutDevice(ctx, dunlin.Device{ID: id, Domain: "d"}, 0))
		if sh := shardOf(dunlin.DeviceKey{Tenant: "default", Device: id}); sh == 1 || sh == 3 || sh == 6 {
			want = append(want, id)
		}
	}
	for _, domain := range []dunlin.DomainID{"", "d"} {
		var got []dunlin.DeviceID
		for cursor := ""; ; {
			p := must(w.reg.DevicesIn(ctx, []dunlin.ShardID{1, 3, 6}, dunlin.DevicesQuery{Domain: domain, Limit: 1, Cursor: cursor}))
			for _, d := range p.Devices {
				got = append(got, d.ID)
			}
			if cursor = p.Next; cursor == "" {
				break
			}
		}
		if len(want) == 0 || !slices.Equal(got, want) {
			t.Errorf("got %v, want %v", got, want)
		}
	}
}
