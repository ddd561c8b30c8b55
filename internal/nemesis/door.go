package nemesis

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

// How long a device waits for an answer before it tries the next node. Short, so that what is measured is the cluster's
// pause and not the device's patience.
const (
	answerMax  = 700 * time.Millisecond
	connectMax = 900 * time.Millisecond
	hopWait    = 40 * time.Millisecond
)

var (
	errRefused = errors.New("refused for now")
	errNoReply = errors.New("no answer")
)

// door is a device's way in. attempt sends the message to a node and returns once it is acked there; again says that it may
// have been sent before, to whichever node.
type door interface {
	attempt(node *proc, payload []byte, again bool) error
	close()
}

// coapClient posts in CONs. It sends to every node from one port, so that a message that is repeated elsewhere is the same.
type coapClient struct {
	conn   *net.UDPConn
	device string
	mid    uint16
	token  uint32
	out    []byte
	in     [1500]byte
}

func newCoAP(host, device string, seed uint16) (*coapClient, error) {
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.ParseIP(host)})
	if err != nil {
		return nil, err
	}
	return &coapClient{conn: conn, device: device, mid: seed, token: uint32(seed) << 16}, nil
}

func (c *coapClient) attempt(node *proc, payload []byte, again bool) error {
	if !again {
		c.mid++
		c.token++
		c.out = append(c.out[:0], 0x44, 0x02, byte(c.mid>>8), byte(c.mid)) // CON, token of 4, POST
		c.out = binary.BigEndian.AppendUint32(c.out, c.token)
		c.out = append(append(append(c.out, 0xB1, 'd', byte(len(c.device))), c.device...), 0x01, 't', 0x11, 110) // Uri-Path ×3, SenML JSON
		c.out = append(append(c.out, 0xFF), payload...)
	}
	to := &net.UDPAddr{IP: net.ParseIP(node.host), Port: portCoAP}
	deadline := time.Now().Add(answerMax)
	if err := c.conn.SetReadDeadline(deadline); err != nil {
		return err
	}
	if _, err := c.conn.WriteToUDP(c.out, to); err != nil {
		return err
	}
	for {
		n, from, err := c.conn.ReadFromUDP(c.in[:])
		if err != nil {
			return fmt.Errorf("%w: %w", errNoReply, err)
		}
		if n < 4 || c.in[0]>>6 != 1 {
			continue
		}
		typ, tkl, code := c.in[0]>>4&3, int(c.in[0]&15), c.in[1]
		if typ == 2 && code == 0 {
			continue // an empty ACK: the response comes apart
		}
		if typ == 0 { // a response in a CON is to be acked whatever it answers
			if _, err := c.conn.WriteToUDP([]byte{0x60, 0, c.in[2], c.in[3]}, from); err != nil {
				return err
			}
		}
		if tkl != 4 || n < 8 || binary.BigEndian.Uint32(c.in[4:]) != c.token {
			continue // of an earlier message
		}
		switch {
		case code>>5 == 2:
			return nil // from whichever node it was sent to: it is the same message
		case !from.IP.Equal(to.IP):
			continue // an earlier node refuses late
		case code>>5 == 5:
			return errRefused
		}
		return fmt.Errorf("answer %d.%02d %q", code>>5, code&31, c.in[8:n])
	}
}

func (c *coapClient) close() { c.conn.Close() }

// mqttClient publishes with QoS 1, one packet in flight.
type mqttClient struct {
	conn   net.Conn
	at     *proc
	device string
	id     uint16
	out    []byte
}

func (c *mqttClient) attempt(node *proc, payload []byte, again bool) error {
	if c.conn != nil && c.at != node {
		c.close()
	}
	if !again {
		c.id = max(c.id+1, 1)
		topic := "d/" + c.device + "/t"
		c.out = appendLength(append(c.out[:0], 0x32), 2+len(topic)+2+len(payload))
		c.out = binary.BigEndian.AppendUint16(appendText(c.out, topic), c.id)
		c.out = append(c.out, payload...)
	} else {
		c.out[0] |= 0x08 // DUP
	}
	if c.conn == nil {
		conn, _, err := mqttConnect(node, c.device, true)
		if err != nil {
			return err
		}
		c.conn, c.at = conn, node
	}
	err := func() error {
		if err := c.conn.SetDeadline(time.Now().Add(answerMax)); err != nil {
			return err
		}
		if _, err := c.conn.Write(c.out); err != nil {
			return err
		}
		var in [4]byte
		if _, err := io.ReadFull(c.conn, in[:]); err != nil {
			return err
		}
		if in[0] != 0x40 || binary.BigEndian.Uint16(in[2:]) != c.id {
			return fmt.Errorf("want PUBACK of %d, got %x", c.id, in)
		}
		return nil
	}()
	if err != nil {
		c.close()
		return fmt.Errorf("%w: %w", errNoReply, err)
	}
	return nil
}

func (c *mqttClient) close() {
	if c.conn != nil {
		c.conn.Close()
		c.conn = nil
	}
}

// mqttConnect opens a session; kept says that the node had one.
func mqttConnect(node *proc, id string, clean bool) (conn net.Conn, kept bool, err error) {
	conn, err = net.DialTimeout("tcp", node.addr(portMQTT), connectMax)
	if err != nil {
		return nil, false, fmt.Errorf("%w: %w", errNoReply, err)
	}
	flags := byte(0)
	if clean {
		flags = 0x02
	}
	body := appendText([]byte{0, 4, 'M', 'Q', 'T', 'T', 4, flags, 0, 60}, id)
	var ack [4]byte
	if err = conn.SetDeadline(time.Now().Add(connectMax)); err == nil {
		if _, err = conn.Write(append(appendLength([]byte{0x10}, len(body)), body...)); err == nil {
			_, err = io.ReadFull(conn, ack[:])
		}
	}
	switch {
	case err != nil:
		err = fmt.Errorf("%w: CONNACK: %w", errNoReply, err)
	case ack[0] == 0x20 && ack[3] == 3:
		err = fmt.Errorf("%w: CONNACK 3", errRefused)
	case ack[0] != 0x20 || ack[3] != 0:
		err = fmt.Errorf("CONNACK %x", ack)
	default:
		return conn, ack[2]&1 != 0, conn.SetDeadline(time.Time{})
	}
	conn.Close()
	return nil, false, err
}

func appendText(dst []byte, s string) []byte {
	return append(binary.BigEndian.AppendUint16(dst, uint16(len(s))), s...)
}

func appendLength(dst []byte, n int) []byte { return binary.AppendUvarint(dst, uint64(n)) }
