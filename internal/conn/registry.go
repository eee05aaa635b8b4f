package conn

import (
	"crypto/tls"
	"errors"
	"io"
	"maps"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// cleanEvery is the pause between two runs of the cleaner.
const cleanEvery = 10 * time.Second

// A registry knows the open connections of a client: it closes those that lead
// to a server which is the primary no longer, and those that nobody has used for
// long, which go-redis does only when it happens to meet them.
type registry struct {
	idle    time.Duration // 0: no limit
	minIdle int

	gen     atomic.Uint64 // of connections that are made now
	ghosts  atomic.Int64  // closed here, and still in go-redis' pool
	cleaned atomic.Uint64 // closed by the cleaner

	// stuck, if set, is told of addresses that leave a command without a reply.
	// It must not block.
	stuck       func(addr string)
	readTimeout time.Duration

	mu     sync.Mutex
	conns  map[*tracked]struct{}
	timer  *time.Timer // of the cleaner; runs while there are connections
	looker *time.Timer // of look, likewise
	closed bool
}

func newRegistry(idle time.Duration, minIdle int) *registry {
	return &registry{idle: max(idle, 0), minIdle: minIdle, conns: make(map[*tracked]struct{})}
}

// add returns nc as a connection that the registry knows, dialled to addr in
// generation gen. It closes nc if that generation is over.
func (r *registry) add(nc net.Conn, addr string, gen uint64) (net.Conn, error) {
	t := &tracked{Conn: nc, reg: r, addr: addr, gen: gen}
	t.socket, _ = nc.(syscall.Conn)
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.closed:
		_ = nc.Close()
		return nil, ErrClosed
	case gen < r.gen.Load():
		_ = nc.Close()
		return nil, errRetired
	}
	r.conns[t] = struct{}{}
	if r.timer == nil && r.idle > 0 {
		r.timer = time.AfterFunc(cleanEvery, r.clean)
	}
	if r.looker == nil && r.stuck != nil {
		r.looker = time.AfterFunc(lookEvery, r.look)
	}
	return t, nil
}

// retire closes the connections of generation gen and before; what is made from
// now on is of a later one. It closes nothing twice, so that many who find the
// same fault do not close what was made meanwhile.
func (r *registry) retire(gen uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.gen.Load() > gen {
		return
	}
	r.gen.Store(gen + 1)
	for t := range r.conns {
		if t.gen <= gen {
			r.end(t)
		}
	}
}

// retireIdle is retire for a server that has become a replica and still answers,
// or is in doubt: what is under way is left to end, and nothing more is sent.
func (r *registry) retireIdle(gen uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.gen.Load() > gen {
		return
	}
	r.gen.Store(gen + 1)
	for t := range r.conns {
		if t.gen <= gen {
			t.use.Or(retiredBit)
		}
	}
}

// retireIdleAddr does the same to the connections to addr.
func (r *registry) retireIdleAddr(addr string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for t := range r.conns {
		if t.addr == addr {
			t.use.Or(retiredBit)
		}
	}
}

// retireAddr closes the connections to addr.
func (r *registry) retireAddr(addr string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for t := range r.conns {
		if t.addr == addr {
			r.end(t)
		}
	}
}

// end closes t, which go-redis does not know yet. The caller holds mu.
func (r *registry) end(t *tracked) {
	t.use.Or(endedBit)
	delete(r.conns, t)
	r.ghosts.Add(1)
	t.hangUp()
}

// clean closes the connections that were idle for too long, but leaves minIdle.
func (r *registry) clean() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return
	}
	now, left := time.Now(), make(map[string]int) // MinIdle is for each server
	for t := range r.conns {
		if t.reading.Load() == 0 {
			left[t.addr]++
		}
	}
	for t := range r.conns {
		use := t.use.Load()
		if t.reading.Load() > 0 || use != t.seen || t.since.IsZero() {
			t.seen, t.since = use, now
			continue
		}
		if retired := use&retiredBit != 0; !retired && (now.Sub(t.since) < r.idle || left[t.addr] <= r.minIdle) {
			continue
		}
		if !t.use.CompareAndSwap(use, use|endedBit) {
			continue // somebody has just begun to write
		}
		delete(r.conns, t)
		r.ghosts.Add(1)
		r.cleaned.Add(1)
		left[t.addr]--
		t.hangUp()
	}
	if len(r.conns) == 0 {
		r.timer = nil
		return
	}
	r.timer = time.AfterFunc(cleanEvery, r.clean)
}

// Times of look.
const (
	lookEvery  = 200 * time.Millisecond
	stuckAfter = 400 * time.Millisecond
	stuckAgain = 2 * time.Second // until the same command is told once more
)

// look finds connections on which a command has waited for its reply for longer
// than a healthy server takes. Blocking commands are known by their deadline,
// which lies beyond the read timeout.
func (r *registry) look() {
	var addrs []string
	r.mu.Lock()
	now := time.Now()
	for t := range r.conns {
		use := t.use.Load()
		switch {
		case !t.pending.Load():
			t.asked = time.Time{}
		case t.asked.IsZero() || use != t.askedUse:
			t.asked, t.askedUse = now, use
			deadline := t.deadline.Load()
			if deadline == 0 || deadline-now.UnixNano() > int64(r.readTimeout) {
				t.asked = now.Add(time.Hour) // it blocks
			}
		case now.Sub(t.asked) >= stuckAfter:
			addrs = append(addrs, t.addr)
			t.asked = now.Add(stuckAgain - stuckAfter)
		}
	}
	if r.closed || len(r.conns) == 0 {
		r.looker = nil
	} else {
		r.looker = time.AfterFunc(lookEvery, r.look)
	}
	r.mu.Unlock()
	for _, addr := range addrs {
		r.stuck(addr)
	}
}

// forget is told that go-redis has closed t.
func (r *registry) forget(t *tracked) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ok := r.conns[t]; ok {
		delete(r.conns, t)
		return
	}
	if !t.forgotten {
		t.forgotten = true
		r.ghosts.Add(-1)
	}
}

// close stops the cleaner.
func (r *registry) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
	for _, timer := range []*time.Timer{r.timer, r.looker} {
		if timer != nil {
			timer.Stop()
		}
	}
}

// addrs returns the addresses to which connections are open.
func (r *registry) addrs() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	seen := make(map[string]struct{})
	for t := range r.conns {
		seen[t.addr] = struct{}{}
	}
	return slices.Collect(maps.Keys(seen))
}

// open is the number of connections that are open.
func (r *registry) open() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.conns)
}

// errRetired is the error of connections that the registry has closed.
var errRetired error = &retiredError{}

type retiredError struct{}

func (*retiredError) Error() string {
	return "connection closed: its server is not the primary any more"
}
func (*retiredError) BreakerNeutral() bool { return true }
func (*retiredError) Unwrap() error        { return net.ErrClosed }

// A tracked connection tells apart what the server may have seen from what never
// left, and knows whether it is in use.
type tracked struct {
	net.Conn
	socket syscall.Conn // the same; nil where it is none that can be looked at
	reg    *registry
	addr   string
	gen    uint64

	use      atomic.Uint64 // writes begun; endedBit once the registry has closed it
	pending  atomic.Bool   // something was written since the last reply
	reading  atomic.Int32
	deadline atomic.Int64 // of reads, in Unix ns; 0: none
	heard    atomic.Int64 // when something was read last, since the start; 0: never

	// Of the registry, guarded by its mutex.
	seen      uint64 // use, when the cleaner last looked, and since when it is the same
	since     time.Time
	askedUse  uint64 // the same of look
	asked     time.Time
	forgotten bool
}

const (
	endedBit   = 1 << 63
	retiredBit = 1 << 62 // nothing more is to be sent
)

func (t *tracked) Write(p []byte) (int, error) {
	if use := t.use.Add(1); use&endedBit != 0 || use&retiredBit != 0 && !t.pending.Load() {
		return 0, t.failed(errRetired)
	}
	n, err := t.Conn.Write(p)
	if err != nil {
		if n > 0 {
			t.pending.Store(true)
		}
		return n, t.failed(err)
	}
	if !t.pending.Load() {
		t.pending.Store(true)
	}
	return n, nil
}

// failed says of an error whether the server has seen nothing of the command.
func (t *tracked) failed(err error) error {
	if t.use.Load()&endedBit != 0 {
		err = errRetired
	}
	if t.pending.Load() {
		return err
	}
	return &unsentError{err: err}
}

func (t *tracked) Read(p []byte) (int, error) {
	t.reading.Add(1)
	n, err := t.Conn.Read(p)
	t.reading.Add(-1)
	if n > 0 && t.pending.Load() {
		t.pending.Store(false)
	}
	if n > 0 && t.socket != nil {
		t.heard.Store(int64(time.Since(start)))
	}
	if err != nil && t.use.Load()&endedBit != 0 && (errors.Is(err, net.ErrClosed) || errors.Is(err, io.ErrClosedPipe)) {
		err = errRetired
	}
	return n, err
}

func (t *tracked) SetReadDeadline(at time.Time) error {
	if t.reg.stuck != nil {
		t.note(at)
	}
	return t.deadlineSet(t.Conn.SetReadDeadline(at))
}

func (t *tracked) SetWriteDeadline(at time.Time) error {
	return t.deadlineSet(t.Conn.SetWriteDeadline(at))
}

func (t *tracked) SetDeadline(at time.Time) error {
	if t.reg.stuck != nil {
		t.note(at)
	}
	return t.deadlineSet(t.Conn.SetDeadline(at))
}

// deadlineSet is the outcome of setting a deadline, which fails where the
// registry has just closed the connection.
func (t *tracked) deadlineSet(err error) error {
	if err == nil {
		return nil
	}
	return t.failed(err)
}

func (t *tracked) note(deadline time.Time) {
	if deadline.IsZero() {
		t.deadline.Store(0)
		return
	}
	t.deadline.Store(deadline.UnixNano())
}

func (t *tracked) Close() error {
	t.reg.forget(t)
	return t.Conn.Close()
}

// hangUp closes the connection at once: closing a TLS connection may wait for its
// peer.
func (t *tracked) hangUp() {
	if secure, ok := t.Conn.(*tls.Conn); ok {
		_ = secure.NetConn().Close()
		return
	}
	_ = t.Conn.Close()
}

// justHeard is for how long a connection is taken for healthy after its peer was
// heard: who hangs up meanwhile could as well do so right after the look.
const justHeard = 250 * time.Microsecond

var start = time.Now()

// SyscallConn is where go-redis looks whether the peer of a pooled connection has
// hung up, which costs a system call for each command. One that is retired is of no
// use; at TLS it cannot look.
func (t *tracked) SyscallConn() (syscall.RawConn, error) {
	if t.use.Load()&(endedBit|retiredBit) != 0 {
		return nil, errRetired
	}
	if heard := t.heard.Load(); t.socket != nil && (heard == 0 || int64(time.Since(start))-heard > int64(justHeard)) {
		return t.socket.SyscallConn()
	}
	return opaque{}, nil
}

// opaque is a connection at which nobody looks: it passes for healthy.
type opaque struct{}

func (opaque) Control(func(uintptr)) error    { return nil }
func (opaque) Read(func(uintptr) bool) error  { return nil }
func (opaque) Write(func(uintptr) bool) error { return nil }
