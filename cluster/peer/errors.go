package peer

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"

	"github.com/dunlin-iot/dunlin"
)

const textBytesMax = 4 << 10 // of an error's text on the wire

// code is an error's number on the wire. Append only: a number that the other side doesn't know is an error without a
// sentinel.
type code struct {
	number byte
	err    error
}

// codes is looked through in order: what can be more than one error goes as the first.
func codes() [16]code {
	return [16]code{
		{1, dunlin.ErrInvalid}, {2, dunlin.ErrBadPayload}, {3, dunlin.ErrFormat}, {4, dunlin.ErrTooLarge},
		{5, dunlin.ErrUnauthenticated}, {6, dunlin.ErrForbidden}, {7, dunlin.ErrNotFound}, {8, dunlin.ErrUnknownDevice},
		{9, dunlin.ErrConflict}, {10, dunlin.ErrPrecondition}, {11, dunlin.ErrOverloaded}, {13, dunlin.ErrNotOwner},
		{14, dunlin.ErrCursorLost}, {12, dunlin.ErrUnavailable}, {15, context.DeadlineExceeded}, {16, context.Canceled},
	}
}

const codeOther = 255

func codeOf(err error) byte {
	for _, c := range codes() {
		if errors.Is(err, c.err) {
			return c.number
		}
	}
	return codeOther
}

// Remote is an error that another node answered a call with. It unwraps to dunlin's or context's error that it was there.
type Remote struct {
	Node   dunlin.NodeID
	Method string
	Text   string
	err    error
}

func (e *Remote) Error() string { return fmt.Sprintf("%s at node %s: %s", e.Method, e.Node, e.Text) }

// Unwrap returns the sentinel, nil if it was none.
func (e *Remote) Unwrap() error { return e.err }

func remoteError(node dunlin.NodeID, method string, number byte, text []byte) error {
	e := &Remote{Node: node, Method: method, Text: printable(text)}
	for _, c := range codes() {
		if c.number == number {
			e.err = c.err
		}
	}
	if e.err == context.DeadlineExceeded || e.err == context.Canceled { // as when we notice first
		e.err = fmt.Errorf("%w: %w", dunlin.ErrUnavailable, e.err)
	}
	return e
}

// explain says what to do about a handshake that failed. What TLS says of it names neither the cause nor the cure.
func explain(err error) error {
	text := err.Error()
	says := func(alerts ...string) bool {
		for _, a := range alerts {
			if strings.Contains(text, "tls: "+a) {
				return true
			}
		}
		return false
	}
	var invalid x509.CertificateInvalidError
	var unknown x509.UnknownAuthorityError
	var header tls.RecordHeaderError
	switch {
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired, says("expired certificate"):
		return fmt.Errorf("%w: a certificate is not valid at this moment. Nodes renew theirs long before the end: compare the clocks of both machines (%w)", dunlin.ErrUnauthenticated, err)
	case errors.As(err, &unknown), says("unknown certificate authority", "bad certificate", "certificate required", "unknown certificate"):
		return fmt.Errorf("%w: the two nodes do not have the same cluster secret. Run `dunlin cluster key` on a node of the cluster and give its output to the other one (%w)", dunlin.ErrUnauthenticated, err)
	case errors.As(err, &header):
		return fmt.Errorf("%w: no TLS there: is it the port between nodes? (%w)", dunlin.ErrInvalid, err)
	case says("no application protocol"):
		return fmt.Errorf("%w: TLS, but not dunlin's between nodes: is it the port between nodes? (%w)", dunlin.ErrInvalid, err)
	}
	return err
}
