package coap

import (
	"context"
	"fmt"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/protocols/coap/endpoint"
)

// errTimeout is the cause of a job's context when JobTimeout is over.
var errTimeout = fmt.Errorf("%w: took too long", dunlin.ErrUnavailable)

// plan is what a job is to do.
type plan struct {
	login   bool
	key     loginKey
	attempt dunlin.LoginAttempt

	twin      bool
	device    dunlin.DeviceID      // "": the principal's
	commands  bool                 // what is asked of the twin are its commands
	format    dunlin.ContentFormat // of the answer
	principal dunlin.Principal     // if login is not set; the worker sets it otherwise
}

// job is what a reader can't do itself because it may wait: a login, a twin, or one after the other. A worker fills the
// fields under "out"; until it has pushed the call nobody else touches the job.
type job struct {
	call     *call
	req      endpoint.Request // of datagram
	datagram []byte

	plan

	// out
	loginErr error
	twinErr  error
	body     []byte
}

// beginJob begins the request and gives it, with what is to be done for it, to the workers; or answers 5.03.
func (rd *reader) beginJob(in *inbound, what plan) {
	// Only twins and refusals are longer than what is kept for duplicates, and both can be had again.
	ref, ok := rd.m.Begin(rd.now, in.Request, true)
	if !ok {
		rd.busy(in)
		return
	}
	c := rd.newCall()
	c.ref, c.job = ref, rd.newJob()
	in.call = c
	j := c.job
	j.call, j.plan = c, what
	j.datagram = append(j.datagram[:0], in.Datagram...)
	if !j.req.Parse(j.datagram, in.Size) {
		panic("coap: a request no longer parses") // it did a moment ago
	}
	j.req.From, j.req.Peer, j.req.ID = in.From, in.Peer, in.ID
	select {
	case rd.g.jobs <- j:
	default:
		rd.busy(in)
	}
}

func (rd *reader) newJob() *job {
	if n := len(rd.idleJobs); n > 0 {
		j := rd.idleJobs[n-1]
		rd.idleJobs = rd.idleJobs[:n-1]
		return j
	}
	return new(job)
}

func (rd *reader) releaseJob(j *job) {
	const idleMax = 64
	if len(rd.idleJobs) < idleMax {
		*j = job{datagram: j.datagram[:0], body: j.body[:0]}
		rd.idleJobs = append(rd.idleJobs, j)
	}
}

// work does jobs until there are no more to come.
func (g *Gateway) work(ctx context.Context) {
	for j := range g.jobs {
		g.do(ctx, j)
		j.call.rd.push(j.call)
	}
}

func (g *Gateway) do(ctx context.Context, j *job) {
	ctx, cancel := context.WithTimeoutCause(ctx, g.cfg.JobTimeout, errTimeout)
	defer cancel()
	if j.login {
		if j.principal, j.loginErr = g.deps.Auth.Authenticate(ctx, j.attempt); j.loginErr != nil {
			j.loginErr = causeOf(ctx, j.loginErr)
			return
		}
		j.principal.Tenant = tenantOf(j.principal)
		if j.device == "" && j.principal.Kind == dunlin.PrincipalDevice {
			j.device = dunlin.DeviceID(j.principal.ID)
		}
	}
	if !j.twin || j.device == "" {
		return
	}
	key := dunlin.DeviceKey{Tenant: j.principal.Tenant, Device: j.device}
	if !j.principal.MayRead(key) {
		j.twinErr = dunlin.ErrForbidden
		return
	}
	tw, err := g.deps.Inspector.Twin(ctx, key)
	if err != nil {
		j.twinErr = causeOf(ctx, err)
		return
	}
	if j.commands {
		j.body = appendCommands(j.body[:0], tw.Commands, j.format)
		return
	}
	j.body = appendTwin(j.body[:0], tw, j.format)
}

// causeOf adds why ctx ended, which the callee's error need not say.
func causeOf(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("%w: %w", context.Cause(ctx), err)
	}
	return err
}

// jobDone goes on with a request whose job is done.
func (rd *reader) jobDone(c *call) {
	in := &rd.in
	in.read(&c.job.req)
	in.call = c
	if c.job.login && !rd.loggedIn(in, c.job) {
		return
	}
	switch in.target {
	case telemetry:
		rd.telemetry(in)
		return
	case result:
		rd.result(in)
		return
	}
	rd.twinAnswer(in, c.job)
}
