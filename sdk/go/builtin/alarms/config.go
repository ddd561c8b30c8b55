package main

import (
	"errors"
	"math"
	"strconv"
	"time"

	sdk "github.com/dunlin-iot/dunlin/sdk/go"
)

// kind is a type of alarm. The numbers are part of the state's format.
type kind uint8

const (
	threshold kind = 1
	rate      kind = 2
	deviation kind = 3
	absence   kind = 4
	state     kind = 5
)

func kindOf(word string) kind {
	switch word {
	case "threshold":
		return threshold
	case "rate":
		return rate
	case "deviation":
		return deviation
	case "absence":
		return absence
	case "state":
		return state
	}
	return 0
}

// Bounds of the configuration.
const (
	alarmsMax   = 32
	nameMax     = 64 // bytes, as of any rule
	textMax     = 512
	windowMax   = 100_000
	timeMax     = 90 * 24 * time.Hour
	windowUsual = 60
	sigmasUsual = 4
)

// alarm is one alarm as it was configured.
type alarm struct {
	kind     kind
	name     string
	id       uint32 // of the name, in states
	metric   *sdk.Metric
	severity sdk.Severity
	text     string
	holdFor  time.Duration
	clearFor time.Duration

	// threshold: beyond these is the condition, within those it has ended. rate: hi is the most a minute.
	hi, lo           float64
	clearHi, clearLo float64
	plain            bool // the condition has ended as soon as it doesn't hold

	over   time.Duration // rate: between the two readings that are compared
	window float64       // deviation: readings
	least  float64       // deviation: smaller ones don't count
	after  time.Duration // absence

	// state: the value that is the condition; of what kind it is; text of a Text.
	changes bool
	isKind  sdk.Kind
	is      float64
	isText  string
}

func (p *plugin) configure(cfg *sdk.Config) error {
	list := cfg.Objects("alarms")
	if len(list) > alarmsMax {
		return errors.New("setting alarms has " + strconv.Itoa(len(list)) + " alarms, at most " + strconv.Itoa(alarmsMax) + " are allowed")
	}
	p.alarms, p.heard = make([]alarm, len(list)), false
	for i, c := range list {
		a := &p.alarms[i]
		err := a.configure(c)
		if wrong := cfg.Err(); wrong != nil {
			return wrong // of a value's type, which is what the other error comes from
		}
		if err != nil {
			return errors.New("alarm " + strconv.Itoa(i+1) + ": " + err.Error())
		}
		for j := range p.alarms[:i] {
			if p.alarms[j].id == a.id {
				return errors.New("alarms " + strconv.Itoa(j+1) + " and " + strconv.Itoa(i+1) + " are both called " + a.name + ": give one of them another name")
			}
		}
		p.heard = p.heard || a.kind == absence
	}
	p.mem = make([]memory, len(p.alarms))
	p.buf = make([]byte, 0, 256)
	return nil
}

func (a *alarm) configure(c *sdk.Config) error {
	word := c.String("type", "")
	if a.kind = kindOf(word); a.kind == 0 {
		return errors.New("type must be threshold, rate, deviation, absence or state, not " + strconv.Quote(word))
	}
	metric := c.String("metric", "")
	switch {
	case metric != "":
		a.metric = c.Metric("metric", "")
	case a.kind != absence:
		return errors.New("metric is missing: which readings to look at")
	}
	otherwise := word
	if metric != "" {
		otherwise = word + "-" + ruleOf(metric)
	}
	a.name = c.String("name", otherwise)
	a.id = idOf(a.name)
	severity, ok := sdk.SeverityOf(c.String("severity", "warning"))
	a.severity = severity
	a.text = c.String("text", "")
	a.holdFor, a.clearFor = c.Duration("for", 0), c.Duration("clear_for", 0)
	switch {
	case !isRule(a.name):
		return errors.New("name must be 1 to 64 of A-Z a-z 0-9 . _ : ~ @ -, not " + strconv.Quote(a.name))
	case !ok:
		return errors.New("severity must be info, warning, major or critical")
	case len(a.text) > textMax:
		return errors.New("text has " + strconv.Itoa(len(a.text)) + " bytes, at most " + strconv.Itoa(textMax) + " are allowed")
	case a.holdFor < 0 || a.holdFor > timeMax || a.clearFor < 0 || a.clearFor > timeMax:
		return errors.New("for and clear_for must be 0s to 2160h")
	}
	switch a.kind {
	case threshold:
		return a.threshold(c)
	case rate:
		return a.rate(c)
	case deviation:
		return a.deviation(c)
	case absence:
		return a.absence(c)
	default:
		return a.state(c)
	}
}

func (a *alarm) threshold(c *sdk.Config) error {
	above, below := c.Has("above"), c.Has("below")
	a.hi, a.lo = c.Float("above", math.Inf(1)), c.Float("below", math.Inf(-1))
	margin := c.Float("margin", 0)
	a.plain = !c.Has("clear") && margin == 0
	a.clearHi, a.clearLo = a.hi-margin, a.lo+margin
	switch {
	case !above && !below:
		return errors.New("above or below is missing: with both, values outside of them are the condition")
	case above && below && a.lo >= a.hi:
		return errors.New("below must be less than above: the condition is a value outside of them")
	case margin < 0:
		return errors.New("margin must not be negative")
	case c.Has("clear") && above && below:
		return errors.New("clear does not say on which side: with above and below use margin")
	case c.Has("clear") && c.Has("margin"):
		return errors.New("clear and margin say the same: use one of them")
	case above && below && a.clearLo > a.clearHi:
		return errors.New("margin is more than half of what lies between below and above: the alarm would never be cleared")
	}
	if c.Has("clear") && above {
		if a.clearHi = c.Float("clear", 0); a.clearHi > a.hi {
			return errors.New("clear must not be greater than above")
		}
	} else if c.Has("clear") {
		if a.clearLo = c.Float("clear", 0); a.clearLo < a.lo {
			return errors.New("clear must not be less than below")
		}
	}
	return nil
}

func (a *alarm) rate(c *sdk.Config) error {
	most := c.Float("per_minute", 0)
	a.over = c.Duration("over", 0)
	margin := most - c.Float("clear", most)
	a.plain = margin == 0
	direction := c.String("direction", "both")
	a.hi, a.lo = most, -most
	switch direction {
	case "up":
		a.lo = math.Inf(-1)
	case "down":
		a.hi = math.Inf(1)
	}
	a.clearHi, a.clearLo = a.hi-margin, a.lo+margin
	switch {
	case !(most > 0):
		return errors.New("per_minute must be more than 0: the change in a minute beyond which the alarm is raised")
	case margin < 0 || margin > most:
		return errors.New("clear must be between 0 and per_minute")
	case direction != "both" && direction != "up" && direction != "down":
		return errors.New("direction must be up, down or both")
	case a.over < 0 || a.over > timeMax:
		return errors.New("over must be 0s to 2160h")
	}
	return nil
}

func (a *alarm) deviation(c *sdk.Config) error {
	a.window = float64(c.Int("window", windowUsual))
	a.hi = c.Float("sigmas", sigmasUsual)
	a.clearHi = c.Float("clear", a.hi)
	a.plain = a.clearHi == a.hi
	a.lo, a.clearLo = math.Inf(-1), math.Inf(-1)
	a.least = c.Float("at_least", 0)
	switch {
	case a.window < 4 || a.window > windowMax:
		return errors.New("window must be 4 to " + strconv.Itoa(windowMax) + " readings")
	case !(a.hi > 0):
		return errors.New("sigmas must be more than 0")
	case a.clearHi < 0 || a.clearHi > a.hi:
		return errors.New("clear must be between 0 and sigmas")
	case a.least < 0:
		return errors.New("at_least must not be negative")
	}
	return nil
}

func (a *alarm) absence(c *sdk.Config) error {
	a.after = c.Duration("after", 0)
	switch {
	case a.after < time.Second || a.after > timeMax:
		return errors.New("after must be 1s to 2160h: how long nothing may be heard")
	case a.holdFor != 0 || a.clearFor != 0:
		return errors.New("for and clear_for are not for absence: after says how long")
	}
	return nil
}

func (a *alarm) state(c *sdk.Config) error {
	a.changes = c.Bool("changes", false)
	is := c.JSON("is")
	switch {
	case a.changes == c.Has("is"):
		return errors.New("is or changes: true is missing, and only one of them: the value that is the condition, or that it is another than before")
	case a.changes:
	case is == "true" || is == "false":
		if a.isKind = sdk.Boolean; c.Bool("is", false) {
			a.is = 1
		}
	case is[0] == '"':
		a.isKind, a.isText = sdk.Text, c.String("is", "")
	default:
		a.isKind, a.is = sdk.Number, c.Float("is", 0)
	}
	return nil
}

// ruleOf makes a part of a rule's name of a metric's, which may have slashes.
func ruleOf(metric string) string {
	b := []byte(metric)
	for i, c := range b {
		if c == '/' {
			b[i] = '.'
		}
	}
	return string(b)
}

func isRule(s string) bool {
	for i := range len(s) {
		switch c := s[i]; {
		case c >= '0' && c <= '9', c >= 'A' && c <= 'Z', c >= 'a' && c <= 'z':
		case c == '.', c == '_', c == ':', c == '~', c == '@', c == '-':
		default:
			return false
		}
	}
	return s != "" && len(s) <= nameMax
}

// idOf is what stands for a name in a state: FNV-1a.
func idOf(name string) uint32 {
	h := uint32(2166136261)
	for i := range len(name) {
		h = (h ^ uint32(name[i])) * 16777619
	}
	return h
}
