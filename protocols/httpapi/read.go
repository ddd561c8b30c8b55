package httpapi

import (
	"context"
	"net/url"

	"github.com/danielgtaylor/huma/v2"

	"github.com/dunlin-iot/dunlin"
)

// readHeader tells at which level a question was answered.
const readHeader = "Dunlin-Read"

// ReadInput is what every question about what is kept takes: how fresh the answer must be.
type ReadInput struct {
	Read readParam `query:"read" doc:"How fresh the answer must be. leader (the default): it holds all that was acknowledged before. stale=10s: a node may answer whose replica was known to be up to date no longer than this ago, which is faster and works while a majority can't be reached"`
}

func (in *ReadInput) readLevel() dunlin.ReadLevel { return in.Read.level }

// readParam is a read level in a query.
type readParam struct{ level dunlin.ReadLevel }

// UnmarshalText makes readParam a huma parameter.
func (p *readParam) UnmarshalText(b []byte) (err error) {
	p.level, err = dunlin.ParseReadLevel(string(b))
	return err
}

// Schema documents the parameter.
func (readParam) Schema(huma.Registry) *huma.Schema {
	return &huma.Schema{Type: huma.TypeString, Pattern: `^(leader|stale=.+)$`, Examples: []any{"leader", "stale=10s"}}
}

// again makes the query of a next page ask at the same level.
func (p readParam) again(q url.Values) url.Values {
	if p.level.Stale > 0 {
		q.Set("read", p.level.String())
	}
	return q
}

// question registers an operation that only asks: the rooms behind see its level in the context, and the client in a header.
func question[I, O any](a *api, op huma.Operation, h func(ctx context.Context, c *call, in *I) (*O, error)) {
	operation(a, op, func(ctx context.Context, c *call, in *I) (*O, error) {
		if l, ok := any(in).(interface{ readLevel() dunlin.ReadLevel }); ok {
			level := l.readLevel()
			ctx = dunlin.WithReadLevel(ctx, level)
			c.Header().Set(readHeader, level.String())
		}
		return h(ctx, c, in)
	})
	ok := a.huma.OpenAPI().Paths[op.Path].Get.Responses["200"]
	if ok.Headers == nil {
		ok.Headers = map[string]*huma.Param{}
	}
	ok.Headers[readHeader] = &huma.Param{Description: "The read level that was asked for", Schema: &huma.Schema{Type: huma.TypeString}}
}

// lacking adds to a page which shards it lacks.
func (out *listOutput[T]) lacking(missing []dunlin.MissingShard) *listOutput[T] {
	out.Body.Missing = missing
	return out
}
