//go:build !linux

package coap

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/dunlin-iot/dunlin/protocols/coap/endpoint"
)

// socket is one UDP socket, read and written a datagram at a time.
type socket struct {
	conn *net.UDPConn
	buf  []byte
	n    int
	from netip.AddrPort
	v6   bool
}

// listen opens one socket: only Linux shares a port fairly.
func listen(addr string, _, datagramBytes int) ([]*socket, error) {
	want, err := net.ResolveUDPAddr("udp", addr)
	if err != nil {
		return nil, err
	}
	conn, err := net.ListenUDP("udp", want)
	if err != nil {
		return nil, err
	}
	_ = conn.SetReadBuffer(4 << 20)
	v6 := conn.LocalAddr().(*net.UDPAddr).IP.To4() == nil
	return []*socket{{conn: conn, v6: v6, buf: make([]byte, datagramBytes+1)}}, nil
}

func (s *socket) localAddr() net.Addr { return s.conn.LocalAddr() }

func (s *socket) close() { _ = s.conn.Close() }

func (s *socket) interrupt() { _ = s.conn.SetReadDeadline(time.Unix(1, 0)) }

func (s *socket) deadline(t time.Time) { _ = s.conn.SetReadDeadline(t) }

// serve gives what it receives to rd's turns until one of them is the last.
func (s *socket) serve(rd *reader) error {
	for {
		n := 0
		if rd.sleep() {
			var err error
			s.n, s.from, err = s.conn.ReadFromUDPAddrPort(s.buf)
			switch {
			case err == nil:
				rd.woke()
				n = 1
			case errors.Is(err, os.ErrDeadlineExceeded):
				rd.interrupted()
			default:
				return err
			}
		}
		if rd.turn(n) {
			return nil
		}
	}
}

// datagram returns the datagram; one that filled the whole buffer counts as longer than what may be read.
func (s *socket) datagram(_ int, from *endpoint.Addr) (b []byte, size int) {
	*from = endpoint.Addr{IP: s.from.Addr().As16(), Port: s.from.Port()}
	if zone, err := net.InterfaceByName(s.from.Addr().Zone()); err == nil {
		from.Zone = uint32(zone.Index)
	}
	n := min(s.n, len(s.buf)-1)
	return s.buf[:n:n], s.n
}

func (s *socket) send(all []endpoint.Datagram) (lost int) {
	for i := range all {
		ip := netip.AddrFrom16(all[i].To.IP)
		if !s.v6 {
			ip = ip.Unmap()
		}
		if z, err := net.InterfaceByIndex(int(all[i].To.Zone)); err == nil && all[i].To.Zone != 0 {
			ip = ip.WithZone(z.Name)
		}
		if _, err := s.conn.WriteToUDPAddrPort(all[i].B, netip.AddrPortFrom(ip, all[i].To.Port)); err != nil {
			lost++
		}
	}
	return lost
}
