package lock

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redisha/redisha/internal/conn"
)

// A member is one node of a quorum: which server it is, since when that runs, and
// whether it answers.
type member struct {
	*node
	quorum *quorum
	number int    // its place in quorum.members
	name   string // in errors and logs

	dials   atomic.Uint64 // connections made
	known   atomic.Bool   // it was found which server this is, or that it does not tell
	vouched atomic.Uint64 // one more than the dials up to which that holds
	mute    atomic.Bool   // it does not tell
	born    atomic.Int64  // when the server was started, at the latest; by quorum.clock
	lead    atomic.Int64  // how far its clock is ahead of quorum.clock, µs; 0: unknown

	// Guarded by quorum.mu.
	runID string
	seen  time.Duration // when the server told it last

	wrong atomic.Bool // that it is no node of a quorum was logged

	mu       sync.Mutex
	calls    int           // under way
	begun    time.Duration // when the first of those began, or an earlier one; by quorum.clock
	answered time.Duration // when a call was answered last
	missed   time.Duration // when the last one began that was not answered
	absent   bool          // its silence was logged
	sick     []*Lease      // to be healed here
	healing  bool
}

var (
	errMissing    = errors.New("it has not answered in time")
	errSilent     = errors.New("it has not answered of late, and is being tried again")
	errSameServer = errors.New("two addresses lead to the same server, whose vote counts once: give each node a server of its own")
	errCluster    = errors.New("a quorum wants independent servers, and this one belongs to a Cluster: give locks servers of their own")
)

// A youngError says that a server was started so lately that it may have
// forgotten leases which hold still.
type youngError struct{ age, wait time.Duration }

func (e *youngError) Error() string {
	return fmt.Sprintf("it was started %s ago and may have forgotten leases: it takes part in %s",
		e.age.Round(time.Millisecond), e.wait.Round(time.Millisecond))
}

func newMember(q *quorum, cn *conn.Client, number int) *member {
	m := &member{node: newNode(q.client, cn), quorum: q, number: number, name: fmt.Sprintf("node %d", number+1)}
	if addr := addrOf(cn); addr != "" {
		m.name += " (" + addr + ")"
	}
	m.sweeper.limit, m.sweeper.keep = nodeTimeoutMost, sweepMost
	cn.AddHook(dialCounter{&m.dials})
	return m
}

// A dialCounter counts connections when they are made.
type dialCounter struct{ n *atomic.Uint64 }

func (c dialCounter) DialHook(next redis.DialHook) redis.DialHook {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		nc, err := next(ctx, network, addr)
		c.n.Add(1)
		return nc, err
	}
}

func (dialCounter) ProcessHook(next redis.ProcessHook) redis.ProcessHook { return next }

func (dialCounter) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

// begin admits a call, and end must follow; or it says why there is no use in one.
// While a server does not answer, one call at a time waits for it, so that they
// do not pile up.
func (m *member) begin() error {
	now := m.quorum.clock()
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.calls > 0 && m.silent(now) {
		if !m.absent {
			m.absent = true
			m.client.log.Warn("a node of the lock quorum does not answer", "node", m.name)
		}
		return errSilent
	}
	if m.calls++; m.calls == 1 {
		m.begun = now
	}
	return nil
}

// silent reports whether calls are not answered: the last that ended was not,
// and no other has been since it began; or those under way have waited for long.
// The caller holds mu.
func (m *member) silent(now time.Duration) bool {
	return m.missed > m.answered || m.calls > 0 && now-max(m.answered, m.begun) > nodeTimeoutMost
}

func (m *member) isSilent(now time.Duration) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.silent(now)
}

// end takes note of how a call that began at the given time has ended.
func (m *member) end(begun time.Duration, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.calls--
	switch {
	case err == nil, errors.Is(err, ErrNotAcquired), isReply(err):
		m.answered = m.quorum.clock()
		if m.absent {
			m.absent = false
			m.client.log.Info("a node of the lock quorum answers again", "node", m.name)
		}
	case errors.As(err, new(*youngError)), misconfigured(err): // it was not asked, or has said so
	case !errors.Is(err, ErrClosed):
		m.missed = max(m.missed, begun)
	}
}

// blame logs that a member was found to be something else than a node of a quorum:
// the locks go on without it, and somebody has to see to it.
func (m *member) blame(err error) {
	switch {
	case misconfigured(err):
		if m.wrong.CompareAndSwap(false, true) {
			m.client.log.Error("a node of the lock quorum takes no part", "node", m.name, "err", err)
		}
	case m.wrong.Load() && (err == nil || errors.Is(err, ErrNotAcquired)):
		m.wrong.Store(false)
	}
}

// hears takes note of a server's clock, as it was when the answer was sent: its
// lead comes out too small by the way of the answer, and never too large. Were it
// counted from the question, a slow answer would put tokens so far into the future
// that they went back when all counters are lost.
func (m *member) hears(now time.Duration) {
	m.lead.Store((now - m.quorum.clock()).Microseconds())
}

// fit says why the member cannot take part, or returns nil. It asks the server
// who it is if that is not known.
func (m *member) fit(ctx context.Context) error {
	if err := m.admit(ctx); err != nil {
		return err
	}
	if m.known.Load() {
		return nil
	}
	return m.identify(ctx)
}

// vouch makes sure that what is known of the server held until now: that no
// connection has been made since it was asked, as one must be after a restart.
func (m *member) vouch(ctx context.Context) error {
	if m.mute.Load() || m.vouched.Load() == m.dials.Load()+1 {
		return nil
	}
	return m.identify(ctx)
}

// seasoned says why the server could not be trusted with a new lease at the given
// time, or returns nil: whatever it had granted before it was started has ended.
func (m *member) seasoned(at time.Duration) error {
	longest := m.quorum.longest + margin(m.quorum.longest)
	if age := at - time.Duration(m.born.Load()); age < longest && m.known.Load() && !m.mute.Load() {
		return &youngError{max(age, 0), longest - age}
	}
	return nil
}

// absence is NodeStats.Absent.
func (m *member) absence() string {
	now := m.quorum.clock()
	switch {
	case m.wrong.Load():
		return "unfit"
	case m.isSilent(now):
		return "silent"
	case m.seasoned(now) != nil:
		return "young"
	}
	return ""
}

// identify asks the server which one it is and since when it runs.
// https://redis.io/docs/latest/commands/info/
func (m *member) identify(ctx context.Context) error {
	q := m.quorum
	dials, sent := m.dials.Load(), q.clock()
	pipe := m.conn.Pipeline()
	info, clock := pipe.Info(ctx, "server"), pipe.Time(ctx)
	conn.Exec(ctx, pipe)
	if err := clock.Err(); err == nil {
		m.hears(time.Duration(clock.Val().UnixMicro()) * time.Microsecond)
	}
	if err := info.Err(); err != nil && !isRefusal(err) {
		return err
	}
	server := parseInfo(info.Val())
	if server["redis_mode"] == "cluster" || server["server_mode"] == "cluster" { // the latter is Valkey's
		return errCluster
	}
	uptime, err := strconv.ParseInt(server["uptime_in_seconds"], 10, 64)
	if server["run_id"] == "" || err != nil {
		if m.client.cfg.Strict {
			return fmt.Errorf("%w (it does not tell since when it runs: allow the user INFO)", ErrUnsafeEndpoint)
		}
		m.mute.Store(true)
		m.known.Store(true)
		m.client.log.Warn("a node of the lock quorum does not tell since when it runs: if it restarts and forgets leases, a lock can have two holders; "+
			"allow the user INFO", "node", m.name, "err", info.Err())
		return nil
	}
	now := q.clock()
	born := min(now, now-time.Duration(uptime-1)*time.Second) // both ends of uptime are cut to seconds

	q.mu.Lock()
	defer q.mu.Unlock()
	for _, o := range q.members {
		if o != m && o.runID == server["run_id"] {
			m.runID = ""
			m.known.Store(false)
			return fmt.Errorf("%w (this is also %s)", errSameServer, o.name)
		}
	}
	if m.runID != "" && m.runID != server["run_id"] && born < m.seen {
		born = now // its clock was set meanwhile: another server was here then
	}
	m.runID, m.seen = server["run_id"], sent
	m.born.Store(int64(born))
	m.known.Store(true)
	m.vouched.Store(dials + 1)
	return nil
}

// isRefusal reports whether the server answers that it will not, now or later.
func isRefusal(err error) bool {
	return redis.IsPermissionError(err) || redis.HasErrorPrefix(err, "ERR")
}

func parseInfo(text string) map[string]string {
	fields := make(map[string]string)
	for line := range strings.Lines(text) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), ":"); ok {
			fields[name] = value
		}
	}
	return fields
}
