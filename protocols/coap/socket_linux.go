package coap

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/dunlin-iot/dunlin/protocols/coap/endpoint"
)

const (
	batchMax        = 32 // datagrams per recvmmsg
	socketBytesWant = 4 << 20
	controlBytes    = 48 // one in6_pktinfo with its header takes 40
	sendMax         = 8  // per sendmmsg, about 30 µs
)

// socket is one UDP socket with the buffers for recvmmsg and sendmmsg. golang.org/x/net has these calls too, but allocates
// an address per datagram. Only its reader uses it, but for interrupt.
type socket struct {
	conn     *net.UDPConn
	raw      syscall.RawConn
	v6       bool // AF_INET6; IPv4 peers come as mapped addresses
	wildcard bool // bound to all addresses: answers must go out from the address that was asked

	in, out mmsg
	rd      *reader
	got     int   // datagrams of the last receive
	err     error // that ended it
	recvFn  func(fd uintptr) bool
	sendFn  func(fd uintptr) bool
	errno   syscall.Errno // of the last sendmmsg
	want    int           // messages to send
	sent    int
	bufSize int
}

// mmsghdr is the kernel's struct mmsghdr.
type mmsghdr struct {
	hdr unix.Msghdr
	n   uint32
}

// mmsg is a batch of messages with the memory that their headers point to.
type mmsg struct {
	hdrs  [batchMax]mmsghdr
	iovs  [batchMax]unix.Iovec
	names [batchMax]unix.RawSockaddrInet6 // large enough for IPv4's
	ctrl  [batchMax][controlBytes]byte
	bufs  []byte // of receive only
}

// listen opens n sockets on one address. The first is bound without SO_REUSEPORT, so that an address in use by anyone,
// also by another node of the same user, is an error rather than shared; then the others join it.
func listen(addr string, n, datagramBytes int) (_ []*socket, err error) {
	want, err := net.ResolveUDPAddr("udp", addr)
	if err != nil {
		return nil, err
	}
	var all []*socket
	defer func() {
		if err != nil {
			for _, s := range all {
				s.close()
			}
		}
	}()
	ap := want.AddrPort()
	if !ap.Addr().IsValid() {
		ap = netip.AddrPortFrom(netip.IPv6Unspecified(), ap.Port())
	}
	for i := range n {
		s, err := openSocket(ap, i > 0, datagramBytes)
		if i == 0 && want.IP == nil && err != nil && !errors.Is(err, unix.EADDRINUSE) {
			ap = netip.AddrPortFrom(netip.IPv4Unspecified(), ap.Port()) // a kernel without IPv6
			s, err = openSocket(ap, false, datagramBytes)
		}
		if err != nil {
			return all, err
		}
		all = append(all, s)
		ap = netip.AddrPortFrom(ap.Addr(), uint16(s.localAddr().(*net.UDPAddr).Port))
	}
	return all, nil
}

func openSocket(ap netip.AddrPort, join bool, datagramBytes int) (*socket, error) {
	family := unix.AF_INET6
	ip := ap.Addr().Unmap()
	if ip.Is4() {
		family = unix.AF_INET
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	f := os.NewFile(uintptr(fd), "coap")
	defer f.Close() // the net package makes its own copy
	if err := bindSocket(fd, ip, ap.Port(), join); err != nil {
		return nil, err
	}
	pc, err := net.FilePacketConn(f)
	if err != nil {
		return nil, err
	}
	s := &socket{conn: pc.(*net.UDPConn), v6: family == unix.AF_INET6, wildcard: ip.IsUnspecified(), bufSize: datagramBytes}
	if s.raw, err = s.conn.SyscallConn(); err != nil {
		pc.Close()
		return nil, err
	}
	s.in.bufs = make([]byte, batchMax*datagramBytes)
	s.recvFn, s.sendFn = s.readable, s.sendmmsg
	for i := range batchMax {
		s.prepare(i)
	}
	return s, nil
}

func bindSocket(fd int, ip netip.Addr, port uint16, join bool) error {
	if join {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1); err != nil {
			return os.NewSyscallError("setsockopt SO_REUSEPORT", err)
		}
	}
	// Room for a burst while the reader works on the batch before it. FORCE passes the system's limit and needs a privilege.
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, socketBytesWant) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, socketBytesWant)
	}
	var sa unix.Sockaddr
	if ip.Is4() {
		sa = &unix.SockaddrInet4{Port: int(port), Addr: ip.As4()}
		if ip.IsUnspecified() {
			if err := unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_PKTINFO, 1); err != nil {
				return os.NewSyscallError("setsockopt IP_PKTINFO", err)
			}
		}
	} else {
		zone, _ := net.InterfaceByName(ip.Zone())
		six := &unix.SockaddrInet6{Port: int(port), Addr: ip.As16()}
		if zone != nil {
			six.ZoneId = uint32(zone.Index)
		}
		sa = six
		if ip.IsUnspecified() {
			_ = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 0)
			if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1); err != nil {
				return os.NewSyscallError("setsockopt IPV6_RECVPKTINFO", err)
			}
		}
	}
	if err := unix.Bind(fd, sa); err != nil {
		return os.NewSyscallError("bind", err)
	}
	return os.NewSyscallError("setsockopt SO_REUSEPORT", unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1))
}

func (s *socket) localAddr() net.Addr { return s.conn.LocalAddr() }

func (s *socket) close() { _ = s.conn.Close() }

// interrupt makes a receive that waits, or the next one, return os.ErrDeadlineExceeded. Any goroutine may call it.
func (s *socket) interrupt() { _ = s.conn.SetReadDeadline(time.Unix(1, 0)) }

// deadline sets when receive returns os.ErrDeadlineExceeded; zero: never.
func (s *socket) deadline(t time.Time) { _ = s.conn.SetReadDeadline(t) }

// serve gives what it receives to rd's turns until one of them is the last. All turns but those after an interruption run
// inside one RawConn.Read: the poller reports each arrival once (edge-triggered), so a wait may follow a short batch
// without another recvmmsg that finds nothing.
func (s *socket) serve(rd *reader) error {
	s.rd = rd
	for {
		err := s.raw.Read(s.recvFn)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			rd.interrupted()
			if rd.turn(0) {
				return nil
			}
			rd.arm() // or the next Read would end at once, and find no datagram ever again
		case err != nil:
			return err
		default:
			return s.err // readable said that this was all
		}
	}
}

// readable is called by the poller when datagrams may have come. It returns false to wait for more.
func (s *socket) readable(fd uintptr) bool {
	rd := s.rd
	rd.woke()
	for {
		if s.err = s.receive(fd); s.err != nil {
			return true
		}
		if (s.got > 0 || rd.again) && rd.turn(s.got) {
			return true
		}
		if s.got < batchMax && rd.sleep() {
			return false
		}
	}
}

// receive reads a batch of what is there into s.in; s.got tells how many.
func (s *socket) receive(fd uintptr) error {
	for i := range s.got { // the kernel has written to those that it used; the others are as they were
		s.prepare(i)
	}
	s.got = 0
	// MSG_TRUNC makes the length that of the datagram, also where the buffer was shorter. The call never waits and takes a
	// few microseconds, so the scheduler need not be told of it (a waking sysmon would cost as much as the call).
	for {
		n, _, errno := unix.RawSyscall6(unix.SYS_RECVMMSG, fd, uintptr(unsafe.Pointer(&s.in.hdrs[0])), batchMax,
			unix.MSG_DONTWAIT|unix.MSG_TRUNC, 0, 0)
		switch errno {
		case 0:
			s.got = int(n)
		case unix.EINTR:
			continue // the poller won't tell of these datagrams again
		case unix.EBADF, unix.ENOTSOCK, unix.EINVAL, unix.EFAULT:
			return os.NewSyscallError("recvmmsg", errno)
		}
		return nil // nothing there, or a passing trouble (ICMP errors, no memory) of which UDP need not know
	}
}

func (s *socket) prepare(i int) {
	m := &s.in
	buf := m.bufs[i*s.bufSize : (i+1)*s.bufSize]
	m.iovs[i].Base = &buf[0]
	m.iovs[i].SetLen(len(buf))
	h := &m.hdrs[i].hdr
	h.Name, h.Namelen = (*byte)(unsafe.Pointer(&m.names[i])), uint32(unsafe.Sizeof(m.names[i]))
	h.Iov = &m.iovs[i]
	h.SetIovlen(1)
	h.Flags = 0
	if s.wildcard {
		h.Control = &m.ctrl[i][0]
		h.SetControllen(controlBytes)
	}
}

// datagram returns the i-th datagram received, its sender, and how long it was on the wire.
func (s *socket) datagram(i int, from *endpoint.Addr) (b []byte, size int) {
	m := &s.in
	*from = endpoint.Addr{}
	name := &m.names[i]
	if s.v6 {
		from.IP, from.Zone = name.Addr, name.Scope_id
		from.Port = swap16(name.Port)
	} else {
		four := (*unix.RawSockaddrInet4)(unsafe.Pointer(name))
		mapped(&from.IP, four.Addr)
		from.Port = swap16(four.Port)
	}
	if s.wildcard {
		s.localOf(i, &from.Local)
	}
	size = int(m.hdrs[i].n)
	at := i * s.bufSize
	n := min(size, s.bufSize)
	return m.bufs[at : at+n : at+n], size
}

func mapped(dst *[16]byte, four [4]byte) {
	dst[10], dst[11] = 0xff, 0xff
	copy(dst[12:], four[:])
}

// swap16 converts between network and host order.
func swap16(v uint16) uint16 {
	var b [2]byte
	binary.NativeEndian.PutUint16(b[:], v)
	return binary.BigEndian.Uint16(b[:])
}

// localOf reads the address that datagram i was sent to from its control message.
func (s *socket) localOf(i int, local *[16]byte) {
	h := &s.in.hdrs[i].hdr
	if h.Controllen < unix.SizeofCmsghdr {
		return
	}
	ctrl := s.in.ctrl[i][:]
	c := (*unix.Cmsghdr)(unsafe.Pointer(&ctrl[0]))
	body := ctrl[unix.CmsgLen(0):]
	switch {
	case c.Level == unix.IPPROTO_IPV6 && c.Type == unix.IPV6_PKTINFO:
		copy(local[:], body[:16])
	case c.Level == unix.IPPROTO_IP && c.Type == unix.IP_PKTINFO:
		// in_pktinfo: interface, local address of the route, address in the header. An answer goes out from the former.
		mapped(local, [4]byte(body[4:8]))
	}
}

// send writes the datagrams without waiting and returns how many were not: to a peer that can't be reached, or because
// the send buffer was full. UDP may lose datagrams anywhere, and its peers know; a reader that waited would stop them all.
func (s *socket) send(all []endpoint.Datagram) (lost int) {
	for len(all) > 0 {
		n := min(len(all), sendMax)
		for i := range n {
			s.address(i, &all[i])
		}
		s.want, s.sent, s.errno = n, 0, 0
		for s.sent < s.want {
			if s.raw.Write(s.sendFn) != nil {
				return lost + len(all) - s.sent // closed
			}
			switch s.errno {
			case 0, unix.EINTR:
			case unix.EAGAIN:
				return lost + len(all) - s.sent
			default: // of the first one not sent: skip it
				lost++
				s.sent++
			}
		}
		all = all[n:]
	}
	return lost
}

func (s *socket) address(i int, d *endpoint.Datagram) {
	m := &s.out
	m.iovs[i].Base = &d.B[0]
	m.iovs[i].SetLen(len(d.B))
	h := &m.hdrs[i].hdr
	h.Iov = &m.iovs[i]
	h.SetIovlen(1)
	h.Name = (*byte)(unsafe.Pointer(&m.names[i]))
	if s.v6 {
		m.names[i] = unix.RawSockaddrInet6{Family: unix.AF_INET6, Port: swap16(d.To.Port), Addr: d.To.IP, Scope_id: d.To.Zone}
		h.Namelen = unix.SizeofSockaddrInet6
	} else {
		*(*unix.RawSockaddrInet4)(unsafe.Pointer(&m.names[i])) = unix.RawSockaddrInet4{Family: unix.AF_INET,
			Port: swap16(d.To.Port), Addr: [4]byte(d.To.IP[12:])}
		h.Namelen = unix.SizeofSockaddrInet4
	}
	if s.wildcard && d.To.Local != [16]byte{} {
		s.control(i, &d.To.Local)
	} else {
		h.Control = nil
		h.SetControllen(0)
	}
}

// control names the address that datagram i goes out from.
func (s *socket) control(i int, local *[16]byte) {
	m := &s.out
	ctrl := &m.ctrl[i]
	clear(ctrl[:])
	c := (*unix.Cmsghdr)(unsafe.Pointer(&ctrl[0]))
	body := ctrl[unix.CmsgLen(0):]
	size := 0
	if s.v6 {
		c.Level, c.Type, size = unix.IPPROTO_IPV6, unix.IPV6_PKTINFO, unix.SizeofInet6Pktinfo
		copy(body, local[:])
	} else {
		c.Level, c.Type, size = unix.IPPROTO_IP, unix.IP_PKTINFO, unix.SizeofInet4Pktinfo
		copy(body[4:], local[12:])
	}
	c.SetLen(unix.CmsgLen(size))
	h := &m.hdrs[i].hdr
	h.Control = &ctrl[0]
	h.SetControllen(unix.CmsgSpace(size))
}

// sendmmsg sends without telling the scheduler, as receive does: a call that it knows of and that takes longer than 20 µs
// costs this thread its processor, and getting it back took 2 µs of CPU per answer in bursts of 32.
func (s *socket) sendmmsg(fd uintptr) bool {
	n, _, errno := unix.RawSyscall6(unix.SYS_SENDMMSG, fd, uintptr(unsafe.Pointer(&s.out.hdrs[s.sent])), uintptr(s.want-s.sent),
		unix.MSG_DONTWAIT, 0, 0)
	if s.errno = errno; errno == 0 {
		s.sent += int(n)
	}
	return true
}
