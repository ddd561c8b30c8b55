// Package crash is the crash suite: seeds drive the host of the replicas over the real store on a file system that forgets what
// was not synced, stop it at a random file operation, and check what is left against what was acknowledged. It has tests
// only; `go test ./internal/crash -seeds=5000` runs more of them.
// Part of the runtime; no compatibility promise before v1.
package crash
