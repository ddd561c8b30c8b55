package dunlin

import "errors"

// The errors that callers branch on. Every gateway has one table from these to its protocol's codes; anything else is an
// internal error. Wrap them with the operation and the subject; match with errors.Is.
var (
	ErrInvalid         = errors.New("invalid")                    // a name, number or document is malformed: 400, 4.00
	ErrBadPayload      = errors.New("bad payload")                // the payload does not parse: 400, 4.00
	ErrFormat          = errors.New("unsupported content format") // 415, 4.15
	ErrTooLarge        = errors.New("too large")                  // 413, 4.13, MQTT 0x95
	ErrUnauthenticated = errors.New("not authenticated")          // 401, 4.01, MQTT 0x86
	ErrForbidden       = errors.New("not allowed")                // 403, 4.03, MQTT 0x87
	ErrNotFound        = errors.New("not found")                  // 404, 4.04
	ErrUnknownDevice   = errors.New("unknown device")             // 404, 4.04, MQTT 0x90: the domain does not register strangers
	ErrConflict        = errors.New("conflict")                   // 409, 4.09: exists already, or still in use
	ErrPrecondition    = errors.New("precondition failed")        // 412, 4.12: If-Match names another revision
	ErrOverloaded      = errors.New("overloaded")                 // 503 + Retry-After, 5.03 + Max-Age, MQTT back-pressure
	ErrUnavailable     = errors.New("unavailable")                // no majority, closing, disk: answers as ErrOverloaded does
	ErrNotOwner        = errors.New("not the owner")              // the shard is led elsewhere or in a later term
	ErrCursorLost      = errors.New("position no longer kept")    // the journal was truncated past the cursor: 410
)
