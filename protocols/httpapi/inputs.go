package httpapi

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"

	"github.com/dunlin-iot/dunlin"
)

// The types in this file are parts of several operations' inputs. They have capital names only because huma looks into
// embedded structs whose names are exported, and silently passes over others.

// DevicePath is the {id} of a device's routes; serveRoute has checked it.
type DevicePath struct {
	ID string `path:"id" doc:"Device id"`
}

// DomainPath is the {id} of a domain's routes.
type DomainPath struct {
	ID string `path:"id" doc:"Domain id"`
}

func (p DomainPath) domain() (dunlin.DomainID, error) {
	id := dunlin.DomainID(p.ID)
	return id, id.Validate()
}

// PluginPath is the {name} of a plugin's routes.
type PluginPath struct {
	Name string `path:"name" doc:"Plugin name"`
}

// CredentialPath names a credential.
type CredentialPath struct {
	Kind string `path:"kind" enum:"device,gateway,application,operator"`
	ID   string `path:"id" maxLength:"64" doc:"Device id, user name or token name"`
}

// PageInput is what every list with pages takes.
type PageInput struct {
	Limit  int         `query:"limit" minimum:"1" maximum:"1000" default:"100" doc:"Items a page"`
	Cursor cursorParam `query:"cursor" doc:"Opaque; of a page's next link"`
}

// AlertsInput filters alerts.
type AlertsInput struct {
	PageInput
	ReadInput
	State    string `query:"state" enum:"raised,acknowledged,shelved,cleared" doc:"Only in this state"`
	Active   bool   `query:"active" doc:"Only those not cleared"`
	Severity string `query:"severity" enum:"info,warning,major,critical" doc:"At least this"`
	Domain   string `query:"domain" doc:"Only this domain's"`
}

// TagInput makes a GET conditional.
type TagInput struct {
	IfNoneMatch string `header:"If-None-Match" doc:"ETag that the client has: answers 304 if it is still right"`
}

// Condition is what a change's If-Match and If-None-Match headers ask of the revision there is.
type Condition struct {
	IfMatch     string `header:"If-Match" doc:"Change only this revision, as its ETag names it; * for any that exists"`
	IfNoneMatch string `header:"If-None-Match" doc:"*: only create"`
}

// revision translates the headers for the Registrar; current is asked only for "If-Match: *".
func (c Condition) revision(current func() (uint64, error)) (uint64, error) {
	switch {
	case c.IfMatch != "" && c.IfNoneMatch != "":
		return 0, invalidValue("header.If-None-Match", "If-Match and If-None-Match exclude each other here", c.IfNoneMatch)
	case c.IfNoneMatch == "*":
		return 0, nil
	case c.IfNoneMatch != "":
		return 0, invalidValue("header.If-None-Match", "only * (create, don't replace) makes sense in a change", c.IfNoneMatch)
	case c.IfMatch == "":
		return dunlin.AnyRevision, nil
	case c.IfMatch == "*":
		n, err := current()
		if p := problemOfNotFound(err); p != nil {
			return 0, p
		}
		return n, err
	}
	digits, ok := strings.CutPrefix(c.IfMatch, `"`)
	digits, ok2 := strings.CutSuffix(digits, `"`)
	n, err := strconv.ParseUint(digits, 10, 64)
	if !ok || !ok2 || err != nil || n == 0 || n == dunlin.AnyRevision {
		// A tag that was never ours cannot match.
		return 0, fmt.Errorf("%w: If-Match %s names no revision; take the ETag of a GET", dunlin.ErrPrecondition, cut(c.IfMatch))
	}
	return n, nil
}

// problemOfNotFound makes a 412 of a 404: "If-Match: *" on nothing fails as a precondition (RFC 9110 §13.1.1).
func problemOfNotFound(err error) *Problem {
	if err == nil || problemOf(err).Status != http.StatusNotFound {
		return nil
	}
	return problemOf(fmt.Errorf("%w: there is nothing to match", dunlin.ErrPrecondition))
}
