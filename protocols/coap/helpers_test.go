package coap

import (
	"testing"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/udp/coder"
)

func encode(t testing.TB, m message.Message) []byte {
	b := make([]byte, 70_000)
	n, err := coder.DefaultCoder.Encode(m, b)
	if err != nil {
		if t == nil {
			panic(err)
		}
		t.Fatalf("encode: %v", err)
	}
	return b[:n:n]
}
