package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/cmd/dunlin/internal/plugintest"
	"github.com/dunlin-iot/dunlin/cmd/dunlin/internal/scaffold"
	"github.com/dunlin-iot/dunlin/plugins"
	"github.com/dunlin-iot/dunlin/sdk/client"
	"github.com/fsnotify/fsnotify"
	"github.com/spf13/cobra"
)

func newPluginNew(_ Env) *cobra.Command {
	lang := "go"
	c := &cobra.Command{Use: "new NAME", Short: "Begin a plugin: a folder that builds and passes its own tests", Args: exactArgs("NAME"),
		Example: "  dunlin plugin new too-warm --lang rust\n  dunlin plugin test ./too-warm\n  dunlin plugin dev ./too-warm",
		RunE: func(c *cobra.Command, args []string) error {
			dir, name := args[0], filepath.Base(args[0])
			if err := scaffold.Write(dir, name, lang); err != nil {
				return err
			}
			fmt.Fprintf(c.OutOrStdout(), "%s is a plugin in %s; next:\n  dunlin plugin test %s\n  dunlin plugin push %s\n", dir, lang, dir, dir)
			return nil
		}}
	c.Flags().StringVar(&lang, "lang", lang, strings.Join(scaffold.Languages(), ", "))
	return c
}

func newPluginBuild(_ Env) *cobra.Command {
	return &cobra.Command{Use: "build DIR", Short: "Build a plugin's module, with what its dunlin.yaml says inside", Args: exactArgs("DIR"),
		RunE: func(c *cobra.Command, args []string) error {
			file, err := scaffold.Build(c.Context(), args[0], c.ErrOrStderr())
			if err != nil {
				return err
			}
			info, err := os.Stat(file)
			if err != nil {
				return err
			}
			fmt.Fprintf(c.OutOrStdout(), "%s: %d bytes\n", file, info.Size())
			return nil
		}}
}

// tested is how the cases of a plugin ended.
type tested struct {
	Module string               `json:"module"`
	Report *plugins.Report      `json:"report"`
	Cases  []*plugintest.Result `json:"cases"`
}

func (t *tested) failed() (n int) {
	for _, r := range t.Cases {
		if len(r.Problems) > 0 {
			n++
		}
	}
	return n
}

func newPluginTest(_ Env) *cobra.Command {
	out, nobuild := output{}, false
	c := &cobra.Command{Use: "test DIR", Short: "Build a plugin and play its cases, tests/*.yaml", Args: exactArgs("DIR"),
		Long: "test builds the plugin in DIR and plays the stories in DIR/tests: readings in, expected alerts, derived readings and\n" +
			"state. Each is played twice, on an instance that is kept and on a new one for each turn, so that a plugin which\n" +
			"remembers devices outside their state is found. It exits with 1 if a case failed.",
		Example: "  dunlin plugin test ./too-warm",
		RunE: func(c *cobra.Command, args []string) error {
			t, err := testPlugin(c.Context(), args[0], nobuild, c.ErrOrStderr())
			if err != nil {
				return err
			}
			if err := out.print(c, t, func(w io.Writer) { testTable(w, t) }); err != nil {
				return err
			}
			if n := t.failed(); n > 0 {
				return fmt.Errorf("%d of %d cases failed", n, len(t.Cases))
			}
			return nil
		}}
	out.flag(c)
	c.Flags().BoolVar(&nobuild, "no-build", false, "test the module that is there")
	return c
}

// testPlugin builds a plugin and plays its cases.
func testPlugin(ctx context.Context, dir string, nobuild bool, log io.Writer) (*tested, error) {
	file := filepath.Join(dir, filepath.FromSlash(scaffold.ModuleFile))
	if !nobuild {
		var err error
		if file, err = scaffold.Build(ctx, dir, log); err != nil {
			return nil, err
		}
	}
	module, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	cases, err := readCases(filepath.Join(dir, "tests"))
	if err != nil {
		return nil, err
	}
	cache, err := os.MkdirTemp("", "dunlin-test-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(cache)
	r, rep, err := plugintest.New(ctx, module, cache)
	if err != nil {
		var refused *dunlin.ModuleError
		if errors.As(err, &refused) {
			return nil, fmt.Errorf("a node would refuse it (%s): %s", refused.Check, refused.Detail)
		}
		return nil, err
	}
	t := &tested{Module: file, Report: rep}
	for _, k := range cases {
		res, err := r.Play(ctx, k)
		if err != nil {
			return nil, errors.Join(err, r.Close())
		}
		t.Cases = append(t.Cases, res)
	}
	return t, r.Close()
}

func readCases(dir string) (cases []*plugintest.Case, err error) {
	files, err := filepath.Glob(filepath.Join(dir, "*.yaml"))
	if err != nil {
		return nil, err
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("there are no cases in %s: a case is a YAML file of steps, see docs/plugins.md", dir)
	}
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			return nil, err
		}
		k, err := plugintest.Parse(filepath.Base(f), text)
		if err != nil {
			return nil, err
		}
		cases = append(cases, k)
	}
	return cases, nil
}

func testTable(w io.Writer, t *tested) {
	row(w, "CASE", "STEPS", "FUEL/INPUT", "RESULT")
	for _, r := range t.Cases {
		result := "ok"
		if len(r.Problems) > 0 {
			result = fmt.Sprintf("%d problems", len(r.Problems))
		}
		row(w, r.Name, fmt.Sprint(r.Steps), fmt.Sprint(r.Fuel), result)
	}
	for _, r := range t.Cases {
		for _, p := range r.Problems {
			fmt.Fprintf(w, "\n%s: %s\n", r.Name, p)
		}
	}
}

func newPluginDev(env Env) *cobra.Command {
	r, name, once := remote{env: env}, "", false
	c := &cobra.Command{Use: "dev DIR", Short: "Build, test and upload a plugin at each save, to a node that runs", Args: exactArgs("DIR"),
		Long: "dev watches the folder. At each save it builds the plugin, plays its cases and, if they pass, makes the module the\n" +
			"active version on the node: the next reading is worked off by it. Ctrl-C ends it.",
		Example: "  dunlin dev &\n  dunlin plugin dev ./too-warm",
		RunE: func(c *cobra.Command, args []string) error {
			d := &devLoop{c: c, r: &r, dir: args[0], name: name}
			if d.name == "" {
				abs, err := filepath.Abs(args[0])
				if err != nil {
					return err
				}
				d.name = filepath.Base(abs)
			}
			if once {
				return d.turn()
			}
			return d.watch()
		}}
	r.flags(c)
	c.Flags().StringVar(&name, "name", "", "of the plugin; default the folder's name")
	c.Flags().BoolVar(&once, "once", false, "build, test and upload once")
	return c
}

// devLoop is one `plugin dev`.
type devLoop struct {
	c    *cobra.Command
	r    *remote
	dir  string
	name string
}

// turn builds, tests and uploads.
func (d *devLoop) turn() error {
	began := time.Now()
	t, err := testPlugin(d.c.Context(), d.dir, false, d.c.ErrOrStderr())
	if err != nil {
		return err
	}
	if n := t.failed(); n > 0 {
		testTable(d.c.OutOrStdout(), t)
		return fmt.Errorf("%d of %d cases failed; the node goes on with what it has", n, len(t.Cases))
	}
	module, err := os.ReadFile(t.Module)
	if err != nil {
		return err
	}
	cl, err := d.r.client()
	if err != nil {
		return err
	}
	p, err := cl.BringVersion(d.c.Context(), dunlin.PluginSettings{Name: d.name, Activate: true, Reason: "plugin dev", Source: "upload",
		IfRevision: dunlin.AnyRevision}, module)
	var problem *client.Error
	if errors.As(err, &problem) && problem.Check != "" {
		return fmt.Errorf("the module was refused (%s): %s", problem.Check, problem.Detail)
	}
	if err != nil {
		return d.r.explain(err)
	}
	fmt.Fprintf(d.c.OutOrStdout(), "%s runs %s (%d cases, %d bytes, %v)\n", d.name, p.Hash.String()[:12], len(t.Cases), len(module),
		time.Since(began).Round(10*time.Millisecond))
	return nil
}

// settleFor is how long a folder must be quiet before it is built: editors write more than once.
const settleFor = 150 * time.Millisecond

func (d *devLoop) watch() error {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return err
	}
	defer w.Close()
	if err := d.add(w, d.dir); err != nil {
		return err
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-d.c.Context().Done():
			return nil
		case err := <-w.Errors:
			return err
		case e := <-w.Events:
			if d.ours(e.Name) {
				if e.Has(fsnotify.Create) {
					_ = d.add(w, e.Name) // a folder, perhaps
				}
				timer.Reset(settleFor)
			}
		case <-timer.C:
			if err := d.turn(); err != nil && d.c.Context().Err() == nil {
				fmt.Fprintln(d.c.ErrOrStderr(), "error:", err)
			}
		}
	}
}

// add watches a folder and those below it that hold sources.
func (d *devLoop) add(w *fsnotify.Watcher, dir string) error {
	return filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.IsDir() {
			return err
		}
		if path != d.dir && !d.ours(path) {
			return fs.SkipDir
		}
		return w.Add(path)
	})
}

// ours reports whether a change of the file is a save, and not the build's own doing.
func (d *devLoop) ours(path string) bool {
	rel, err := filepath.Rel(d.dir, path)
	if err != nil {
		return false
	}
	for _, part := range strings.Split(filepath.ToSlash(rel), "/") {
		switch {
		case part == "build", part == "target", part == "node_modules", part == "Cargo.lock", strings.HasPrefix(part, ".") && part != ".", strings.HasSuffix(part, "~"):
			return false
		}
	}
	return true
}
