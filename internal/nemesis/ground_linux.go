package nemesis

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Inside runs this program again with the same arguments and one more in namespaces of its own, and waits for its end. It
// returns the exit code, or an error if such namespaces can't be had; then nothing was run.
func Inside(more string) (int, error) {
	if os.Geteuid() != 0 {
		return 0, errors.New("not root")
	}
	cmd := exec.Command("/proc/self/exe", append(os.Args[1:], more)...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL,
		Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS | syscall.CLONE_NEWPID}
	runtime.LockOSThread() // Pdeathsig is about the thread that started it
	defer runtime.UnlockOSThread()
	ends := make(chan os.Signal, 4)
	signal.Notify(ends, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer signal.Stop(ends)
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	done := make(chan struct{})
	go func() {
		for {
			select {
			case s := <-ends:
				_ = cmd.Process.Signal(s) // it may have ended
			case <-done:
				return
			}
		}
	}()
	err := cmd.Wait()
	close(done)
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return 0, err
	}
	return cmd.ProcessState.ExitCode(), nil
}

// settle makes the namespaces habitable: mounts that nobody else sees, a /proc of the own processes, and a loopback.
func settle() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("private mounts: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	return linkUp("lo", netip.Addr{})
}

// network is the switched network of a bench: port 0 is the bench itself, port i is node i's.
type network struct {
	*fabric
	rooms []*room // of node i+1
}

// room is a thread that lives in a network namespace of its own and starts processes there.
type room struct {
	work chan func()
	done chan struct{}
}

func (r *room) do(f func() error) error {
	result := make(chan error, 1)
	select {
	case r.work <- func() { result <- f() }:
		return <-result
	case <-r.done:
		return errors.New("the namespace is closed")
	}
}

// address is of node i, or of the bench for 0.
func address(i int) netip.Addr {
	if i == 0 {
		i = 254
	}
	return netip.AddrFrom4([4]byte{10, 86, 0, byte(i)})
}

// newNetwork makes a namespace for each node and joins them.
func newNetwork(seed uint64, nodes int) (*network, error) {
	n := &network{}
	dev, err := openTun("bench0", address(0))
	if err != nil {
		return nil, err
	}
	ports := []fabricPort{{address(0), dev}}
	for i := 1; i <= nodes; i++ {
		r := &room{work: make(chan func()), done: make(chan struct{})}
		port := fabricPort{addr: address(i)}
		ready := make(chan error)
		go func() { // ends with n.close; waited for there
			defer close(r.done)
			runtime.LockOSThread() // for ever: the thread ends with the goroutine, and the namespace with it
			ready <- func() (err error) {
				if err = unix.Unshare(unix.CLONE_NEWNET); err != nil {
					return err
				}
				if err = linkUp("lo", netip.Addr{}); err == nil {
					port.dev, err = openTun("node0", port.addr)
				}
				return err
			}()
			for f := range r.work {
				f()
			}
		}()
		if err := <-ready; err != nil {
			return nil, fmt.Errorf("namespace of node %d: %w", i, err)
		}
		n.rooms, ports = append(n.rooms, r), append(ports, port)
	}
	n.fabric = newFabric(seed, ports)
	return n, nil
}

// start starts the command in node i's namespace. It dies with this process.
func (n *network) start(i int, cmd *exec.Cmd) error {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	return n.rooms[i-1].do(cmd.Start)
}

func (n *network) close() {
	for _, r := range n.rooms {
		close(r.work)
		<-r.done
	}
	n.fabric.close()
}

func openTun(name string, addr netip.Addr) (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("/dev/net/tun: %w", err)
	}
	ifr, err := unix.NewIfreq(name)
	if err == nil {
		ifr.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr)
	}
	if err == nil {
		err = linkUp(name, addr)
	}
	if err != nil {
		_ = unix.Close(fd) // the first error tells
		return nil, fmt.Errorf("tun device %s: %w", name, err)
	}
	return os.NewFile(uintptr(fd), name), nil // into the poller only now: before TUNSETIFF epoll would say EPOLLERR for ever
}

// linkUp gives an interface its address in a /24, if there is one, and takes it up.
func linkUp(name string, addr netip.Addr) error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	set := func(request uint, fill func(*unix.Ifreq) error) error {
		ifr, err := unix.NewIfreq(name)
		if err == nil {
			err = fill(ifr)
		}
		if err == nil {
			err = unix.IoctlIfreq(s, request, ifr)
		}
		return err
	}
	if addr.IsValid() {
		if err := set(unix.SIOCSIFADDR, func(r *unix.Ifreq) error { return r.SetInet4Addr(addr.AsSlice()) }); err != nil {
			return fmt.Errorf("address of %s: %w", name, err)
		}
		if err := set(unix.SIOCSIFNETMASK, func(r *unix.Ifreq) error { return r.SetInet4Addr([]byte{255, 255, 255, 0}) }); err != nil {
			return fmt.Errorf("mask of %s: %w", name, err)
		}
	}
	return set(unix.SIOCSIFFLAGS, func(r *unix.Ifreq) error { r.SetUint16(unix.IFF_UP | unix.IFF_RUNNING); return nil })
}

// Requests of ioctl that x/sys does not name.
const (
	fiFreeze = 0xC0045877
	fiThaw   = 0xC0045878
)

// disk is a small ext4 of a node's own, on a loop device that goes with its mount.
type disk struct {
	dir   string
	image string
}

func newDisk(ctx context.Context, dir, image string, bytes int64) (*disk, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	f, err := os.Create(image)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(f.Truncate(bytes), f.Close()); err != nil {
		return nil, err
	}
	for _, args := range [][]string{{"mkfs.ext4", "-q", "-F", "-m", "0", image}, {"mount", "-o", "loop", image, dir}} {
		if out, err := exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput(); err != nil {
			return nil, fmt.Errorf("%s: %w %s", args[0], err, out)
		}
	}
	return &disk{dir: dir, image: image}, nil
}

func (d *disk) close() error {
	_ = d.freeze(fiThaw) // it is usually not frozen
	return unix.Unmount(d.dir, unix.MNT_DETACH)
}

// fill leaves no byte free; empty gives them back.
func (d *disk) fill() error {
	var st unix.Statfs_t
	if err := unix.Statfs(d.dir, &st); err != nil {
		return err
	}
	f, err := os.Create(filepath.Join(d.dir, "fill"))
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Fallocate(int(f.Fd()), 0, 0, int64(st.Bavail)*st.Bsize*99/100); err != nil {
		return err
	}
	if _, err := f.Seek(0, 2); err != nil {
		return err
	}
	for block := make([]byte, 4096); ; {
		if _, err := f.Write(block); err != nil {
			if errors.Is(err, unix.ENOSPC) {
				return nil
			}
			return err
		}
	}
}

func (d *disk) empty() error { return os.Remove(filepath.Join(d.dir, "fill")) }

// freeze stops (fiFreeze) or goes on with (fiThaw) all writes and fsyncs of the file system.
func (d *disk) freeze(request uint) error {
	f, err := os.Open(d.dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.IoctlSetInt(int(f.Fd()), request, 0)
}

// stutter lets the disk stand still for the one span, go for the other, until ctx ends: a disk with slow fsyncs.
func (d *disk) stutter(ctx context.Context, still, going time.Duration) error {
	for ctx.Err() == nil {
		if err := d.freeze(fiFreeze); err != nil {
			return err
		}
		_ = pause(ctx, still) // whatever happens, it is thawed
		if err := d.freeze(fiThaw); err != nil {
			return err
		}
		_ = pause(ctx, going) // the loop looks
	}
	return nil
}
