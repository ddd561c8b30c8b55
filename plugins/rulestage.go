package plugins

import (
	"crypto/sha256"
	"fmt"
	"sync"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/plugins/rules"
)

// ruleSetsMax bounds the compiled rules that are kept; beyond it all are compiled anew.
const ruleSetsMax = 256

// ruleSets are compiled rules by their stage's hash.
type ruleSets struct {
	mu struct {
		sync.Mutex
		sets map[dunlin.ModuleHash]*rules.Set
	}
}

func (r *ruleSets) get(st *dunlin.Stage) (*rules.Set, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if s := r.mu.sets[st.Hash]; s != nil {
		return s, nil
	}
	if sum := dunlin.ModuleHash(sha256.Sum256(st.Rules)); sum != st.Hash {
		return nil, fmt.Errorf("%w: rules of stage %s have hash %s, not %s", dunlin.ErrInvalid, st.Plugin, sum, st.Hash)
	}
	s, err := rules.Parse(st.Rules)
	if err != nil {
		return nil, err
	}
	if r.mu.sets == nil || len(r.mu.sets) >= ruleSetsMax {
		r.mu.sets = make(map[dunlin.ModuleHash]*rules.Set)
	}
	r.mu.sets[st.Hash] = s
	return s, nil
}

// process works off the works of a stage that is rules.
func (r *ruleSets) process(st *dunlin.Stage, works []*dunlin.Work) {
	set, err := r.get(st)
	for _, work := range works {
		if err != nil { // PutDomain has compiled them: it takes another build to get here
			work.Outcome = dunlin.Outcome{Failure: "rules: " + err.Error()}
			continue
		}
		set.Run(st.Plugin, work)
	}
}
