package router

import (
	"context"

	"github.com/dunlin-iot/dunlin"
)

// Stage keeps a module ready for other nodes to fetch by its hash, until Unstage: one that is no plugin's, as a back-test's
// candidate. ErrOverloaded: too many are kept already.
func (m *Modules) Stage(hash dunlin.ModuleHash, module []byte) error { return m.stage(hash, module) }

// Unstage ends a Stage.
func (m *Modules) Unstage(hash dunlin.ModuleHash) { m.unstage(hash) }

// Fetch gets a module from a node, if it isn't here. It is not kept.
func (m *Modules) Fetch(ctx context.Context, from dunlin.NodeID, hash dunlin.ModuleHash) ([]byte, error) {
	return m.fetch(ctx, from, hash)
}
