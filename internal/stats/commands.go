package stats

import "time"

// A Family is a group of commands whose latencies belong together. The set is
// small and fixed, so that a label made of it is bounded.
type Family uint8

// The families. A pipeline and a transaction count once each, whatever they hold.
const (
	Read        Family = iota // GET, HGETALL, …: no replica would refuse it
	Write                     // SET, DEL, XADD, …
	Script                    // EVAL, EVALSHA, FCALL
	Blocking                  // BLPOP, XREADGROUP … BLOCK, WAIT: the time is mostly waiting
	Pipeline                  // commands sent together
	Transaction               // MULTI … EXEC
	Other                     // all the rest
	families
)

var familyNames = [families]string{"read", "write", "script", "blocking", "pipeline", "transaction", "other"}

func (f Family) String() string { return familyNames[f] }

// An ErrorClass says why a command failed, for a bounded label.
type ErrorClass uint8

// The classes. redis.Nil is no error.
const (
	Canceled    ErrorClass = iota // the caller's context was cancelled
	Deadline                      // the caller's deadline passed
	Timeout                       // the server did not answer in time
	Dial                          // no connection could be made
	Network                       // a connection broke
	PoolTimeout                   // no connection became free within Pool.MaxWait
	BreakerOpen                   // refused by the circuit breaker
	Auth                          // NOAUTH, WRONGPASS, NOPERM
	Unavailable                   // LOADING, MASTERDOWN, CLUSTERDOWN, TRYAGAIN, BUSY, max clients
	ReadOnly                      // READONLY, NOREPLICAS, MISCONF
	OutOfMemory                   // OOM
	Closed                        // the client is closed, or its role is not configured
	Reply                         // any other error reply
	errorClasses
)

var errorClassNames = [errorClasses]string{
	"canceled", "deadline", "timeout", "dial", "network", "pool_timeout", "breaker_open",
	"auth", "unavailable", "read_only", "out_of_memory", "closed", "reply",
}

func (c ErrorClass) String() string { return errorClassNames[c] }

// Commands counts the commands of one client.
type Commands struct {
	latency   [families]Histogram
	errors    [errorClasses]Counter
	pipelined Counter
}

// Observe counts a command, pipeline or transaction of the family that took d.
func (c *Commands) Observe(f Family, d time.Duration) { c.latency[f].Observe(d) }

// Pipelined counts the n commands of a pipeline or transaction.
func (c *Commands) Pipelined(n int) { c.pipelined.Add(uint64(n)) }

// Failed counts a failed command.
func (c *Commands) Failed(class ErrorClass) { c.errors[class].Inc() }

// A CommandsSnapshot is what [Commands] held at one moment. It lists every
// family and every class, also those that are still at zero.
type CommandsSnapshot struct {
	Latency   []FamilyLatency
	Errors    []ErrorCount
	Pipelined uint64 // commands inside pipelines and transactions
}

// A FamilyLatency is the latency of one family of commands.
type FamilyLatency struct {
	Family string
	HistogramSnapshot
}

// An ErrorCount counts the failed commands of one class.
type ErrorCount struct {
	Class string
	Count uint64
}

// Total is the number of commands, pipelines and transactions so far.
func (s CommandsSnapshot) Total() uint64 {
	var n uint64
	for i := range s.Latency {
		n += s.Latency[i].Count
	}
	return n
}

// Failed is the number of failed commands so far.
func (s CommandsSnapshot) Failed() uint64 {
	var n uint64
	for _, e := range s.Errors {
		n += e.Count
	}
	return n
}

// Snapshot returns what c holds.
func (c *Commands) Snapshot() CommandsSnapshot {
	s := CommandsSnapshot{
		Latency:   make([]FamilyLatency, families),
		Errors:    make([]ErrorCount, errorClasses),
		Pipelined: c.pipelined.Load(),
	}
	for f := range families {
		s.Latency[f] = FamilyLatency{Family: f.String(), HistogramSnapshot: c.latency[f].Snapshot()}
	}
	for class := range errorClasses {
		s.Errors[class] = ErrorCount{Class: class.String(), Count: c.errors[class].Load()}
	}
	return s
}
