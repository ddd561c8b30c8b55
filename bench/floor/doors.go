package floor

import (
	"bufio"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
)

// accept serves MQTT: one goroutine a connection, as Go servers do.
func (s *Server) accept() {
	for {
		conn, err := s.tcp.Accept()
		if err != nil {
			return
		}
		go func() {
			defer conn.Close()
			_ = s.serveMQTT(conn) // any error ends the connection, which is all that a floor does about it
		}()
	}
}

var errPacket = errors.New("not a packet that the floor knows")

func (s *Server) serveMQTT(conn net.Conn) error {
	in := bufio.NewReaderSize(conn, 1024)
	var body []byte
	for {
		first, err := in.ReadByte()
		if err != nil {
			return err
		}
		n, err := binary.ReadUvarint(in)
		if err != nil || n > 1<<16 {
			return errPacket
		}
		if uint64(cap(body)) < n {
			body = make([]byte, n)
		}
		body = body[:n]
		if _, err := io.ReadFull(in, body); err != nil {
			return err
		}
		switch first >> 4 {
		case 1: // CONNECT
			_, err = conn.Write([]byte{0x20, 2, 0, 0})
		case 3: // PUBLISH, QoS 1
			err = s.publish(conn, body)
		case 12: // PINGREQ
			_, err = conn.Write([]byte{0xD0, 0})
		default:
			return errPacket
		}
		if err != nil {
			return err
		}
	}
}

func (s *Server) publish(conn net.Conn, body []byte) error {
	if len(body) < 4 {
		return errPacket
	}
	n := int(binary.BigEndian.Uint16(body))
	if len(body) < n+4 {
		return errPacket
	}
	device, ok := deviceOf(string(body[2 : 2+n]))
	if !ok {
		return errPacket
	}
	key, value, err := parse(device, body[n+4:])
	if err != nil {
		return err
	}
	ack := [4]byte{0x40, 2, body[n+2], body[n+3]}
	s.queue <- reading{key, value, func() { _, _ = conn.Write(ack[:]) }} // a dead connection needs no ack
	return nil
}

func deviceOf(topic string) (string, bool) {
	rest, ok := strings.CutPrefix(topic, "d/")
	if !ok {
		return "", false
	}
	return strings.CutSuffix(rest, "/t")
}

// serveCoAP reads datagrams on one goroutine: parsing is all it does.
func (s *Server) serveCoAP() {
	buf := make([]byte, 2048)
	for {
		n, from, err := s.udp.ReadFromUDPAddrPort(buf)
		if err != nil {
			return
		}
		s.datagram(buf[:n], from)
	}
}

func (s *Server) datagram(b []byte, from netip.AddrPort) {
	if len(b) < 4 || b[0]>>4 != 4 || b[1] != 2 || len(b) < 4+int(b[0]&15) { // CON POST
		return
	}
	ack := append(append([]byte{0x60 | b[0]&15, 0x44}, b[2:4]...), b[4:4+int(b[0]&15)]...)
	device, payload := uriAndPayload(b[4+int(b[0]&15):])
	key, value, err := parse(device, payload)
	if err != nil {
		return
	}
	s.queue <- reading{key, value, func() { _, _ = s.udp.WriteToUDPAddrPort(ack, from) }} // a lost ack is CoAP's to repeat
}

// uriAndPayload walks the options for the second Uri-Path segment.
func uriAndPayload(b []byte) (device string, payload []byte) {
	number, segments := 0, 0
	for len(b) > 0 {
		if b[0] == 0xFF {
			return device, b[1:]
		}
		delta, length := int(b[0]>>4), int(b[0]&15)
		b = b[1:]
		if length == 13 && len(b) > 0 {
			length, b = int(b[0])+13, b[1:]
		}
		if delta > 12 || length > len(b) {
			return "", nil
		}
		if number += delta; number == 11 {
			if segments++; segments == 2 {
				device = string(b[:length])
			}
		}
		b = b[length:]
	}
	return device, nil
}
