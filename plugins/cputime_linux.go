package plugins

import (
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// givesWay says that giveWay does something.
const givesWay = true

// giveWay makes the calling thread one that others interrupt: it gets a tenth of what another thread does that wants the same
// processor, in pieces of at most 0.1 ms (since Linux 6.12; before, pieces are as long as for everybody). Not less than a
// tenth, for a garbage collection waits until a guest has come to the end of its slice. A thread can't take that back. If the
// system refuses, it is a thread like all others.
func giveWay() {
	const nice, piece = 10, 100 * time.Microsecond
	_ = unix.SchedSetAttr(0, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Nice: nice, Runtime: uint64(piece)}, 0)
}

// threadTime returns the processor time of the calling thread and which that is; 0 if it can't be known. A goroutine may come
// back on another thread, whose time says nothing about the first one's.
func threadTime() (time.Duration, int) {
	const clockThreadCPU = 3 // CLOCK_THREAD_CPUTIME_ID
	var ts syscall.Timespec
	// It never waits, so that the scheduler needn't know; the pointer is to this frame.
	if _, _, errno := syscall.RawSyscall(syscall.SYS_CLOCK_GETTIME, clockThreadCPU, uintptr(unsafe.Pointer(&ts)), 0); errno != 0 {
		return 0, 0
	}
	id, _, _ := syscall.RawSyscall(syscall.SYS_GETTID, 0, 0, 0) // can't fail
	return time.Duration(ts.Nano()), int(id)
}
