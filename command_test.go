package dunlin

import (
	"errors"
	"strings"
	"testing"
)

func TestCommandID(t *testing.T) {
	for _, id := range []string{"0-0", "1234-0", "18446744073709551615-2147483647"} {
		seq, n, err := ParseCommandID(id)
		if err != nil || CommandID(seq, n) != id || len(id) > CommandIDBytesMax {
			t.Errorf("%s: %d, %d, %v", id, seq, n, err)
		}
	}
	for _, id := range []string{"", "-", "1", "1-", "-1", "01-0", "1-00", "+1-0", "1-+0", "1-2-3", "1 -0", "18446744073709551616-0", "1-2147483648", "١-0",
		strings.Repeat("1", 1000)} {
		if _, _, err := ParseCommandID(id); !errors.Is(err, ErrInvalid) {
			t.Errorf("%q: %v", id, err)
		}
	}
	cs := []Command{{ID: "10-0"}, {ID: "9-10"}, {ID: "9-2"}, {ID: "x"}}
	SortCommands(cs)
	if cs[0].ID != "x" || cs[1].ID != "9-2" || cs[2].ID != "9-10" || cs[3].ID != "10-0" {
		t.Errorf("sorted: %v", cs)
	}
}

func TestCommandName(t *testing.T) {
	for _, name := range []string{"reboot", "set.point:2", "-", "A_b", strings.Repeat("x", 128)} {
		if err := ValidateCommandName(name); err != nil {
			t.Errorf("%q: %v", name, err)
		}
	}
	for _, name := range []string{"", "a/b", "a b", "+", "#", "é", strings.Repeat("x", 129)} {
		if err := ValidateCommandName(name); !errors.Is(err, ErrInvalid) {
			t.Errorf("%q: %v", name, err)
		}
	}
}

func TestDeadLetterKey(t *testing.T) {
	l := DeadLetter{DeviceKey: DeviceKey{"default", "fridge-7"}, Stage: 3, Seq: 42}
	if l.ID() != "fridge-7/3/42" || l.Key() != "default/fridge-7/3/42" {
		t.Errorf("%s, %s", l.ID(), l.Key())
	}
	k, stage, seq, err := ParseDeadLetterKey(l.Key())
	if err != nil || k != l.DeviceKey || stage != 3 || seq != 42 {
		t.Errorf("%v %d %d %v", k, stage, seq, err)
	}
	for _, key := range []string{"", "a/b/1", "a/b/1/2/3", "/b/1/2", "a//1/2", "a/b/256/2", "a/b/01/2", "a/b/1/-2", "a/b/1/+2"} {
		if _, _, _, err := ParseDeadLetterKey(key); !errors.Is(err, ErrInvalid) {
			t.Errorf("%q: %v", key, err)
		}
	}
}
