package plugins

import (
	"syscall"
	"time"
	"unsafe"
)

// threadTime returns the processor time of the calling thread, 0 if that can't be known. A goroutine may come back on another
// thread, so differences need a check against the clock.
func threadTime() time.Duration {
	const clockThreadCPU = 3 // CLOCK_THREAD_CPUTIME_ID
	var ts syscall.Timespec
	// It never waits, so that the scheduler needn't know; the pointer is to this frame.
	if _, _, errno := syscall.RawSyscall(syscall.SYS_CLOCK_GETTIME, clockThreadCPU, uintptr(unsafe.Pointer(&ts)), 0); errno != 0 {
		return 0
	}
	return time.Duration(ts.Nano())
}
