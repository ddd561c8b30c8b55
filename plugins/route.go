package plugins

import (
	"sync/atomic"
	"unsafe"

	"github.com/dunlin-iot/dunlin"
)

// route is what a call of Process with a stage needs, found once: stages stay as they are until the registry changes.
type route struct {
	st      *dunlin.Stage
	hash    dunlin.ModuleHash
	config  *byte
	bytes   int
	share   int
	tenant  dunlin.Tenant
	domain  dunlin.DomainID
	flow    *flow
	pool    *pool
	verdict *verdict
	grants  grants
}

// routes is a direct-mapped cache by the stage's address.
type routes [64]atomic.Pointer[route]

func (rs *routes) slot(st *dunlin.Stage) *atomic.Pointer[route] {
	return &rs[spread(uintptr(unsafe.Pointer(st)))]
}

// spread makes 6 bits of an address.
func spread(p uintptr) uint64 { return uint64(p) * 0x9e3779b97f4a7c15 >> 58 }

func (rs *routes) find(st *dunlin.Stage, tenant dunlin.Tenant, domain dunlin.DomainID) *route {
	r := rs.slot(st).Load()
	if r == nil || r.st != st || r.hash != st.Hash || r.config != unsafe.SliceData(st.Config) || r.bytes != len(st.Config) ||
		r.share != st.Share || r.domain != domain || r.tenant != tenant || r.pool.gone.Load() {
		return nil
	}
	return r
}

func (rs *routes) forget() {
	for i := range rs {
		rs[i].Store(nil)
	}
}

// route returns what the stage runs on. A domain's flow and pool are made at first use.
func (h *Host) route(domain dunlin.DomainID, st *dunlin.Stage, tenant dunlin.Tenant, now dunlin.Time) (*route, error) {
	if r := h.routes.find(st, tenant, domain); r != nil {
		return r, nil
	}
	r := &route{st: st, hash: st.Hash, config: unsafe.SliceData(st.Config), bytes: len(st.Config), share: st.Share,
		tenant: tenant, domain: domain, flow: h.gate.flow(tenant, domain, st.Share)}
	if st.Rules != nil {
		return r, nil
	}
	var err error
	if r.pool, err = h.pool(st, now); err != nil {
		return r, err
	}
	r.verdict, r.grants = r.pool.module.verdict(tenant), r.pool.module.manifest.grants()
	h.routes.slot(st).Store(r)
	return r, nil
}
