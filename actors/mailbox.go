package actors

import (
	"log/slog"
	"runtime/debug"
	"sync"
	"sync/atomic"

	"github.com/asynkron/protoactor-go/actor"

	"github.com/dunlin-iot/dunlin"
)

// The work a mailbox is run for, as bits of its status.
const (
	running int32 = 1 << iota // somebody runs it: only the runner touches the actor
	forMail                   // protoactor's messages and committed turns
	forTurn                   // uplinks and timers: a turn
)

// mailbox is a shard actor's: protoactor's actor.Mailbox, with two lanes of our own beside protoactor's two.
//
//	lane       filled by                      bound             run
//	system     protoactor                     none needed       at once
//	user       Send, Request to the PID       userMax           at once
//	committed  the committer's done           turns in flight   at once
//	uplinks    Directory.Ingest               events and bytes  when the pace says so
//
// Uplinks and committed turns are chained through themselves: queueing allocates nothing. Ingest reserves room before it
// posts and the reservation lasts until the uplink is answered, so nobody ever waits on a full mailbox: protoactor's own
// bounded mailbox spins for ever then, or drops the oldest without a word.
type mailbox struct {
	beat   *beat
	shard  *shard
	status atomic.Int32

	uplinks   atomic.Pointer[dunlin.Uplink] // newest first
	committed atomic.Pointer[turn]          // newest first
	landed    atomic.Pointer[turn]          // lanes' turns of which a stage has been run
	posts     atomic.Int32                  // in system and user
	letters   struct {
		sync.Mutex
		system, user []any
	}

	// Each list of the beat is a stack through these; the flag says that the mailbox is on it.
	onMail, onTurn     atomic.Bool
	nextMail, nextTurn *mailbox

	events, bytes atomic.Int64 // reserved: from Ingest until the answer

	invoker   actor.MessageInvoker
	suspended bool // the runner's: protoactor stops user messages between a failure and the supervisor's decision
	work      work // the message for both of our lanes
}

// work is the message that makes a shard actor work off our lanes.
type work struct{ turn, inline bool }

// userMax bounds the messages that others have sent to a shard's actor and that wait.
const userMax = 1024

var _ actor.Mailbox = (*mailbox)(nil)

// reserve takes room for an uplink; the answer to it gives the room back.
func (m *mailbox) reserve(bytes, eventsMax, bytesMax int64) bool {
	if m.events.Add(1) > eventsMax {
		m.events.Add(-1)
		return false
	}
	if m.bytes.Add(bytes) > bytesMax {
		m.events.Add(-1)
		m.bytes.Add(-bytes)
		return false
	}
	return true
}

// post puts an uplink in, for which there is room.
func (m *mailbox) post(u *dunlin.Uplink) {
	for {
		head := m.uplinks.Load()
		u.Next = head
		if m.uplinks.CompareAndSwap(head, u) {
			break
		}
	}
	m.beat.enlistTurn(m)
}

// take empties the uplinks' lane, in the order of their coming.
func (m *mailbox) take() (first, last *dunlin.Uplink) {
	last = m.uplinks.Swap(nil)
	for u := last; u != nil; {
		next := u.Next
		u.Next = first
		first, u = u, next
	}
	return first, last
}

// PostUserMessage implements actor.Mailbox. What finds no room is told so, never dropped silently, and never waits.
func (m *mailbox) PostUserMessage(message any) {
	m.letters.Lock()
	if _, ours := message.(order); !ours && len(m.letters.user) >= userMax {
		m.letters.Unlock()
		m.shard.refuse(message)
		return
	}
	m.letters.user = append(m.letters.user, message)
	m.letters.Unlock()
	m.posts.Add(1)
	m.beat.enlistMail(m)
}

// PostSystemMessage implements actor.Mailbox.
func (m *mailbox) PostSystemMessage(message any) {
	m.letters.Lock()
	m.letters.system = append(m.letters.system, message)
	m.letters.Unlock()
	m.posts.Add(1)
	m.beat.enlistMail(m)
}

// RegisterHandlers implements actor.Mailbox.
func (m *mailbox) RegisterHandlers(invoker actor.MessageInvoker, _ actor.Dispatcher) {
	m.invoker = invoker
}

// Start implements actor.Mailbox.
func (m *mailbox) Start() {}

// UserMessageCount implements actor.Mailbox.
func (m *mailbox) UserMessageCount() int { return int(m.events.Load()) + int(m.posts.Load()) }

// commit puts a turn in that the committer has done with.
func (m *mailbox) commit(t *turn) {
	for {
		head := m.committed.Load()
		t.next = head
		if m.committed.CompareAndSwap(head, t) {
			return
		}
	}
}

// land puts a lane's turn in whose stage has been run.
func (m *mailbox) land(t *turn) {
	for {
		head := m.landed.Load()
		t.next = head
		if m.landed.CompareAndSwap(head, t) {
			return
		}
	}
}

// run works off what the mailbox holds, unless somebody is at it already, who then will. inline is for the committer's
// goroutine: it only settles turns, and leaves everything else to the beat.
func (m *mailbox) run(what int32, inline bool) {
	if m.status.Or(running|what)&running != 0 {
		return
	}
	for {
		todo := m.status.And(running) &^ running
		if inline && (todo&forTurn != 0 || m.posts.Load() > 0 || m.landed.Load() != nil) {
			if todo&forTurn != 0 {
				m.beat.enlistTurn(m)
				m.beat.posted(1)
			}
			m.beat.enlistMail(m)
			todo = 0
		}
		m.process(todo, inline)
		if m.status.CompareAndSwap(running, 0) {
			return
		}
	}
}

// process invokes the actor for all there is. A panic in the actor is its supervisor's matter.
func (m *mailbox) process(todo int32, inline bool) {
	var message any
	defer func() {
		if r := recover(); r != nil {
			m.shard.dir.cfg.Log.Error("shard actor panicked", slog.Int("shard", int(m.shard.id)), slog.Any("reason", r),
				slog.String("stack", string(debug.Stack())))
			m.invoker.EscalateFailure(r, message)
		}
	}()
	for !inline && m.posts.Load() > 0 {
		if message = m.letter(); message == nil {
			break
		}
	}
	if m.suspended {
		return // Resume enlists for everything
	}
	if todo&forTurn != 0 || m.committed.Load() != nil || !inline && (m.shard.updates.due || m.landed.Load() != nil) {
		m.work = work{turn: todo&forTurn != 0, inline: inline}
		message = &m.work
		m.invoker.InvokeUserMessage(message)
	}
}

// letter invokes the actor for the next of protoactor's messages, system messages first; nil if there is none.
func (m *mailbox) letter() (message any) {
	m.letters.Lock()
	system := len(m.letters.system) > 0
	lane := &m.letters.user
	if system {
		lane = &m.letters.system
	} else if m.suspended || len(*lane) == 0 {
		m.letters.Unlock()
		return nil
	}
	message = (*lane)[0]
	(*lane)[0] = nil
	if *lane = (*lane)[1:]; len(*lane) == 0 {
		*lane = nil
	}
	m.letters.Unlock()
	m.posts.Add(-1)
	if !system {
		m.invoker.InvokeUserMessage(message)
		return message
	}
	switch message.(type) {
	case *actor.SuspendMailbox:
		m.suspended = true
	case *actor.ResumeMailbox:
		m.suspended = false
		m.beat.enlistTurn(m)
		m.beat.enlistMail(m)
		m.beat.wake()
	default:
		m.invoker.InvokeSystemMessage(message)
	}
	return message
}
