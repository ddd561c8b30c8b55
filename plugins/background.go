package plugins

import (
	"runtime"
	"sync"
)

// background runs calls of domains whose calls are dear on threads that give way (see giveWay). A long call has a processor to itself; when
// something else of the node or of the machine wakes up and finds both taken, the operating system lets it wait for its
// share of time, some milliseconds, unless it can tell which of them may be interrupted.
//
// A thread serves one call from its beginning to its end, also while that waits for its next slice: there are as many as calls
// that have begun, and those of them stay that may run at once.
type background struct {
	most int // idle threads
	all  sync.WaitGroup
	mu   struct {
		sync.Mutex
		idle []*backThread
	}
}

// backThread is a goroutine on a thread of its own.
type backThread struct {
	jobs   chan func() // one at a time
	done   chan struct{}
	reason any // of a panic
}

// do runs f and returns when it has ended; if it panics, so does do.
func (b *background) do(f func()) {
	t := b.take()
	t.jobs <- f
	<-t.done
	reason := t.reason
	t.reason = nil
	b.give(t)
	if reason != nil {
		panic(reason)
	}
}

func (b *background) take() *backThread {
	b.mu.Lock()
	if n := len(b.mu.idle); n > 0 {
		t := b.mu.idle[n-1]
		b.mu.idle = b.mu.idle[:n-1]
		b.mu.Unlock()
		return t
	}
	b.mu.Unlock()
	t := &backThread{jobs: make(chan func()), done: make(chan struct{})}
	b.all.Go(t.serve)
	return t
}

func (b *background) give(t *backThread) {
	b.mu.Lock()
	keep := len(b.mu.idle) < b.most
	if keep {
		b.mu.idle = append(b.mu.idle, t)
	}
	b.mu.Unlock()
	if !keep {
		close(t.jobs)
	}
}

// serve runs what comes; the thread ends with it, since nobody can give it back what it gave up.
func (t *backThread) serve() {
	runtime.LockOSThread()
	giveWay()
	for f := range t.jobs {
		t.run(f)
		t.done <- struct{}{}
	}
}

func (t *backThread) run(f func()) {
	defer func() { t.reason = recover() }()
	f()
}

// close ends the threads; no call may be running.
func (b *background) close() {
	b.mu.Lock()
	idle := b.mu.idle
	b.mu.idle, b.most = nil, 0
	b.mu.Unlock()
	for _, t := range idle {
		close(t.jobs)
	}
	b.all.Wait()
}
