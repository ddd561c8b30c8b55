package load

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"time"
)

// coapClient is the least CoAP that a CON client with one message in flight needs: POST, retransmission, an empty ACK
// followed by a separate response (RFC 7252 §4.2, §5.2).
type coapClient struct {
	conn  *net.UDPConn
	mid   uint16
	token uint32
	key   string // "k=secret", the credential; "" without
	out   []byte
	in    [1500]byte
}

func dialCoAP(addr string, mid uint16, secret string) (*coapClient, error) {
	ua, err := net.ResolveUDPAddr("udp", addr)
	if err != nil {
		return nil, err
	}
	conn, err := net.DialUDP("udp", nil, ua)
	if err != nil {
		return nil, err
	}
	c := &coapClient{conn: conn, mid: mid, token: uint32(mid) << 16}
	if secret != "" {
		c.key = "k=" + secret
	}
	return c, nil
}

// Send posts in a CON and waits for the response.
func (c *coapClient) Send(device string, payload []byte) error {
	c.mid++
	c.token++
	c.out = append(c.out[:0], 0x44, 0x02, byte(c.mid>>8), byte(c.mid)) // CON, token of 4, POST
	c.out = binary.BigEndian.AppendUint32(c.out, c.token)
	c.out = appendOption(c.out, 11, "d")
	c.out = appendOption(c.out, 0, device)
	c.out = appendOption(c.out, 0, "t")
	c.out = append(c.out, 0x11, 110) // Content-Format 110: 12−11 = 1
	if c.key != "" {
		c.out = appendOption(c.out, 15-12, c.key) // Uri-Query
	}
	c.out = append(append(c.out, 0xFF), payload...)
	return c.transmit()
}

// Repeat sends the last message again, message id and token the same.
func (c *coapClient) Repeat() error { return c.transmit() }

// Reconnect does nothing: a datagram socket has no connection, and its address is part of the message's identity.
func (c *coapClient) Reconnect() error { return nil }

func (c *coapClient) transmit() error {
	wait := 2 * time.Second
	for range 4 {
		if _, err := c.conn.Write(c.out); err != nil {
			return err
		}
		again, err := c.await(wait)
		if !again {
			return err
		}
		wait *= 2
	}
	return errors.New("no answer to a CON after 4 transmissions")
}

// await reads until the answer comes; again means that it timed out and the request should be sent once more.
func (c *coapClient) await(wait time.Duration) (again bool, err error) {
	if err := c.conn.SetReadDeadline(time.Now().Add(wait)); err != nil {
		return false, err
	}
	for {
		n, err := c.conn.Read(c.in[:])
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return true, nil
		}
		if err != nil {
			return false, err
		}
		if n < 4 || c.in[0]>>6 != 1 {
			continue
		}
		typ, tkl, code := c.in[0]>>4&3, int(c.in[0]&15), c.in[1]
		mid := binary.BigEndian.Uint16(c.in[2:])
		if typ == 2 && code == 0 { // empty ACK: the response comes apart
			if mid == c.mid {
				if err := c.conn.SetReadDeadline(time.Now().Add(ackTimeout)); err != nil {
					return false, err
				}
			}
			continue
		}
		if typ == 0 { // separate response in a CON: to be acked whatever it answers
			if _, err := c.conn.Write([]byte{0x60, 0, byte(mid >> 8), byte(mid)}); err != nil {
				return false, err
			}
		}
		if tkl != 4 || n < 8 || binary.BigEndian.Uint32(c.in[4:]) != c.token {
			continue // of an earlier exchange
		}
		switch code >> 5 {
		case 2:
			return false, nil
		case 4:
			return false, fmt.Errorf("answer %d.%02d %q", code>>5, code&31, c.in[8:n])
		}
		return false, ErrRefused
	}
}

// Close closes the socket.
func (c *coapClient) Close() { c.conn.Close() }

// appendOption appends an option of up to 268 bytes whose number is delta (< 13) above the one before.
func appendOption(dst []byte, delta byte, v string) []byte {
	if len(v) < 13 {
		return append(append(dst, delta<<4|byte(len(v))), v...)
	}
	return append(append(dst, delta<<4|13, byte(len(v)-13)), v...)
}
