package coap

import (
	"bytes"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/protocols/coap/endpoint"
)

// target is the resource that a request names.
type target uint8

const (
	nothing   target = iota
	telemetry        // d/{id}/t, or t
	twin             // d/{id}/s, or s
	commands         // d/{id}/c, or c
	result           // d/{id}/c/{command}, or c/{command}
	core             // .well-known/core
)

const formatLink dunlin.ContentFormat = 40 // application/link-format

// block is a Block1 or Block2 option (RFC 7959 §2.2).
type block struct {
	set  bool
	more bool
	szx  uint8
	num  uint32
}

func (b block) size() int { return 16 << b.szx }

func (b block) value() uint32 {
	v := b.num<<4 | uint32(b.szx)
	if b.more {
		v |= 8
	}
	return v
}

// inbound is a request with its options read.
type inbound struct {
	*endpoint.Request
	call *call // not nil: the request was begun, its answer goes through the call

	target    target
	segments  int
	path      [4][]byte
	device    []byte // of d/{id}/…; nil: the one that the credential names
	command   []byte // of result
	format    int    // Content-Format; -1: absent
	accept    int    // Accept; -1: absent
	block1    block
	block2    block
	user      []byte   // u=
	secret    []byte   // k=
	queries   [][]byte // the others
	queryRoom [4][]byte
	proxy     bool
	critical  message.OptionID // not 0: a critical option that we don't understand, or that is malformed
}

// Options that go-coap has no name for. Observe and all unknown elective ones are ignored, as RFC 7252 §5.4.1 says.
const optionKey = "k="

// read reads the options of r into in. What RFC 7252 §5.4.1, §5.4.3 and §5.4.5 call unrecognized (unknown; of a wrong
// length; a second one where there may be one) is refused if it is critical and ignored if it is not.
func (in *inbound) read(r *endpoint.Request) {
	*in = inbound{Request: r, format: -1, accept: -1}
	in.queries = in.queryRoom[:0]
	var last message.OptionID
	for i := range r.Options {
		o := &r.Options[i]
		repeated := i > 0 && o.ID == last
		last = o.ID
		if !in.option(o, repeated) && o.ID&1 == 1 && in.critical == 0 {
			in.critical = o.ID
		}
	}
	in.route()
}

// option takes in one option; false means that it is not recognized.
func (in *inbound) option(o *message.Option, repeated bool) bool {
	n := len(o.Value)
	switch o.ID {
	case message.URIPath:
		if in.segments < len(in.path) {
			in.path[in.segments] = o.Value
		}
		in.segments++
		return n <= 255
	case message.URIQuery:
		in.query(o.Value)
		return n <= 255
	case message.URIHost:
		return !repeated && n >= 1 && n <= 255
	case message.URIPort:
		return !repeated && n <= 2
	case message.ContentFormat:
		if repeated || n > 2 {
			return false
		}
		in.format = int(number(o.Value))
	case message.Accept:
		if repeated || n > 2 {
			return false
		}
		in.accept = int(number(o.Value))
	case message.Block1:
		return !repeated && in.block1.read(o.Value)
	case message.Block2:
		return !repeated && in.block2.read(o.Value)
	case message.ProxyURI, message.ProxyScheme:
		in.proxy = true
	default:
		return false
	}
	return true
}

func (b *block) read(v []byte) bool {
	if len(v) > 3 {
		return false
	}
	n := number(v)
	*b = block{set: true, more: n&8 != 0, szx: uint8(n & 7), num: n >> 4}
	return true
}

// number reads a uint option (RFC 7252 §3.2) of at most 4 bytes.
func number(v []byte) uint32 {
	var n uint32
	for _, b := range v {
		n = n<<8 | uint32(b)
	}
	return n
}

func (in *inbound) query(q []byte) {
	switch {
	case bytes.HasPrefix(q, []byte(optionKey)):
		in.secret = q[2:]
	case bytes.HasPrefix(q, []byte("u=")):
		in.user = q[2:]
	case len(in.queries) < cap(in.queries):
		in.queries = append(in.queries, q)
	}
}

func (in *inbound) route() {
	if in.segments > len(in.path) {
		return
	}
	path := in.path[:in.segments]
	if len(path) == 2 && string(path[0]) == ".well-known" && string(path[1]) == "core" {
		in.target = core
		return
	}
	if len(path) > 2 && string(path[0]) == "d" {
		in.device, path = path[1], path[2:]
	}
	switch {
	case len(path) == 1:
		switch string(path[0]) {
		case "t":
			in.target = telemetry
		case "s":
			in.target = twin
		case "c":
			in.target = commands
		}
	case len(path) == 2 && string(path[0]) == "c":
		in.target, in.command = result, path[1]
	}
}

// posted reports whether the target takes POST, and not GET.
func (t target) posted() bool { return t == telemetry || t == result }

// handle answers a new request, or begins work on it.
func (rd *reader) handle(r *endpoint.Request) {
	in := &rd.in
	in.read(r)
	switch {
	case r.Crowded:
		rd.refuse(in, codes.BadOption, "too many options")
	case in.critical != 0:
		rd.badOption(in, in.critical)
	case in.proxy:
		rd.refuse(in, codes.ProxyingNotSupported, "")
	case r.Code > codes.DELETE:
		rd.refuse(in, codes.MethodNotAllowed, "unknown method")
	case in.target == nothing:
		rd.refuse(in, codes.NotFound, "no such resource")
	case in.target.posted() && r.Code != codes.POST:
		rd.refuse(in, codes.MethodNotAllowed, "only POST")
	case !in.target.posted() && r.Code != codes.GET:
		rd.refuse(in, codes.MethodNotAllowed, "only GET")
	case rd.g.closing.Load():
		rd.busy(in)
	case in.target == telemetry:
		rd.telemetry(in)
	case in.target == result:
		rd.result(in)
	case in.target == twin:
		rd.twin(in)
	case in.target == commands:
		rd.commands(in)
	default:
		rd.core(in)
	}
}
