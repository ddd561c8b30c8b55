package coap

import (
	"bytes"
	"strings"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
)

// link is a resource as discovery shows it (RFC 6690). Resources of a device are listed in the short form, without its
// id: link format has no templates, and a list of all devices is nobody's business here. The title has the long form.
type link struct {
	href  string
	attrs [][2]string // in the order in which they are shown
}

func links() []link {
	return []link{
		{"/t", [][2]string{{"rt", "dunlin.telemetry"}, {"ct", "110 112 50 60 0 42"}, {"title", "POST, also d/{id}/t"}}},
		{"/s", [][2]string{{"rt", "dunlin.twin"}, {"ct", "110 112 50 60"}, {"title", "GET, also d/{id}/s"}}},
		{"/c", [][2]string{{"rt", "dunlin.commands"}, {"ct", "50 60"}, {"title", "GET, also d/{id}/c; POST an answer to c/{command}"}}},
		{"/.well-known/core", [][2]string{{"ct", "40"}}},
	}
}

// core takes a GET on .well-known/core.
func (rd *reader) core(in *inbound) {
	switch {
	case in.accept >= 0 && in.accept != int(formatLink):
		rd.refuse(in, codes.NotAcceptable, "format is 40")
		return
	case in.block1.set:
		rd.badOption(in, message.Block1)
		return
	case in.block2.set && in.block2.szx == 7:
		rd.refuse(in, codes.BadRequest, "block size 7 is reserved")
		return
	}
	const maxAge = 3600
	rd.represent(in, formatLink, appendLinks(nil, in.queries), maxAge)
}

// appendLinks renders the links that match the queries (RFC 6690 §4.1): "attribute=value", or "attribute=prefix*".
func appendLinks(dst []byte, queries [][]byte) []byte {
	for _, l := range links() {
		if !l.matches(queries) {
			continue
		}
		if len(dst) > 0 {
			dst = append(dst, ',')
		}
		dst = append(append(append(dst, '<'), l.href...), '>')
		for _, a := range l.attrs {
			dst = append(append(append(dst, ';'), a[0]...), `="`...)
			dst = append(append(dst, a[1]...), '"')
		}
	}
	return dst
}

func (l link) matches(queries [][]byte) bool {
	for _, q := range queries {
		name, pattern, ok := bytes.Cut(q, []byte("="))
		if ok && !l.has(string(name), string(pattern)) {
			return false
		}
	}
	return true
}

// has reports whether the attribute (or, of a list such as ct's, one of its values) matches the pattern.
func (l link) has(name, pattern string) bool {
	prefix, open := strings.CutSuffix(pattern, "*")
	match := func(v string) bool { return v == pattern || open && strings.HasPrefix(v, prefix) }
	if name == "href" {
		return match(l.href)
	}
	for _, a := range l.attrs {
		if a[0] != name {
			continue
		}
		if match(a[1]) {
			return true
		}
		for v := range strings.FieldsSeq(a[1]) {
			if match(v) {
				return true
			}
		}
	}
	return false
}
