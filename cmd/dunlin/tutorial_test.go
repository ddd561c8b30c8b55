package main_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Who pastes the tutorials of plugins line by line ends with an alert that is raised and cleared: blocks whose fence names a
// file are written to it, those marked as shell are run, all in the order of the page.
func TestPluginTutorialsWork(t *testing.T) {
	sdk, err := filepath.Abs("../../sdk")
	if err != nil {
		t.Fatal(err)
	}
	for _, page := range []struct {
		file  string
		tools []string
		files int
		here  []string // what comes from the network, taken from this checkout
	}{
		{"plugins-rust.md", []string{"cargo", "curl"}, 4, []string{`git = "https://github.com/dunlin-iot/dunlin"`, `path = "` + sdk + `/rust"`}},
		{"plugins-c.md", []string{"clang", "wasm-ld", "curl"}, 3, []string{"curl -sSO https://raw.githubusercontent.com/dunlin-iot/dunlin/main/sdk/c/dunlin.h", "cp " + sdk + "/c/dunlin.h ."}},
		{"plugins-typescript.md", []string{"node", "npm", "curl"}, 4, npmHere(sdk)},
	} {
		t.Run(page.file, func(t *testing.T) {
			t.Parallel()
			for _, tool := range page.tools {
				builder(t, tool)
			}
			doc, err := os.ReadFile(filepath.Join("../../docs", page.file))
			if err != nil {
				t.Fatal(err)
			}
			n := start(t, "dev", "--sim", "0")
			script, files := pasted(string(doc))
			if files != page.files {
				t.Errorf("%d files in the page, want %d", files, page.files)
			}
			script = strings.NewReplacer(append(page.here, "127.0.0.1:8080", n.HTTP)...).Replace(script)
			cmd := exec.CommandContext(t.Context(), "bash", "-e", "-o", "pipefail", "-c", script)
			cmd.Dir = t.TempDir()
			cmd.WaitDelay = 10 * time.Second
			cmd.Env = append(os.Environ(), "DUNLIN_SERVER="+n.HTTP, "CARGO_NET_OFFLINE=true",
				"PATH="+filepath.Dir(binary)+string(os.PathListSeparator)+os.Getenv("PATH"))
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			first, last, _ := strings.Cut(string(out), "the door is open for 1 s")
			if !strings.Contains(first, "door-open") || !strings.Contains(last, "state: cleared") {
				t.Errorf("no alert that is raised, then cleared:\n%s", out)
			}
		})
	}
}

// npmHere takes AssemblyScript's compiler from this checkout, where it is there; else npm fetches it.
func npmHere(sdk string) []string {
	modules := filepath.Join(sdk, "assemblyscript", "node_modules")
	if _, err := os.Stat(filepath.Join(modules, "assemblyscript")); err != nil {
		return nil
	}
	return []string{"cd door-open", "cd door-open; mkdir -p node_modules/@dunlin; ln -s ../../sdk node_modules/@dunlin/plugin; ln -s " +
		filepath.Join(modules, ".bin") + " " + filepath.Join(modules, "assemblyscript") + " node_modules"}
}

// builder skips the test if a plugin's author's tool is missing.
func builder(t *testing.T, tool string) {
	t.Helper()
	_, err := exec.LookPath(tool)
	if err == nil && tool == "cargo" {
		var libs []byte
		if libs, err = exec.CommandContext(t.Context(), "rustc", "--print", "target-libdir", "--target", "wasm32-unknown-unknown").Output(); err == nil {
			_, err = os.Stat(strings.TrimSpace(string(libs)))
		}
	}
	if err != nil && os.Getenv("DUNLIN_FOREIGN") == "required" {
		t.Fatalf("%s: %v, and DUNLIN_FOREIGN=required", tool, err)
	}
	if err != nil {
		t.Skipf("SKIPPED: %s: %v", tool, err)
	}
}

// pasted returns a page's files and shell lines as one script.
func pasted(doc string) (script string, files int) {
	for i, block := range strings.Split("\n"+doc, "\n```") {
		fence, body, _ := strings.Cut(block, "\n")
		_, name, named := strings.Cut(fence, " ")
		switch {
		case i%2 == 0: // between blocks
		case named:
			script += "cat > " + name + " <<'END OF FILE'\n" + body + "\nEND OF FILE\n"
			files++
		case fence == "sh":
			script += body + "\n"
		}
	}
	return script, files
}
