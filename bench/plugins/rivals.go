package main

import (
	"fmt"

	"github.com/dop251/goja"
	lua "github.com/yuin/gopher-lua"

	"github.com/dunlin-iot/dunlin"
)

// What a script's or the native threshold says of a reading.
const (
	says     = 0
	raises   = 1
	clears   = 2
	ruleName = "threshold"
)

// native is the threshold example as a function of the runtime, without any wall around it.
func native(works []*dunlin.Work) error {
	for _, w := range works {
		each(w, func(_ string, v float64, active bool) int {
			switch {
			case !active && v > 8:
				return raises
			case active && v < 7:
				return clears
			}
			return says
		})
	}
	return nil
}

// each works a device's readings off with a function that is told whether the alert is active.
func each(w *dunlin.Work, look func(metric string, v float64, active bool) int) {
	active := len(w.State) > 0 && w.State[0] != 0
	known := len(w.State) > 0
	was := active
	w.Outcome = dunlin.Outcome{}
	for i := range w.Inputs {
		for j := range w.Inputs[i].Records {
			r := &w.Inputs[i].Records[j]
			if r.Metric != "temp" || r.Kind != dunlin.Number {
				continue
			}
			what := look(r.Metric, r.Num, active)
			if what == says {
				continue
			}
			active = what == raises
			w.Outcome.Signals = append(w.Outcome.Signals, dunlin.AlertSignal{Input: i, Raise: active, Severity: dunlin.Major, Rule: ruleName, Value: &r.Num})
		}
	}
	if active == was && known || !active && !known {
		return
	}
	w.Outcome.State = []byte{0}
	if active {
		w.Outcome.State[0] = 1
	}
}

// javaScript is the threshold in goja: a call of a function for each reading, without bounds on time or memory.
func javaScript() (round, error) {
	vm := goja.New()
	_, err := vm.RunString(`
		var above = 8, clear = 7;
		function reading(metric, v, active) {
			if (metric !== "temp") return 0;
			if (!active && v > above) return 1;
			if (active && v < clear) return 2;
			return 0;
		}`)
	if err != nil {
		return nil, err
	}
	f, ok := goja.AssertFunction(vm.Get("reading"))
	if !ok {
		return nil, fmt.Errorf("reading is no function")
	}
	return func(works []*dunlin.Work) (failed error) {
		for _, w := range works {
			each(w, func(metric string, v float64, active bool) int {
				is, err := f(goja.Undefined(), vm.ToValue(metric), vm.ToValue(v), vm.ToValue(active))
				if err != nil {
					failed = err
					return says
				}
				return int(is.ToInteger())
			})
		}
		return failed
	}, nil
}

// luaScript is the same in gopher-lua.
func luaScript() (round, func(), error) {
	l := lua.NewState()
	err := l.DoString(`
		local above, clear = 8, 7
		function reading(metric, v, active)
			if metric ~= "temp" then return 0 end
			if not active and v > above then return 1 end
			if active and v < clear then return 2 end
			return 0
		end`)
	if err != nil {
		return nil, nil, err
	}
	f := lua.P{Fn: l.GetGlobal("reading"), NRet: 1, Protect: true}
	return func(works []*dunlin.Work) (failed error) {
		for _, w := range works {
			each(w, func(metric string, v float64, active bool) int {
				if err := l.CallByParam(f, lua.LString(metric), lua.LNumber(v), lua.LBool(active)); err != nil {
					failed = err
					return says
				}
				is := l.Get(-1)
				l.Pop(1)
				n, _ := is.(lua.LNumber)
				return int(n)
			})
		}
		return failed
	}, l.Close, nil
}
