package cli

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/cmd/dunlin/internal/scaffold"
	"github.com/dunlin-iot/dunlin/sdk/client"
	"github.com/spf13/cobra"
)

func newPlugin(env Env) *cobra.Command {
	return group(&cobra.Command{Use: "plugin", Short: "Begin, test, upload, try, roll out and take back plugins"},
		newPluginNew(env), newPluginBuild(env), newPluginTest(env), newPluginDev(env), newPluginPush(env), newPluginVersions(env), newPluginActivate(env), newPluginRollback(env), newPluginTrial(env, dunlin.TrialShadow),
		newPluginTrial(env, dunlin.TrialCanary), newPluginTrialStatus(env), newPluginTrialEnd(env), newPluginPull(env), newPluginSign(env),
		newPluginVerify(env), newPluginRemove(env), newPluginBacktest(env), newPluginDeadLetters(env))
}

// pushed is what `plugin push` was told.
type pushed struct {
	name, reason, signature, key string
	inactive                     bool
}

func newPluginPush(env Env) *cobra.Command {
	r, out, p := remote{env: env}, output{}, pushed{}
	c := &cobra.Command{Use: "push FILE.wasm|DIR", Short: "Upload a module, have it checked, and make it the plugin's active version", Args: exactArgs("FILE.wasm|DIR"),
		Long: "push uploads a module. The node checks it (size, imports, exports, memory, a dry run) and refuses it with what is\n" +
			"wrong, or runs it from the next reading on in every domain whose pipeline names the plugin. With --no-activate the\n" +
			"module is only kept as a version, for a trial. A FILE.wasm.minisig beside the module is sent along.\n" +
			"A folder is built first; oci://REGISTRY/NAME:TAG takes the module from a registry.",
		Example: "  dunlin plugin push ./cold-chain.wasm\n  dunlin plugin push ./build/rule.wasm --name too-warm --no-activate\n" +
			"  dunlin plugin push oci://registry.example.com/plugins/too-warm:1.2.0",
		RunE: func(c *cobra.Command, args []string) error { return p.push(c, &r, &out, args[0]) }}
	r.flags(c)
	out.flag(c)
	c.Flags().StringVar(&p.name, "name", "", "of the plugin; default the file's name without .wasm")
	c.Flags().BoolVar(&p.inactive, "no-activate", false, "keep the module as a version; what runs goes on")
	c.Flags().StringVar(&p.reason, "reason", "", "kept with the activation")
	c.Flags().StringVar(&p.signature, "signature", "", "the minisign signature; default FILE.wasm.minisig if there is one")
	c.Flags().StringVar(&p.key, "key", "", "the public key of the signature, or its .pub file; default one that a domain trusts")
	return c
}

func (p *pushed) push(c *cobra.Command, r *remote, out *output, file string) error {
	src, err := moduleOf(c, file)
	if err != nil {
		return err
	}
	set := dunlin.PluginSettings{Name: p.name, Activate: !p.inactive, Reason: p.reason, Source: src.source, Signature: src.signature, IfRevision: dunlin.AnyRevision}
	if set.Name == "" {
		set.Name = src.name
	}
	if p.signature != "" {
		b, err := os.ReadFile(p.signature)
		if err != nil {
			return err
		}
		set.Signature = string(b)
	}
	if p.key != "" {
		if set.Key, err = publicKey(p.key); err != nil {
			return err
		}
	}
	cl, err := r.client()
	if err != nil {
		return err
	}
	fmt.Fprintf(c.ErrOrStderr(), "uploading %d bytes; the node compiles and tries the module\n", len(src.module))
	got, err := cl.BringVersion(c.Context(), set, src.module)
	var problem *client.Error
	if errors.As(err, &problem) && problem.Check != "" {
		return fmt.Errorf("%s was refused (%s): %s", file, problem.Check, problem.Detail)
	}
	if err != nil {
		return r.explain(err)
	}
	return out.print(c, got, func(w io.Writer) {
		row(w, "plugin", got.Name)
		row(w, "module", got.Hash.String())
		row(w, "bytes", fmt.Sprint(got.Bytes))
		row(w, "language", got.Language)
		row(w, "revision", fmt.Sprint(got.Revision))
	})
}

// moduleSource is a module with where it came from.
type moduleSource struct {
	module                  []byte
	name, source, signature string
}

// moduleOf reads a module from a file or a registry, or builds the plugin in a folder.
func moduleOf(c *cobra.Command, from string) (*moduleSource, error) {
	info, err := os.Stat(from)
	if err != nil || !info.IsDir() {
		return readModule(c.Context(), from)
	}
	file, err := scaffold.Build(c.Context(), from, c.ErrOrStderr())
	if err != nil {
		return nil, err
	}
	m, err := readFileModule(file)
	if err != nil {
		return nil, err
	}
	abs, err := filepath.Abs(from)
	m.name = filepath.Base(abs)
	return m, err
}

func readFileModule(file string) (*moduleSource, error) {
	module, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	m := &moduleSource{module: module, name: strings.TrimSuffix(filepath.Base(file), ".wasm"), source: "upload"}
	switch sig, err := os.ReadFile(file + ".minisig"); {
	case err == nil:
		m.signature = string(sig)
	case !os.IsNotExist(err):
		return nil, err
	}
	return m, nil
}

func newPluginVersions(env Env) *cobra.Command {
	r, out := remote{env: env}, output{}
	c := &cobra.Command{Use: "versions NAME", Short: "List a plugin's versions, and what ran since when and why", Args: exactArgs("NAME"),
		RunE: func(c *cobra.Command, args []string) error {
			cl, err := r.client()
			if err != nil {
				return err
			}
			p, err := cl.Plugin(c.Context(), args[0])
			if err != nil {
				return r.explain(err)
			}
			return out.print(c, p, func(w io.Writer) { versionsTable(w, p) })
		}}
	r.flags(c)
	out.flag(c)
	return c
}

func versionsTable(w io.Writer, p *dunlin.Plugin) {
	names := map[dunlin.ModuleHash]string{}
	row(w, "VERSION", "MODULE", "STATE", "LANGUAGE", "SIGNED BY", "FROM", "BROUGHT", "BY")
	for i := range p.Versions {
		v := &p.Versions[i]
		short := v.Hash.String()[:12]
		if names[v.Hash] = v.Version; v.Version == "" {
			names[v.Hash] = short
		}
		state := ""
		switch {
		case v.Hash == p.Hash:
			state = "active"
		case p.Trial != nil && p.Trial.Hash == v.Hash:
			state = string(p.Trial.Kind)
		case v.Banned != "":
			state = "banned: " + cut(v.Banned, 60)
		}
		var keys []string
		for _, s := range v.Signatures {
			keys = append(keys, s.Key)
		}
		row(w, v.Version, short, state, v.Language, strings.Join(keys, ","), v.Source, clock(v.At), v.By)
	}
	fmt.Fprintln(w)
	row(w, "SINCE", "RUNS", "BY", "WHY")
	for _, a := range p.Activations {
		row(w, clock(a.At), names[a.Hash], a.By, a.Reason)
	}
}

// pluginChange is a command that changes one plugin and says what became of it.
func pluginChange(env Env, c *cobra.Command, change func(c *cobra.Command, cl *client.Client, args []string) (*dunlin.Plugin, string, error)) *cobra.Command {
	r, out := remote{env: env}, output{}
	c.RunE = func(c *cobra.Command, args []string) error {
		cl, err := r.client()
		if err != nil {
			return err
		}
		p, said, err := change(c, cl, args)
		if err != nil {
			return r.explain(err)
		}
		return out.print(c, p, func(w io.Writer) { fmt.Fprintln(w, said) })
	}
	r.flags(c)
	out.flag(c)
	return c
}

func newPluginActivate(env Env) *cobra.Command {
	reason := ""
	c := pluginChange(env, &cobra.Command{Use: "activate NAME VERSION", Short: "Make a version the active one; a trial's candidate is promoted by this", Args: exactArgs("NAME", "VERSION"),
		Example: "  dunlin plugin activate too-warm 1.2.0\n  dunlin plugin activate too-warm 3f9c21 --reason 'the shadow was right'"},
		func(c *cobra.Command, cl *client.Client, args []string) (*dunlin.Plugin, string, error) {
			p, err := cl.ActivatePlugin(c.Context(), args[0], args[1], reason)
			return p, fmt.Sprintf("plugin %s runs version %s", args[0], runs(p)), err
		})
	c.Flags().StringVar(&reason, "reason", "", "kept with the activation")
	return c
}

func newPluginRollback(env Env) *cobra.Command {
	reason := ""
	c := pluginChange(env, &cobra.Command{Use: "rollback NAME", Short: "Make the version that was active before the active one again", Args: exactArgs("NAME")},
		func(c *cobra.Command, cl *client.Client, args []string) (*dunlin.Plugin, string, error) {
			p, err := cl.RollbackPlugin(c.Context(), args[0], reason)
			return p, fmt.Sprintf("plugin %s runs version %s again", args[0], runs(p)), err
		})
	c.Flags().StringVar(&reason, "reason", "", "kept with the activation")
	return c
}

// runs is what people call the active version.
func runs(p *dunlin.Plugin) string {
	if p == nil {
		return ""
	}
	for i := range p.Versions {
		if v := &p.Versions[i]; v.Hash == p.Hash && v.Version != "" {
			return v.Version
		}
	}
	return p.Hash.String()[:12]
}

func newPluginTrial(env Env, kind dunlin.TrialKind) *cobra.Command {
	t, labels, latency, promote := client.TrialSettings{Kind: kind}, []string(nil), time.Duration(0), time.Duration(0)
	use := &cobra.Command{Use: string(kind) + " NAME VERSION", Args: exactArgs("NAME", "VERSION")}
	switch kind {
	case dunlin.TrialShadow:
		use.Short = "Run a version beside the active one on live readings, its effects discarded, differences counted"
		use.Example = "  dunlin plugin push ./rule.wasm --no-activate\n  dunlin plugin shadow rule 1.3.0\n  dunlin plugin trial rule"
	default:
		use.Short = "Run a version in place of the active one on some devices"
		use.Example = "  dunlin plugin canary rule 1.3.0 --share 5 --promote-after 1h\n  dunlin plugin canary rule 1.3.0 --label hall=north"
	}
	c := pluginChange(env, use, func(c *cobra.Command, cl *client.Client, args []string) (*dunlin.Plugin, string, error) {
		t.Version = args[1]
		t.Gates.LatencyMax, t.Gates.PromoteAfter = dunlin.Duration(latency), dunlin.Duration(promote)
		for _, l := range labels {
			k, v, ok := strings.Cut(l, "=")
			if !ok {
				return nil, "", fmt.Errorf("--label %s: write it as name=value", l)
			}
			if t.Labels == nil {
				t.Labels = map[string]string{}
			}
			t.Labels[k] = v
		}
		p, err := cl.BeginTrial(c.Context(), args[0], t)
		return p, fmt.Sprintf("%s of plugin %s began; `dunlin plugin trial %s` says how it goes", kind, args[0], args[0]), err
	})
	f := c.Flags()
	if kind == dunlin.TrialCanary {
		f.Float64Var(&t.Share, "share", 0, "percent of the devices")
	}
	f.StringArrayVar(&labels, "label", nil, "only devices with this label, name=value; several must all be there")
	f.IntVar(&t.Gates.InputsMin, "inputs-min", 0, "nothing is judged before the version had so many inputs (default 1000)")
	f.Float64Var(&t.Gates.ErrorRateMax, "error-rate-max", 0, "taken back above so many failed inputs an input (default 0.001; negative: never)")
	f.Float64Var(&t.Gates.FuelRatioMax, "fuel-ratio-max", 0, "taken back above so many times the active version's fuel (default 3)")
	f.Float64Var(&t.Gates.AlertRatioMax, "alert-ratio-max", 0, "taken back above so many times the active version's alerts (default 2)")
	f.DurationVar(&latency, "latency-max", 0, "taken back above this mean time of an input in the plugin (default 1ms)")
	f.DurationVar(&promote, "promote-after", 0, "made the active version when no gate was hit for so long (default: by hand only)")
	return c
}

func newPluginTrialStatus(env Env) *cobra.Command {
	r, out := remote{env: env}, output{}
	c := &cobra.Command{Use: "trial NAME", Short: "Say how a plugin's shadow or canary goes", Args: exactArgs("NAME"),
		RunE: func(c *cobra.Command, args []string) error {
			cl, err := r.client()
			if err != nil {
				return err
			}
			t, err := cl.Trial(c.Context(), args[0])
			if err != nil {
				return r.explain(err)
			}
			return out.print(c, t, func(w io.Writer) { trialTable(w, t) })
		}}
	r.flags(c)
	out.flag(c)
	return c
}

func trialTable(w io.Writer, t *client.RunningTrial) {
	share := func(n, of uint64) string {
		if of == 0 {
			return ""
		}
		return number(float64(n) / float64(of))
	}
	fmt.Fprintf(w, "%s of %s since %s\n\n", t.Trial.Kind, t.Trial.Hash.String()[:12], clock(t.Trial.Since))
	row(w, "", "INPUTS", "FAILED", "ALERTS", "FUEL/INPUT", "NS/INPUT")
	for _, v := range []struct {
		what string
		c    dunlin.VersionCounts
	}{{"candidate", t.Counts.Candidate}, {"active", t.Counts.Active}} {
		row(w, v.what, fmt.Sprint(v.c.Inputs), fmt.Sprint(v.c.Failed), fmt.Sprint(v.c.Alerts), share(v.c.Fuel, v.c.Inputs), share(v.c.Nanos, v.c.Inputs))
	}
	if t.Trial.Kind == dunlin.TrialShadow {
		fmt.Fprintf(w, "\n%d turns with the same result, %d with another; %d alerts only of the candidate, %d only of the active version\n",
			t.Counts.Same, t.Counts.Differ, t.Counts.AlertsOnly, t.Counts.AlertsMissing)
	}
	if t.Missing > 0 {
		fmt.Fprintf(w, "%d nodes did not answer: their counts are missing\n", t.Missing)
	}
}

func newPluginTrialEnd(env Env) *cobra.Command {
	reason := ""
	r := remote{env: env}
	c := &cobra.Command{Use: "end-trial NAME", Short: "Take a shadow or canary back", Args: exactArgs("NAME"),
		RunE: func(c *cobra.Command, args []string) error {
			cl, err := r.client()
			if err != nil {
				return err
			}
			if err := cl.EndTrial(c.Context(), args[0], reason); err != nil {
				return r.explain(err)
			}
			fmt.Fprintf(c.OutOrStdout(), "the trial of plugin %s is over\n", args[0])
			return nil
		}}
	r.flags(c)
	c.Flags().StringVar(&reason, "reason", "", "kept with the plugin")
	return c
}

func newPluginRemove(env Env) *cobra.Command {
	r := remote{env: env}
	c := &cobra.Command{Use: "remove NAME", Short: "Remove a plugin that no domain's pipeline names", Args: exactArgs("NAME"),
		RunE: func(c *cobra.Command, args []string) error {
			cl, err := r.client()
			if err != nil {
				return err
			}
			if err := cl.DeletePlugin(c.Context(), args[0], dunlin.AnyRevision); err != nil {
				return r.explain(err)
			}
			fmt.Fprintf(c.OutOrStdout(), "plugin %s is removed\n", args[0])
			return nil
		}}
	r.flags(c)
	return c
}
