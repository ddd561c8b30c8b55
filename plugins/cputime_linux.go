package plugins

import (
	"syscall"
	"time"
	"unsafe"
)

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
