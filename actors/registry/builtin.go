package registry

import (
	"context"
	"crypto/sha256"
	"fmt"

	"golang.org/x/mod/semver"

	"github.com/dunlin-iot/dunlin"
)

// builtIn is the source of versions that come with the binary.
const builtIn = "built in"

// Offer keeps a module that comes with the binary as a version of the default tenant's plugin, and makes it the active one, if
// the plugin is not there or only has such versions that are older: a new binary brings a new version, an old one takes none back,
// and a plugin that somebody has uploaded under the name is left alone. v says what its manifest does.
//
// The module was tried when the binary was built, so it is neither checked nor compiled here, unless a domain runs the plugin
// already.
func (r *Registry) Offer(ctx context.Context, plugin string, module []byte, v dunlin.PluginVersion) error {
	n := name{dunlin.DefaultTenant, plugin}
	v.Hash, v.Bytes, v.Source, v.By = sha256.Sum256(module), int64(len(module)), builtIn, byRuntime
	now := r.view.Load().plugins[n]
	revision := uint64(0)
	if now != nil {
		revision = now.Revision
		if !wants(now, &v) {
			return nil
		}
	}
	if err := r.worthChecking(n, revision); err != nil {
		return fmt.Errorf("offer plugin %s: %w", plugin, err)
	}
	if _, err := r.deps.Keep(module); err != nil {
		return fmt.Errorf("offer plugin %s: %w", plugin, err)
	}
	if err := r.tryVersion(ctx, n, &v); err != nil {
		return fmt.Errorf("offer plugin %s: %w", plugin, err)
	}
	_, err := r.changePlugin(ctx, n, revision, true, func(at dunlin.Time, p *dunlin.Plugin) error {
		keepVersion(p, &v, at)
		return activate(p, dunlin.Activation{Hash: v.Hash, At: at, By: byRuntime, Reason: "came with the binary"})
	})
	return err
}

// wants says whether a plugin is to get a version that came with the binary.
func wants(p *dunlin.Plugin, v *dunlin.PluginVersion) bool {
	c := *p
	if ofOldRow(&c); c.Trial != nil {
		return false // it would end
	}
	for i := range c.Versions {
		if w := &c.Versions[i]; !isBuiltIn(w) || w.Hash == v.Hash || semver.Compare("v"+w.Version, "v"+v.Version) >= 0 {
			return false
		}
	}
	return true
}

func isBuiltIn(v *dunlin.PluginVersion) bool { return v.Source == builtIn && v.By == byRuntime }

// Idle reports whether a module came with the binary and no pipeline runs it: it needn't be compiled.
func (r *Registry) Idle(hash dunlin.ModuleHash) bool {
	v := r.view.Load()
	for _, p := range v.plugins {
		if w := versionOf(p, hash); w != nil && !isBuiltIn(w) {
			return false
		}
	}
	return isIn(v, hash) && !runsModule(v, hash)
}

// BuiltIn returns the modules that came with the binary and that pipelines run now.
func (r *Registry) BuiltIn() (hashes []dunlin.ModuleHash) {
	v := r.view.Load()
	for _, h := range r.Modules() {
		if isIn(v, h) {
			hashes = append(hashes, h)
		}
	}
	return hashes
}

func isIn(v *view, hash dunlin.ModuleHash) bool {
	for _, p := range v.plugins {
		if w := versionOf(p, hash); w != nil && isBuiltIn(w) {
			return true
		}
	}
	return false
}

func runsModule(v *view, hash dunlin.ModuleHash) bool {
	for _, rules := range v.rules {
		for i := range rules.Stages {
			if st := &rules.Stages[i]; st.Hash == hash || st.Trial != nil && st.Trial.Hash == hash {
				return true
			}
		}
	}
	return false
}
