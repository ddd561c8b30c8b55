package sdk

import (
	"errors"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// Config is a plugin's configuration: a JSON object. It is read by key, with what to use if the key isn't there; a value
// of the wrong type is remembered, and refuses the configuration when Configure returns.
type Config struct {
	fields []field
	prefix string // of keys in errors: "limits." for a nested object
	root   *Config
	guest  *Guest // of the root; nil outside Configure
	err    error
}

type field struct {
	key  string
	raw  string // the value's JSON
	read bool
	sub  *Config
	subs []*Config
}

const configDepthMax = 16

// ParseConfig reads a JSON object; an empty text is an empty object.
func ParseConfig(text string) (*Config, error) {
	c := &Config{}
	c.root = c
	if strings.TrimSpace(text) == "" || strings.TrimSpace(text) == "null" {
		return c, nil
	}
	s := scanner{s: text}
	c.parse(&s)
	s.space()
	if s.bad || s.i != len(s.s) {
		return nil, errors.New("the configuration is not a JSON object: see byte " + strconv.Itoa(s.i))
	}
	return c, nil
}

// Err returns what was wrong with the first value that was read.
func (c *Config) Err() error { return c.root.err }

func (c *Config) wrong(key, want, got string) {
	if c.root.err == nil {
		if len(got) > 40 {
			got = got[:40] + "…"
		}
		c.root.err = errors.New("setting " + c.prefix + key + " must be " + want + ", not " + got)
	}
}

func (c *Config) get(key string) (raw string, ok bool) {
	for i := range c.fields {
		if f := &c.fields[i]; f.key == key {
			f.read = true
			return f.raw, f.raw != "null"
		}
	}
	return "", false
}

// Has reports whether the key is there and not null.
func (c *Config) Has(key string) bool {
	_, ok := c.get(key)
	return ok
}

// Float returns a number.
func (c *Config) Float(key string, otherwise float64) float64 {
	raw, ok := c.get(key)
	if !ok {
		return otherwise
	}
	v, err := strconv.ParseFloat(raw, 64)
	if err != nil || raw[0] != '-' && (raw[0] < '0' || raw[0] > '9') {
		c.wrong(key, "a number", raw)
		return otherwise
	}
	return v
}

// Int returns a whole number.
func (c *Config) Int(key string, otherwise int) int {
	raw, ok := c.get(key)
	if !ok {
		return otherwise
	}
	v, err := strconv.Atoi(raw)
	if err != nil {
		c.wrong(key, "a whole number", raw)
		return otherwise
	}
	return v
}

// Bool returns a boolean.
func (c *Config) Bool(key string, otherwise bool) bool {
	switch raw, ok := c.get(key); {
	case !ok:
		return otherwise
	case raw == "true":
		return true
	case raw == "false":
		return false
	default:
		c.wrong(key, "true or false", raw)
		return otherwise
	}
}

// String returns a string.
func (c *Config) String(key, otherwise string) string {
	raw, ok := c.get(key)
	if !ok {
		return otherwise
	}
	s := scanner{s: raw}
	if v := s.text(); !s.bad {
		return v
	}
	c.wrong(key, "a text", raw)
	return otherwise
}

// Metric returns the name of a metric, ready for Reading.Is.
func (c *Config) Metric(key, otherwise string) *Metric {
	m := &Metric{name: c.String(key, otherwise)}
	if g := c.root.guest; g != nil {
		g.metrics = append(g.metrics, m)
	}
	return m
}

// Duration returns a time span, written as "90s", "15m" or "24h".
func (c *Config) Duration(key string, otherwise time.Duration) time.Duration {
	if !c.Has(key) {
		return otherwise
	}
	text := c.String(key, "")
	if v, err := time.ParseDuration(text); err == nil {
		return v
	}
	c.wrong(key, "a time span as 90s, 15m or 24h", strconv.Quote(text))
	return otherwise
}

// Strings returns an array of strings.
func (c *Config) Strings(key string) []string {
	raw, ok := c.get(key)
	if !ok {
		return nil
	}
	var list []string
	s := scanner{s: raw}
	s.list('[', ']', func() { list = append(list, s.text()) })
	if s.bad {
		c.wrong(key, "a list of texts", raw)
		return nil
	}
	return list
}

// Object returns a nested object; an empty one if the key isn't there.
func (c *Config) Object(key string) *Config {
	for i := range c.fields {
		f := &c.fields[i]
		if f.key != key || f.raw == "null" {
			continue
		}
		f.read = true
		if f.sub == nil {
			f.sub = &Config{root: c.root, prefix: c.prefix + key + "."}
			s := scanner{s: f.raw}
			if f.sub.parse(&s); s.bad {
				c.wrong(key, "an object", f.raw)
			}
		}
		return f.sub
	}
	return &Config{root: c.root, prefix: c.prefix + key + "."}
}

// Objects returns an array of objects; errors call them by the key and their number, from 1.
func (c *Config) Objects(key string) []*Config {
	raw, ok := c.get(key)
	if !ok {
		return nil
	}
	var list []*Config
	s := scanner{s: raw}
	s.list('[', ']', func() {
		sub := &Config{root: c.root, prefix: c.prefix + key + " " + strconv.Itoa(len(list)+1) + "."}
		sub.parse(&s)
		list = append(list, sub)
	})
	if s.bad {
		c.wrong(key, "a list of objects", raw)
		return nil
	}
	for i := range c.fields {
		if f := &c.fields[i]; f.key == key {
			f.subs = list
		}
	}
	return list
}

// JSON returns a value as it is written, for settings that may be of several types; "" if the key isn't there.
func (c *Config) JSON(key string) string {
	raw, ok := c.get(key)
	if !ok {
		return ""
	}
	return raw
}

// Keys returns the keys in the order they stand.
func (c *Config) Keys() []string {
	keys := make([]string, 0, len(c.fields))
	for i := range c.fields {
		keys = append(keys, c.fields[i].key)
	}
	return keys
}

// unread returns the first key nobody asked for.
func (c *Config) unread() string {
	for i := range c.fields {
		f := &c.fields[i]
		if !f.read {
			return c.prefix + f.key
		}
		if f.sub != nil {
			if k := f.sub.unread(); k != "" {
				return k
			}
		}
		for _, sub := range f.subs {
			if k := sub.unread(); k != "" {
				return k
			}
		}
	}
	return ""
}

func (c *Config) parse(s *scanner) {
	s.list('{', '}', func() {
		key := s.text()
		s.space()
		s.want(':')
		s.space()
		start := s.i
		s.skip(0)
		if !s.bad {
			c.fields = append(c.fields, field{key: key, raw: strings.Clone(s.s[start:s.i])})
		}
	})
}

// scanner walks JSON text. After an error, bad is set and i stands where it was found.
type scanner struct {
	s   string
	i   int
	bad bool
}

func (s *scanner) peek() byte {
	if s.i < len(s.s) {
		return s.s[s.i]
	}
	return 0
}

func (s *scanner) space() {
	for s.i < len(s.s) && (s.s[s.i] == ' ' || s.s[s.i] == '\t' || s.s[s.i] == '\n' || s.s[s.i] == '\r') {
		s.i++
	}
}

func (s *scanner) want(c byte) {
	if s.bad || s.peek() != c {
		s.bad = true
		return
	}
	s.i++
}

// list walks items between brackets.
func (s *scanner) list(first, last byte, item func()) {
	s.space()
	s.want(first)
	s.space()
	if !s.bad && s.peek() == last {
		s.i++
		return
	}
	for !s.bad {
		s.space()
		item()
		s.space()
		if s.peek() == ',' {
			s.i++
			continue
		}
		s.want(last)
		return
	}
}

// skip walks one value of any kind.
func (s *scanner) skip(depth int) {
	if depth > configDepthMax {
		s.bad = true
		return
	}
	switch c := s.peek(); {
	case c == '{':
		s.list('{', '}', func() {
			s.text()
			s.space()
			s.want(':')
			s.space()
			s.skip(depth + 1)
		})
	case c == '[':
		s.list('[', ']', func() { s.skip(depth + 1) })
	case c == '"':
		s.text()
	default:
		start := s.i
		for s.i < len(s.s) && strings.IndexByte("+-.0123456789abcdefghijklmnopqrstuvwxyzE", s.s[s.i]) >= 0 {
			s.i++
		}
		switch word := s.s[start:s.i]; word {
		case "true", "false", "null":
		default:
			if _, err := strconv.ParseFloat(word, 64); err != nil || word[0] != '-' && (word[0] < '0' || word[0] > '9') {
				s.i, s.bad = start, true
			}
		}
	}
}

// text reads a string.
func (s *scanner) text() string {
	if s.want('"'); s.bad {
		return ""
	}
	start := s.i
	for s.i < len(s.s) && s.s[s.i] >= ' ' {
		switch s.s[s.i] {
		case '"':
			s.i++
			return s.s[start : s.i-1]
		case '\\':
			return s.escaped(start)
		}
		s.i++
	}
	s.bad = true
	return ""
}

// escaped reads on after the first backslash.
func (s *scanner) escaped(start int) string {
	b := []byte(s.s[start:s.i])
	for s.i < len(s.s) && s.s[s.i] >= ' ' {
		c := s.s[s.i]
		s.i++
		if c == '"' {
			return string(b)
		}
		if c != '\\' {
			b = append(b, c)
			continue
		}
		esc := s.peek()
		s.i++
		switch esc {
		case '"', '\\', '/':
			b = append(b, esc)
		case 'b', 'f', 'n', 'r', 't':
			b = append(b, "\b\f\n\r\t"[strings.IndexByte("bfnrt", esc)])
		case 'u':
			b = utf8.AppendRune(b, s.unicode())
		default:
			s.bad = true
		}
		if s.bad {
			return ""
		}
	}
	s.bad = true
	return ""
}

func (s *scanner) hex4() rune {
	if len(s.s)-s.i < 4 {
		s.bad = true
		return 0
	}
	v, err := strconv.ParseUint(s.s[s.i:s.i+4], 16, 32)
	if err != nil {
		s.bad = true
		return 0
	}
	s.i += 4
	return rune(v)
}

func (s *scanner) unicode() rune {
	r := s.hex4()
	if r >= 0xd800 && r < 0xdc00 && strings.HasPrefix(s.s[s.i:], `\u`) {
		s.i += 2
		if low := s.hex4(); low >= 0xdc00 && low < 0xe000 {
			return 0x10000 + (r-0xd800)<<10 + (low - 0xdc00)
		}
		return utf8.RuneError
	}
	return r // AppendRune writes U+FFFD for a lone surrogate
}
