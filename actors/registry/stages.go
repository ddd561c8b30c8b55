package registry

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/actors/device"
)

// resolve makes the rules of all domains.
func resolve(v *view, log *slog.Logger) map[name]*device.Rules {
	rules := make(map[name]*device.Rules, len(v.domains))
	for n, d := range v.domains {
		r := &device.Rules{Tenant: n.tenant, Domain: d.ID, Register: d.UnknownDevices == dunlin.UnknownRegister,
			SkewMax: time.Duration(d.SkewMax), PayloadBytesMax: d.PayloadBytesMax}
		names := stageNames(d.Pipeline)
		for i := range d.Pipeline {
			use := &d.Pipeline[i]
			p := v.plugins[name{n.tenant, use.Plugin}]
			if use.Rules == nil && p == nil { // PutDomain and DeletePlugin see to it that there is one
				log.Error("pipeline names an unknown plugin", slog.String("domain", n.key()), slog.String("plugin", use.Plugin))
				continue
			}
			st := stageOf(use, names[i], p)
			st.Share, st.Sees = d.PluginShare, sees(d.Pipeline, names, i)
			r.Stages = append(r.Stages, st)
		}
		rules[n] = r
	}
	return rules
}

// stageOf is a pipeline's stage with the plugin's active version, or with its rules (p is nil then).
func stageOf(use *dunlin.PluginUse, name string, p *dunlin.Plugin) dunlin.Stage {
	st := dunlin.Stage{Plugin: name, Name: use.Plugin, Config: use.Config}
	if use.Rules != nil {
		st.Rules = compact(use.Rules)
		st.Hash = sha256.Sum256(st.Rules)
		st.Made = madeBy(st.Hash, nil)
		return st
	}
	st.Hash = p.Hash
	st.Made = madeBy(p.Hash, use.Config)
	if p.Trial != nil {
		st.Trial = &dunlin.StageTrial{Trial: *p.Trial, Made: madeBy(p.Trial.Hash, use.Config)}
	}
	return st
}

// madeBy marks what a module makes with a configuration.
func madeBy(h dunlin.ModuleHash, config json.RawMessage) dunlin.Made {
	sum := sha256.Sum256(compact(config))
	return dunlin.Made{Module: max(binary.BigEndian.Uint32(h[:]), 1), Config: max(binary.BigEndian.Uint32(sum[:]), 1)}
}

// compact leaves out white space: a row is stored without.
func compact(b json.RawMessage) json.RawMessage {
	var c bytes.Buffer
	if json.Compact(&c, b) != nil {
		return b
	}
	return c.Bytes()
}

// stageNames are what a pipeline's stages are called, in it, in logs, in Sees: as they say, else after their plugins, numbered
// where one runs more than once.
func stageNames(pipeline []dunlin.PluginUse) []string {
	names := make([]string, len(pipeline))
	for i := range pipeline {
		use := &pipeline[i]
		if names[i] = use.Name; names[i] != "" {
			continue
		}
		base := use.Plugin
		if use.Rules != nil {
			base = "rules"
		}
		names[i] = base
		for n := 2; slices.Contains(names[:i], names[i]); n++ {
			names[i] = fmt.Sprintf("%s-%d", base, n)
		}
	}
	return names
}

// sees returns the indexes of the stages that the i-th sees; nil: all before it.
func sees(pipeline []dunlin.PluginUse, names []string, i int) []int {
	if pipeline[i].Sees == nil {
		return nil
	}
	of := []int{}
	for j := range i {
		if slices.Contains(pipeline[i].Sees, names[j]) {
			of = append(of, j)
		}
	}
	return of
}

// checkPipeline says what is wrong with a pipeline as such, whatever its plugins are.
func checkPipeline(pipeline []dunlin.PluginUse) error {
	names := stageNames(pipeline)
	for i := range pipeline {
		use := &pipeline[i]
		if err := checkUse(use, names[i], i); err != nil {
			return err
		}
		if slices.Contains(names[:i], names[i]) {
			return invalid("two stages of the pipeline are called %q; give one of them another name", names[i])
		}
		for _, s := range use.Sees {
			if slices.Contains(names[:i], s) {
				continue
			}
			if slices.Contains(names[i:], s) {
				return invalid("stage %q sees stage %q, which does not run before it: that is a cycle; change the order", names[i], s)
			}
			return invalid("stage %q sees stage %q, which the pipeline does not have", names[i], s)
		}
	}
	return nil
}

func checkUse(use *dunlin.PluginUse, name string, i int) error {
	if err := dunlin.ValidatePluginName(name); err != nil {
		return fmt.Errorf("pipeline, stage %d: %w", i+1, err)
	}
	switch {
	case use.Rules != nil && use.Plugin != "":
		return invalid("stage %d of the pipeline has a plugin and rules; make two stages of it", i+1)
	case use.Rules != nil && len(use.Config) > 0:
		return invalid("stage %d of the pipeline has rules, which take no configuration", i+1)
	case len(use.Rules) > rulesBytesMax:
		return invalid("the rules of stage %s have %d bytes, want at most %d", name, len(use.Rules), rulesBytesMax)
	case use.Rules != nil:
		return nil // what they say is tried by who runs them
	}
	if err := dunlin.ValidatePluginName(use.Plugin); err != nil {
		return fmt.Errorf("pipeline, plugin %d: %w", i+1, err)
	}
	if len(use.Config) > configBytesMax {
		return invalid("the configuration of plugin %s has %d bytes, want at most %d", use.Plugin, len(use.Config), configBytesMax)
	}
	var object map[string]json.RawMessage
	config := bytes.TrimSpace(use.Config)
	if len(config) > 0 && (json.Unmarshal(config, &object) != nil || object == nil) {
		return invalid("the configuration of plugin %s is not a JSON object", use.Plugin)
	}
	return nil
}
