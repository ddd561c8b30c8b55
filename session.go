package dunlin

// An MQTT session is a row of TableSessions in the shard of its key: whoever holds it (a connection at a node) has an
// epoch, which every claim raises, and only the holder of the newest epoch may change the row. What the session consists of
// is the gateway's business: to everybody else it is bytes.

// SessionBytesMax bounds what a gateway keeps of one session, in bytes.
const SessionBytesMax = 256 << 10

// SessionOpen is a connection's claim to a session.
type SessionOpen struct {
	Clean     bool   // what was before ends here
	Expiry    uint32 // how long it outlives its connection, in seconds; 0: not at all
	Will      []byte // what the gateway is to say if the connection, or its node, dies; nil: nothing
	WillDelay uint32 // how long the session may be without a connection before that, in seconds
}

// SessionOpened is a granted claim.
type SessionOpened struct {
	Epoch   uint64 // of this holding: greater than all before it
	Present bool   // there was a session, and Body is what its holders saved last
	Body    []byte
	// Exact: Body is how the last holder left the session. Otherwise that one was lost with its node, and what it did since it
	// saved is not in Body.
	Exact bool
	// Before is the epoch of a holding that this one replaced at the caller's own node; 0: there was none. Its holder knows
	// more than Body does.
	Before uint64
}

// SessionWill says what becomes of the will of a connection that is over.
type SessionWill uint8

// What becomes of a will.
const (
	WillForget SessionWill = iota // the client said goodbye
	WillDelay                     // it is said after its delay, unless the session has a connection by then
	WillSay                       // it is said at once
)

// SessionSave is a holder's news of its session.
type SessionSave struct {
	Key    DeviceKey
	Epoch  uint64
	Expiry uint32
	Body   []byte
	// Done: the connection is over, and from now on the expiry runs. An Expiry of 0 ends the session.
	Done bool
	Will SessionWill // with Done
	// Grace is how long, with Done, a will waits at least, in seconds: the node went, not the client, who will be back.
	Grace uint32
}
