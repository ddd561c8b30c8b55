package payload

import (
	"unicode/utf16"
	"unicode/utf8"
)

// scanner is a pack read as JSON (RFC 8259). A failure moves it to the end, where every read fails again. It is a type of
// its own for its methods' sake, and not a struct that points to its pack: then the pack would not stay on the stack.
type scanner pack

func (s *scanner) pack() *pack { return (*pack)(s) }

func (s *scanner) fail(why string) {
	s.pack().fail(s.i, why)
	s.i = len(s.b)
}

// next skips white space and returns the byte behind it without taking it; 0 at the end.
func (s *scanner) next() byte {
	for s.i < len(s.b) {
		c := s.b[s.i]
		if c > ' ' {
			return c
		}
		if c != ' ' && c != '\n' && c != '\t' && c != '\r' {
			return c
		}
		s.i++
	}
	return 0
}

func (s *scanner) take(c byte, what string) bool {
	if s.next() != c || s.i >= len(s.b) {
		s.fail("want " + what)
		return false
	}
	s.i++
	return true
}

// more is called before each element of an array or object whose opening bracket was taken: it takes the comma, or the
// closing bracket and returns false.
func (s *scanner) more(first *bool, closing byte) bool {
	c := s.next()
	if c == closing && s.i < len(s.b) {
		s.i++
		return false
	}
	if *first {
		*first = false
		return s.i < len(s.b) || s.ended()
	}
	if !s.take(',', "a comma or the closing bracket") {
		return false
	}
	return true
}

func (s *scanner) ended() bool {
	s.fail("the end of the payload comes too early")
	return false
}

// string reads a string. It is a part of the input if it has no escapes.
func (s *scanner) string() []byte {
	if !s.take('"', "a string") {
		return nil
	}
	from := s.i
	for i := from; i < len(s.b); i++ {
		switch c := s.b[i]; {
		case c == '"':
			s.i = i + 1
			return s.b[from:i]
		case c == '\\':
			return s.escaped(from)
		case c < ' ':
			s.i = i
			s.fail("a control character in a string")
			return nil
		}
	}
	s.i = len(s.b)
	s.fail("a string does not end")
	return nil
}

// escaped reads the string that began at from into memory of its own.
func (s *scanner) escaped(from int) []byte {
	var out []byte
	for i := from; i < len(s.b); {
		c := s.b[i]
		switch {
		case c == '"':
			s.i = i + 1
			return out
		case c < ' ':
			s.i = i
			s.fail("a control character in a string")
			return nil
		case c != '\\':
			out = append(out, c)
			i++
		default:
			n := 0
			if out, n = unescape(out, s.b[i:]); n == 0 {
				s.i = i
				s.fail("a broken escape in a string")
				return nil
			}
			i += n
		}
	}
	s.i = len(s.b)
	s.fail("a string does not end")
	return nil
}

// unescape appends what the escape at the beginning of b stands for, and returns its length; 0 if it is none.
func unescape(out, b []byte) ([]byte, int) {
	if len(b) < 2 {
		return out, 0
	}
	switch b[1] {
	case '"', '\\', '/':
		return append(out, b[1]), 2
	case 'b':
		return append(out, '\b'), 2
	case 'f':
		return append(out, '\f'), 2
	case 'n':
		return append(out, '\n'), 2
	case 'r':
		return append(out, '\r'), 2
	case 't':
		return append(out, '\t'), 2
	case 'u':
		r := hex4(b[2:])
		if r < 0 {
			return out, 0
		}
		if utf16.IsSurrogate(r) {
			if len(b) >= 12 && b[6] == '\\' && b[7] == 'u' {
				if pair := utf16.DecodeRune(r, hex4(b[8:])); pair != utf8.RuneError {
					return utf8.AppendRune(out, pair), 12
				}
			}
			r = utf8.RuneError // half of a pair stands for nothing
		}
		return utf8.AppendRune(out, r), 6
	}
	return out, 0
}

func hex4(b []byte) rune {
	if len(b) < 4 {
		return -1
	}
	var r rune
	for _, c := range b[:4] {
		switch {
		case '0' <= c && c <= '9':
			c -= '0'
		case 'a' <= c|0x20 && c|0x20 <= 'f':
			c = c | 0x20 - 'a' + 10
		default:
			return -1
		}
		r = r<<4 | rune(c)
	}
	return r
}

func (s *scanner) number() number {
	s.next()
	n, ok := scanNumber(s.b[s.i:])
	if !ok {
		s.fail("want a number")
		return number{text: []byte("0"), exact: true}
	}
	s.i += len(n.text)
	return n
}

func (s *scanner) float() float64 {
	n := s.number()
	f, ok := n.float()
	if !ok {
		s.fail("a number is out of range")
	}
	return f
}

func (s *scanner) micros() int64 {
	n := s.number()
	m, ok := n.micros()
	if !ok {
		s.fail("a time is out of range")
	}
	return m
}

// literal takes word, which the next byte begins.
func (s *scanner) literal(word string) {
	if len(s.b)-s.i < len(word) || string(s.b[s.i:s.i+len(word)]) != word {
		s.fail("no JSON value")
		return
	}
	s.i += len(word)
}

func (s *scanner) bool() bool {
	if s.next() == 't' {
		s.literal("true")
		return true
	}
	s.literal("false")
	return false
}

// skip reads any value.
func (s *scanner) skip(depth int) {
	switch s.next() {
	case '"':
		s.string()
	case 't':
		s.literal("true")
	case 'f':
		s.literal("false")
	case 'n':
		s.literal("null")
	case '{', '[':
		s.skipNested(depth)
	default:
		s.number()
	}
}

func (s *scanner) skipNested(depth int) {
	if depth == depthMax {
		s.fail("nested too deeply")
		return
	}
	object := s.b[s.i] == '{'
	closing := s.b[s.i] + 2 // in ASCII, } and ] are two behind { and [
	s.i++
	for first := true; s.more(&first, closing); {
		if object {
			s.string()
			s.take(':', "a colon")
		}
		s.skip(depth + 1)
		if s.err != nil {
			return
		}
	}
}

// end checks that nothing but white space follows.
func (s *scanner) end() {
	if s.next(); s.i < len(s.b) {
		s.fail("something follows the value")
	}
}
