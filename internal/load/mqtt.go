package load

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"time"
)

// mqttClient is the least MQTT 3.1.1 that a QoS 1 publisher with one packet in flight needs.
type mqttClient struct {
	conn net.Conn
	in   [4]byte
	buf  []byte
	id   uint16
	dial func() (net.Conn, error)
}

const ackTimeout = 30 * time.Second

func dialMQTT(addr, clientID, user, password string) (*mqttClient, error) {
	c := &mqttClient{dial: func() (net.Conn, error) { return dialSession(addr, clientID, user, password) }}
	conn, err := c.dial()
	if err != nil {
		return nil, err
	}
	c.conn = conn
	return c, nil
}

func dialSession(addr, clientID, user, password string) (net.Conn, error) {
	conn, err := net.DialTimeout("tcp", addr, 10*time.Second)
	if err != nil {
		return nil, err
	}
	if err := mqttConnect(conn, clientID, user, password); err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

// Idle connects an MQTT client that says no more.
func Idle(addr, clientID string) (net.Conn, error) { return dialSession(addr, clientID, "", "") }

func mqttConnect(conn net.Conn, clientID, user, password string) error {
	flags := byte(0x02) // clean session
	body := []byte{0, 4, 'M', 'Q', 'T', 'T', 4, 0, 0, 0}
	body = appendString(body, clientID)
	if user != "" {
		flags |= 0xC0
		body = appendString(body, user)
		body = appendString(body, password)
	}
	body[7] = flags
	pkt := append(appendLength([]byte{0x10}, len(body)), body...)
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second)) // an error shows at the write
	if _, err := conn.Write(pkt); err != nil {
		return err
	}
	var ack [4]byte
	if _, err := io.ReadFull(conn, ack[:]); err != nil {
		return fmt.Errorf("CONNACK: %w", err)
	}
	if ack[0] != 0x20 || ack[3] != 0 {
		return fmt.Errorf("CONNACK %x: connection refused", ack)
	}
	return conn.SetDeadline(time.Time{})
}

// Send publishes at QoS 1 and waits for the PUBACK.
func (c *mqttClient) Send(device string, payload []byte) error {
	c.id++
	if c.id == 0 {
		c.id = 1
	}
	c.buf = appendLength(append(c.buf[:0], 0x32), 2+len("d//t")+len(device)+2+len(payload))
	c.buf = binary.BigEndian.AppendUint16(c.buf, uint16(len("d//t")+len(device)))
	c.buf = append(append(append(c.buf, "d/"...), device...), "/t"...)
	c.buf = binary.BigEndian.AppendUint16(c.buf, c.id)
	c.buf = append(c.buf, payload...)
	return c.transmit()
}

// Repeat publishes the last message again with DUP set.
func (c *mqttClient) Repeat() error {
	c.buf[0] |= 0x08
	return c.transmit()
}

func (c *mqttClient) transmit() error {
	if err := c.conn.SetReadDeadline(time.Now().Add(ackTimeout)); err != nil {
		return err
	}
	if _, err := c.conn.Write(c.buf); err != nil {
		return err
	}
	if _, err := io.ReadFull(c.conn, c.in[:]); err != nil {
		return fmt.Errorf("PUBACK: %w", err)
	}
	if c.in[0] != 0x40 || binary.BigEndian.Uint16(c.in[2:]) != c.id {
		return fmt.Errorf("want PUBACK of %d, got %x", c.id, c.in)
	}
	return nil
}

// Reconnect dials again as the same client.
func (c *mqttClient) Reconnect() error {
	c.conn.Close()
	conn, err := c.dial()
	if err == nil {
		c.conn = conn
	}
	return err
}

// Close drops the connection.
func (c *mqttClient) Close() { c.conn.Close() }

func appendString(dst []byte, s string) []byte {
	return append(binary.BigEndian.AppendUint16(dst, uint16(len(s))), s...)
}

func appendLength(dst []byte, n int) []byte { return binary.AppendUvarint(dst, uint64(n)) }

// readPacket reads one MQTT packet.
func readPacket(r *bufio.Reader) (first byte, body []byte, err error) {
	if first, err = r.ReadByte(); err != nil {
		return 0, nil, err
	}
	n, err := binary.ReadUvarint(r)
	if err != nil || n > 1<<20 {
		return 0, nil, fmt.Errorf("packet length %d: %w", n, err)
	}
	body = make([]byte, n)
	_, err = io.ReadFull(r, body)
	return first, body, err
}
