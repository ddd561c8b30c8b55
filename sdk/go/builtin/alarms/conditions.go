package main

import (
	"math"
	"strconv"
	"strings"
	"time"

	sdk "github.com/dunlin-iot/dunlin/sdk/go"
)

// reading lets an alarm look at a reading of its metric.
func (p *plugin) reading(ctx *sdk.Context, a *alarm, m *memory, r *sdk.Reading, at sdk.Time) {
	if a.kind == absence {
		p.hear(ctx, a, m)
		return
	}
	if m.phase != idle && at < m.since {
		return // older than what the phase began with
	}
	switch a.kind {
	case threshold:
		if r.Kind == sdk.Number {
			p.step(ctx, a, m, at, r.Value, r.Value > a.hi || r.Value < a.lo, r.Value < a.clearHi && r.Value > a.clearLo)
		}
	case rate:
		if v, ok := a.change(m, r, at); ok {
			p.step(ctx, a, m, at, v, v > a.hi || v < a.lo, v < a.clearHi && v > a.clearLo)
		}
	case deviation:
		if v, ok := a.sigmas(m, r); ok {
			p.step(ctx, a, m, at, r.Value, v > a.hi, v < a.clearHi)
		}
	case state:
		if is, ok := a.holds(ctx, m, r); ok {
			v := r.Value
			if r.Kind >= sdk.Text {
				v = sdk.NoValue()
			}
			p.step(ctx, a, m, at, v, is, !is)
		}
	}
}

// step moves an alarm on after a reading. v is the alert's value.
func (p *plugin) step(ctx *sdk.Context, a *alarm, m *memory, at sdk.Time, v float64, holds, ended bool) {
	if a.plain {
		ended = !holds
	}
	switch m.phase {
	case idle, pending:
		p.hold(ctx, a, m, at, v, holds, pending, a.holdFor)
	default:
		p.hold(ctx, a, m, at, v, ended, clearing, a.clearFor)
	}
}

// hold moves on towards raising (wait is pending) or clearing, which takes so long. By the readings' times it is over when one
// comes that is so much later; by the runtime's when the timer fires: a message with old readings, behind which others may wait,
// does not raise at once what its readings began.
func (p *plugin) hold(ctx *sdk.Context, a *alarm, m *memory, at sdk.Time, v float64, so bool, wait phase, long time.Duration) {
	switch {
	case !so && m.phase == wait:
		m.phase = wait - 1 // pending → idle, clearing → active
		m.since = at
		ctx.CancelTimer(a.timer())
	case !so:
	case long == 0:
		p.turn(ctx, a, m, at, v, wait)
	case m.phase != wait:
		m.phase, m.since = wait, at
		m.until = ctx.Received().Add(long)
		m.value = v
		ctx.SetTimer(a.timer(), m.until)
	case at.Sub(m.since) >= long:
		ctx.CancelTimer(a.timer())
		p.turn(ctx, a, m, at, v, wait)
	default:
		m.value = v
	}
}

// turn raises or clears what was waited for.
func (p *plugin) turn(ctx *sdk.Context, a *alarm, m *memory, at sdk.Time, v float64, waited phase) {
	m.since = at
	if waited == pending {
		m.phase = active
		ctx.Alert(a.name, a.severity, a.say(v), v)
		return
	}
	m.phase = idle
	ctx.ClearWith(a.name, "", v)
}

// held is the end of a hold time without a reading that changed anything. A timer that was moved or disarmed while it fired is
// told by the time that it was armed for.
func (p *plugin) held(ctx *sdk.Context, a *alarm, m *memory) {
	if (m.phase == pending || m.phase == clearing) && ctx.Received() >= m.until {
		p.turn(ctx, a, m, max(m.since, min(m.until, ctx.Received())), m.value, m.phase)
	}
}

// change is what a metric changes in a minute, since the reading before or, with over, one that is so old at least.
func (a *alarm) change(m *memory, r *sdk.Reading, at sdk.Time) (perMinute float64, ok bool) {
	if r.Kind != sdk.Number || m.known && at <= m.last || m.known && at.Sub(m.last) < a.over {
		return 0, false
	}
	if m.known {
		perMinute, ok = (r.Value-m.a)/at.Sub(m.last).Minutes(), true
	}
	m.known, m.last, m.a = true, at, r.Value
	return perMinute, ok && !math.IsInf(perMinute, 0) && !math.IsNaN(perMinute)
}

// sigmas is how far a reading is from the exponentially weighted mean, in standard deviations, once there were enough. The
// reading is then learned, as far as it is within the limit: a spike must not widen what is usual, and what stays different
// becomes usual after a while.
func (a *alarm) sigmas(m *memory, r *sdk.Reading) (off float64, ok bool) {
	if r.Kind != sdk.Number {
		return 0, false
	}
	v := r.Value
	diff := v - m.a
	if ok = float64(m.n) >= a.window; ok {
		// Of a metric that stands still the last digit is no deviation.
		sd := max(math.Sqrt(m.b), 1e-9*math.Abs(m.a), 1e-12)
		if off = math.Abs(diff) / sd; math.Abs(diff) < a.least {
			off = 0
		}
		most := max(a.hi*sd, a.least)
		diff = max(-most, min(most, diff))
	} else {
		m.n++
	}
	weight := max(1/float64(m.n), 2/(a.window+1))
	step := weight * diff
	m.known, m.a, m.b = true, m.a+step, (1-weight)*(m.b+diff*step)
	if math.IsInf(m.a, 0) || math.IsInf(m.b, 0) || math.IsNaN(m.a) || math.IsNaN(m.b) { // values beyond 1e154
		*m = memory{phase: m.phase, since: m.since, until: m.until, value: m.value}
	}
	return off, ok
}

// holds reports whether a reading has the value, or another than the one before.
func (a *alarm) holds(ctx *sdk.Context, m *memory, r *sdk.Reading) (is, ok bool) {
	if a.changes {
		b := math.Float64bits(r.Value)
		if r.Kind >= sdk.Text {
			b = hash64(ctx.Text(r))
		}
		is, ok = m.known && m.bits != b, m.known
		m.known, m.bits = true, b
		return is, ok
	}
	switch {
	case a.isKind == sdk.Text:
		return r.Kind == sdk.Text && ctx.Text(r) == a.isText, r.Kind == sdk.Text
	case r.Kind >= sdk.Text:
		return false, false
	case a.isKind == sdk.Boolean: // a contact may say 1
		return (r.Value != 0) == (a.is != 0), true
	}
	return r.Value == a.is, true
}

// hash64 is FNV-1a.
func hash64(s string) uint64 {
	h := uint64(14695981039346656037)
	for i := range len(s) {
		h = (h ^ uint64(s[i])) * 1099511628211
	}
	return h
}

// hear notes that the device was heard of. The timer isn't moved: it looks at the note when it fires.
func (p *plugin) hear(ctx *sdk.Context, a *alarm, m *memory) {
	m.last = max(m.last, ctx.Received())
	if m.phase == active {
		m.phase = idle
		ctx.Clear(a.name)
	}
	if !m.armed {
		p.await(ctx, a, m)
	}
}

func (p *plugin) await(ctx *sdk.Context, a *alarm, m *memory) {
	m.armed = true
	ctx.SetTimer(a.timer(), m.last.Add(a.after))
}

// silence is when the timer of absence fires.
func (p *plugin) silence(ctx *sdk.Context, a *alarm, m *memory) {
	if !m.armed {
		return // it was disarmed while it fired
	}
	m.armed = false
	switch {
	case ctx.Received() < m.last.Add(a.after):
		p.await(ctx, a, m)
	case m.phase == idle:
		m.phase, m.since = active, ctx.Received()
		ctx.Alert(a.name, a.severity, a.say(sdk.NoValue()), sdk.NoValue())
	}
}

func (a *alarm) timer() string { return timerPrefix + a.name }

// say is the alert's text.
func (a *alarm) say(v float64) string {
	if a.text != "" {
		return strings.ReplaceAll(a.text, "{value}", number(v))
	}
	text := ""
	switch a.kind {
	case threshold:
		if text = a.metric.Name() + " is " + number(v); v > a.hi {
			text += ", above " + number(a.hi)
		} else {
			text += ", below " + number(a.lo)
		}
	case rate:
		text = a.metric.Name() + " changes by " + number(v) + " a minute"
	case deviation:
		text = a.metric.Name() + " is " + number(v) + ", more than " + number(a.hi) + " standard deviations from its mean"
	case absence:
		if text = "nothing was heard"; a.metric != nil {
			text = "no " + a.metric.Name() + " was heard"
		}
		return text + " for " + span(a.after)
	default:
		if text = a.metric.Name() + " has changed"; !a.changes {
			text = a.metric.Name() + " is " + a.value()
		}
	}
	if a.holdFor > 0 {
		text += ", for " + span(a.holdFor)
	}
	return text
}

func (a *alarm) value() string {
	switch a.isKind {
	case sdk.Text:
		return a.isText
	case sdk.Boolean:
		return strconv.FormatBool(a.is != 0)
	}
	return number(a.is)
}

func number(v float64) string {
	if math.IsNaN(v) {
		return "?"
	}
	return strconv.FormatFloat(v, 'g', 6, 64)
}

// span is a time span without its zeros: 15m, not 15m0s.
func span(d time.Duration) string {
	s := d.String()
	if s, ok := strings.CutSuffix(s, "m0s"); ok {
		if s, ok := strings.CutSuffix(s, "h0"); ok {
			return s + "h"
		}
		return s + "m"
	}
	return s
}
