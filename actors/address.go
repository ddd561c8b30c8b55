package actors

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/asynkron/protoactor-go/actor"

	"github.com/dunlin-iot/dunlin"
)

// Address is the address of the devices as virtual actors: PID{"dev", "<tenant>/<device>"} always exists, wherever the
// device is and whether it is active or not. What is sent to a device whose shard another node owns goes there by Elsewhere.
const Address = "dev"

// NewPID returns the address of a device's actor.
func NewPID(key dunlin.DeviceKey) *actor.PID { return actor.NewPID(Address, key.String()) }

// Tell, sent to a device, is an uplink of it. The uplink's own DeviceKey is set to the device. If it has no Waiter, whoever
// requested gets a *Told.
type Tell struct{ Uplink *dunlin.Uplink }

// Told answers a Tell.
type Told struct{ Receipt dunlin.Receipt }

// Ask, requested from a device, is answered with an *Answer by the device's shard actor: after every change of the device
// that was acknowledged before, and never with one that isn't committed.
type Ask struct{}

// Answer answers an Ask. Err is ErrNotFound for a device that is not registered.
type Answer struct {
	Twin *dunlin.Twin
	Err  error
}

// ask is an Ask on its way through the shard actor.
type ask struct {
	key    dunlin.DeviceKey
	sender *actor.PID
}

// resolve makes protoactor find the devices. One process stands for all of them: what it returns is kept in the PID.
func (d *Directory) resolve(pid *actor.PID) (actor.Process, bool) {
	return (*door)(d), pid.Address == Address
}

// door is the process behind every device's address.
type door Directory

// SendUserMessage implements actor.Process.
func (p *door) SendUserMessage(pid *actor.PID, message any) {
	d := (*Directory)(p)
	_, m, sender := actor.UnwrapEnvelope(message)
	key, err := parseKey(pid.Id)
	switch m := m.(type) {
	case *Tell:
		u := m.Uplink
		u.DeviceKey, u.Next = key, nil
		if u.Waiter == nil && sender != nil {
			u.Waiter = requester{d, sender}
		}
		if err != nil {
			d.tell(u, dunlin.Receipt{Err: err})
			return
		}
		d.Ingest(u)
	case *Ask:
		if sender == nil {
			break
		}
		if err == nil {
			s := &d.shards[d.cfg.ShardOf(key)]
			if !d.closing.Load() && s.open.Load() {
				s.box.PostUserMessage(&ask{key, sender})
				return
			}
			if e := d.elsewhere.Load(); e != nil && !d.closing.Load() {
				(*e).AskTwin(key, func(t *dunlin.Twin, err error) { d.system.Root.Send(sender, &Answer{Twin: t, Err: err}) })
				return
			}
			err = errNotOwner
		}
		d.system.Root.Send(sender, &Answer{Err: err})
		return
	default:
		d.system.DeadLetter.SendUserMessage(pid, message)
	}
}

// SendSystemMessage implements actor.Process. A device cannot be watched or stopped: it is always there.
func (p *door) SendSystemMessage(pid *actor.PID, message any) {
	(*Directory)(p).system.DeadLetter.SendSystemMessage(pid, message)
}

// Stop implements actor.Process.
func (p *door) Stop(*actor.PID) {}

// requester is the waiter of a Tell that was requested.
type requester struct {
	dir    *Directory
	sender *actor.PID
}

// Done implements dunlin.Waiter.
func (r requester) Done(_ *dunlin.Uplink, receipt dunlin.Receipt) {
	r.dir.system.Root.Send(r.sender, &Told{Receipt: receipt})
}

func parseKey(id string) (dunlin.DeviceKey, error) {
	tenant, dev, ok := strings.Cut(id, "/")
	key := dunlin.DeviceKey{Tenant: dunlin.Tenant(tenant), Device: dunlin.DeviceID(dev)}
	if !ok {
		return key, fmt.Errorf("%w: device address %q, want tenant/device", dunlin.ErrInvalid, id)
	}
	if err := key.Tenant.Validate(); err != nil {
		return key, err
	}
	return key, key.Device.Validate()
}

// answerAsk answers from the cell, or from the store without activating the device for it.
func (s *shard) answerAsk(m *ask) {
	a := &Answer{Err: dunlin.ErrNotFound}
	if c := s.cells.get(m.key); c != nil && c.Registered() {
		a = &Answer{Twin: c.Twin()}
	} else if c == nil {
		a.Twin, a.Err = s.dir.stored(s.id, m.key)
	}
	s.dir.system.Root.Send(m.sender, a)
}

// refuse answers a message for which the mailbox has no room.
func (s *shard) refuse(message any) {
	switch m := message.(type) {
	case *update:
		m.done <- errMailbox
	case *ask:
		s.dir.system.Root.Send(m.sender, &Answer{Err: errMailbox})
	case own, disown:
	default:
		s.dir.system.DeadLetter.SendUserMessage(s.dir.system.NewLocalPID("shards/"+strconv.Itoa(int(s.id))), message)
	}
}

// NotHere reports whether a response to a Tell or an Ask means that the device's shard has another owner: whoever asked may
// ask again.
func NotHere(response any) bool {
	switch m := response.(type) {
	case *Answer:
		return errors.Is(m.Err, dunlin.ErrNotOwner)
	case *Told:
		return errors.Is(m.Receipt.Err, dunlin.ErrNotOwner)
	}
	return false
}

// IsQuestion reports whether a message may be sent twice. A Tell may not: its uplink may still be on its way.
func IsQuestion(message any) bool {
	_, ok := message.(*Ask)
	return ok
}
