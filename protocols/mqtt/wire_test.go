package mqtt

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	mochi "github.com/mochi-mqtt/server/v2/packets"
	"pgregory.net/rapid"

	"github.com/dunlin-iot/dunlin"
)

// stricter are the reasons for which we refuse a PUBLISH that mochi's decoder takes.
var stricter = []string{
	"properties", "property", "unknown property", "property given twice", "property is neither 0 nor 1", "property must not be 0",
	"topic alias 0", "wildcard in the response topic", "bytes behind the properties", "acknowledgement", "packet identifier 0",
}

// FuzzAgainstMochi holds the packets that are parsed by hand against mochi's decoder: what we take, it takes, and reads
// the same in it; what it takes and we don't is refused for one of the stricter reasons.
func FuzzAgainstMochi(f *testing.F) {
	c := &client{v5: true}
	full := c.publishPacket("d/d1/t", 1, 7, "21.5")
	full.Properties = mochi.Properties{ContentType: "text/plain", TopicAlias: 3, TopicAliasFlag: true, MessageExpiryInterval: 9,
		User: []mochi.UserProperty{{Key: "k", Val: "v"}}, PayloadFormat: 1, PayloadFormatFlag: true}
	for _, pk := range []*mochi.Packet{full, c.publishPacket("d/d1/t", 0, 0, ""), c.publishPacket("t", 2, 1, `{"a":1}`)} {
		b := bytesOf(pk)
		f.Add(b[0], b[2:], true)
		pk.ProtocolVersion = 4
		b = bytesOf(pk)
		f.Add(b[0], b[2:], false)
	}
	f.Add(byte(typePuback<<4), []byte{0, 1, 0x80, 0}, true)
	f.Add(byte(typePubrel<<4|2), []byte{0, 1}, false)
	f.Fuzz(func(t *testing.T, head byte, body []byte, v5 bool) {
		fr := frame{head, body}
		pk := &mochi.Packet{ProtocolVersion: level(v5)}
		if pk.FixedHeader.Decode(head) != nil {
			return
		}
		pk.FixedHeader.Remaining = len(body)
		switch fr.kind() {
		case typePublish:
			var p publish
			ours := p.parse(fr, v5)
			theirs := pk.PublishDecode(bytes.Clone(body))
			if theirs == nil {
				if code := pk.PublishValidate(65535); code != mochi.CodeSuccess {
					theirs = code
				}
			}
			compare(t, ours, theirs)
			if ours == nil && (string(p.topic) != pk.TopicName || p.id != pk.PacketID || !bytes.Equal(p.payload, pk.Payload) ||
				string(p.contentType) != pk.Properties.ContentType || p.alias != pk.Properties.TopicAlias ||
				p.qos != pk.FixedHeader.Qos || p.dup != pk.FixedHeader.Dup || p.retain != pk.FixedHeader.Retain) {
				t.Errorf("got %+v, mochi %+v", p, pk)
			}
		case typePuback, typePubrec, typePubrel, typePubcomp:
			id, code, ours := parseAck(fr, v5)
			compare(t, ours, pk.PubackDecode(bytes.Clone(body)))
			if ours == nil && (id != pk.PacketID || code != pk.ReasonCode) {
				t.Errorf("got %d 0x%02X, mochi %d 0x%02X", id, code, pk.PacketID, pk.ReasonCode)
			}
		}
	})
}

func compare(t *testing.T, ours *fault, theirs error) {
	t.Helper()
	switch {
	case ours == nil && theirs != nil:
		t.Errorf("we take what mochi refuses: %v", theirs)
	case ours != nil && theirs == nil && !slices.Contains(stricter, ours.why):
		t.Errorf("mochi takes what we refuse: %v", ours)
	}
}

// TestEncoders: what we write by hand mochi reads.
func TestEncoders(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v5 := rapid.Bool().Draw(t, "v5")
		m := message{topic: []byte("d/" + rapid.StringMatching(`[a-z]{1,60}`).Draw(t, "device") + "/t"),
			payload: rapid.SliceOfN(rapid.Byte(), 0, 20_000).Draw(t, "payload"), media: mediaSenML,
			qos: rapid.ByteRange(0, 1).Draw(t, "qos"), subIDs: rapid.SliceOfN(rapid.Uint32Range(1, 1<<28-1), 0, 40).Draw(t, "ids")}
		if m.qos > 0 {
			m.id, m.dup = rapid.Uint16Range(1, 65535).Draw(t, "id"), rapid.Bool().Draw(t, "dup")
		}
		b := appendPublish(nil, &m, v5)
		fr, n, err := nextFrame(b, 1<<28)
		if err != nil || n != len(b) {
			t.Fatalf("frame of %d bytes, want %d: %v", n, len(b), err)
		}
		pk, derr := decodeServer(fr, v5)
		if derr != nil {
			t.Fatal(derr)
		}
		if pk.TopicName != string(m.topic) || !bytes.Equal(pk.Payload, m.payload) || pk.PacketID != m.id || pk.FixedHeader.Dup != m.dup {
			t.Fatalf("got %+v, want %+v", pk, m)
		}
		if v5 && (pk.Properties.ContentType != mediaSenML || len(pk.Properties.SubscriptionIdentifier) != len(m.subIDs)) {
			t.Fatalf("properties %+v", pk.Properties)
		}
		why := rapid.String().Draw(t, "why")
		bytesMax := rapid.IntRange(6, 400).Draw(t, "bytesMax")
		b = appendAck(nil, typePuback, 7, codeNotAuthorized, why, bytesMax)
		if len(b) > bytesMax {
			t.Fatalf("%d bytes, want at most %d", len(b), bytesMax)
		}
		fr, _, _ = nextFrame(b, 1<<28)
		id, code, err := parseAck(fr, true)
		if err != nil || id != 7 || code != codeNotAuthorized {
			t.Fatalf("ack %x: %d 0x%02X %v", b, id, code, err)
		}
	})
}

func TestFrames(t *testing.T) {
	for _, c := range []struct {
		name string
		in   []byte
		n    int
		code byte
	}{
		{"nothing", nil, 0, 0},
		{"half a header", []byte{0x30}, 0, 0},
		{"ping", []byte{0xC0, 0}, 2, 0},
		{"body missing", []byte{0x30, 2, 0}, 0, 0},
		{"one more byte", []byte{0x30, 1, 0, 9}, 3, 0},
		{"long length, missing", []byte{0x30, 0x80}, 0, 0},
		{"long length", append([]byte{0x30, 0x80, 1}, make([]byte, 128)...), 131, 0},
		{"too large", []byte{0x30, 0xFF, 0x7F}, 0, codePacketTooLarge},
		{"five length bytes", []byte{0x30, 0x80, 0x80, 0x80, 0x80}, 0, codeMalformed},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, n, err := nextFrame(c.in, 1000)
			if n != c.n || (err == nil) != (c.code == 0) || err != nil && err.code != c.code {
				t.Errorf("got %d, %v, want %d, 0x%02X", n, err, c.n, c.code)
			}
		})
	}
}

func TestTopics(t *testing.T) {
	device := &dunlin.Principal{Kind: dunlin.PrincipalDevice, ID: "self"}
	open := &dunlin.Principal{Kind: dunlin.PrincipalOpen}
	for _, c := range []struct {
		topic  string
		p      *dunlin.Principal
		device dunlin.DeviceID
		format dunlin.ContentFormat
		named  bool
		ok     bool
	}{
		{"d/a/t", open, "a", 0, false, true},
		{"d/a/t/cbor", open, "a", dunlin.FormatCBOR, true, true},
		{"d/a/t/octets", open, "a", dunlin.FormatOctets, true, true},
		{"t", device, "self", 0, false, true},
		{"t/senml", device, "self", dunlin.FormatSenMLJSON, true, true},
		{"t", open, "", 0, false, false},
		{"d/a", open, "", 0, false, false},
		{"d//t", open, "", 0, false, false},
		{"d/a/b/t", open, "", 0, false, false},
		{"d/a/t/", open, "", 0, false, false},
		{"d/a/t/xml", open, "", 0, false, false},
		{"/d/a/t", open, "", 0, false, false},
		{"d/" + strings.Repeat("a", 65) + "/t", open, "", 0, false, false},
		{"", device, "", 0, false, false},
		{"d/a/c/1-0/res", open, "a", 0, false, true},
		{"c/12-3/res", device, "self", 0, false, true},
		{"c/12-3/res", open, "", 0, false, false},
		{"d/a/c/1-0/req/reboot", open, "", 0, false, false},
		{"d/a/c/reboot/res", open, "", 0, false, false},
		{"d/a/c/1-0", open, "", 0, false, false},
		{"d/a/c/1-0/x/res", open, "", 0, false, false},
		{"d/a/c//res", open, "", 0, false, false},
	} {
		a, err := parseTopic(c.topic, c.p)
		command := ""
		if f := strings.Split(c.topic, "/"); c.ok && f[len(f)-1] == "res" {
			command = f[len(f)-2]
		}
		if (err == nil) != c.ok || err == nil && (a != address{c.device, command, c.format, c.named}) {
			t.Errorf("%q: got %+v, %v", c.topic, a, err)
		}
	}
}

func TestSniff(t *testing.T) {
	for in, want := range map[string]dunlin.ContentFormat{
		`[{"n":"a","v":1}]`: dunlin.FormatSenMLJSON, " \n{}": dunlin.FormatJSON, "-1.5": dunlin.FormatText, "\t7": dunlin.FormatText,
		"\x81\xa0": dunlin.FormatSenMLCBOR, "\xa1\x61a\x01": dunlin.FormatCBOR, "\x9f": dunlin.FormatSenMLCBOR, "\xbf": dunlin.FormatCBOR,
	} {
		if got, ok := sniff([]byte(in)); !ok || got != want {
			t.Errorf("%q: got %d %v, want %d", in, got, ok, want)
		}
	}
	for _, in := range []string{"", " ", "hello", "\x00", "\xff", "<a/>"} {
		if got, ok := sniff([]byte(in)); ok {
			t.Errorf("%q: got %d, want none", in, got)
		}
	}
}

// naive is MQTT's topic matching, level by level (§4.7).
func naive(filter, topic string) bool {
	f, t := strings.Split(filter, "/"), strings.Split(topic, "/")
	for i := range f {
		switch {
		case f[i] == "#":
			return true
		case i >= len(t):
			return false
		case f[i] != "+" && f[i] != t[i]:
			return false
		}
		if i == len(t)-1 && i == len(f)-2 && f[i+1] == "#" {
			return true // # includes the parent level
		}
	}
	return len(f) == len(t)
}

// TestFilters: a compiled filter matches what MQTT's rules say, and is refused if and only if it can match nothing.
func TestFilters(t *testing.T) {
	level := rapid.SampledFrom([]string{"d", "d", "p", "+", "+", "#", "t", "a", "x1", "c", "c", "1-0", "req", "", "d1", "t#", "+a", "res", "-"})
	var topics []string
	about := map[string]*news{}
	add := func(n news) {
		topic := string(appendTopic(nil, &n))
		topics = append(topics, topic)
		about[topic] = &n
	}
	for _, id := range []dunlin.DeviceID{"x1", "d1", "t", "a", "d", "c", "p", "req", "res", "1-0", "other"} {
		add(news{device: id})
		add(news{kind: newsAlert, device: id})
		for _, name := range []string{"d", "p", "t", "a", "x1", "c", "1-0", "req", "d1", "res", "-", "other"} {
			add(news{kind: newsCommand, device: id, command: &dunlin.Command{ID: "1-0", Name: name}})
			add(news{kind: newsCommand, device: id, command: &dunlin.Command{ID: "22-3", Name: name}})
		}
		for _, topic := range []string{"a", "t", "t/d1", "t/-", "c/1-0/req/x1", "x1/c/d/p/a/t/res", "d", "p", "req/c", "res/x1/a/", "1-0/c/t/d", "other/o/o/o/o/o/o", "d1/x1/t", "x1/x1/x1/x1"} {
			if dunlin.ValidateTopic(topic) == nil {
				add(news{kind: newsPublication, device: id, publish: &dunlin.Publication{Topic: topic}})
			}
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		levels := rapid.SliceOfN(level, 1, 7).Draw(t, "levels")
		text := strings.Join(levels, "/")
		f, err := parseFilter(text)
		wellFormed := true
		for i, l := range levels {
			if strings.ContainsAny(l, "+#") && l != "+" && (l != "#" || i != len(levels)-1) {
				wellFormed = false
			}
		}
		any := false
		for _, topic := range topics {
			want := wellFormed && naive(text, topic)
			any = any || want
			got := err == nil && f.matches(about[topic])
			if got != want {
				t.Fatalf("%q matches %q: got %v (%v), want %v", text, topic, got, err, want)
			}
		}
		if err != nil && any || err == nil && !any && levels[0] != "p" && levels[0] != "+" { // plugins' topics are endless
			t.Fatalf("%q: %v, but it matches something: %v", text, err, any)
		}
	})
}
