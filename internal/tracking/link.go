package tracking

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
)

// A link is one connection to a node. One goroutine reads from it all the time,
// and writes what is due in between.
type link struct {
	n      *node
	ctx    context.Context // the link is wanted
	cancel context.CancelCauseFunc
	nc     net.Conn
	r      *bufio.Reader // over the link itself

	asked []question // under way, the oldest first
	beat  time.Time  // when the next is due
	alive string     // the command of a beat
	sent  int        // prefixes that the server was asked for
	since time.Time  // the first confirmation

	wakes sync.Mutex // guards woken, and the deadline of reads
	woken bool
}

// A question is a command whose reply is awaited.
type question struct {
	command  string
	prefixes int // that the server tells of if it accepts
	deadline time.Time
}

const (
	hello    = "HELLO"
	role     = "ROLE"
	ping     = "PING"
	tracking = "CLIENT TRACKING"
)

// lateness is how long what has arrived already is looked for when an answer is
// due: this process may have been the slow one.
const lateness = 10 * time.Millisecond

// run connects, asks the server to tell, and passes on what it tells until the
// connection breaks or is not wanted any more.
func (l *link) run() error {
	t := l.n.t
	ctx, cancel := context.WithTimeout(l.ctx, 2*t.cfg.Ping)
	defer cancel()
	nc, release, err := dial(l.ctx, ctx, l.n.opt)
	if err != nil {
		return err
	}
	defer release()
	t.connects.Inc()
	l.wakes.Lock()
	l.nc = nc
	l.wakes.Unlock()
	l.r = bufio.NewReaderSize(l, 16<<10)
	// In RESP 2 a server accepts CLIENT TRACKING and tells nothing.
	l.alive = role
	err = l.write(l.ask(nil, question{command: hello}, hello, "3"))
	for err == nil {
		err = l.frame()
	}
	return err
}

// Read reads from the connection, and meanwhile does what is due.
func (l *link) Read(p []byte) (int, error) {
	for {
		now := time.Now()
		due, overdue := now.Add(lateness), l.overdue(now)
		if overdue == nil {
			var err error
			if due, err = l.tend(now); err != nil {
				return 0, err
			}
		}
		if err := l.readUntil(due); err != nil {
			return 0, err
		}
		n, err := l.nc.Read(p)
		switch {
		case overdue != nil && (n == 0 || now.After(l.asked[0].deadline.Add(l.n.t.cfg.Ping))):
			return 0, overdue
		case n > 0 || !isTimeout(err):
			return n, err
		}
	}
}

// readUntil sets the deadline of the next read, which is over at once after wake.
func (l *link) readUntil(due time.Time) error {
	l.wakes.Lock()
	defer l.wakes.Unlock()
	if l.woken {
		l.woken = false
		due = time.Unix(1, 0)
	}
	return l.nc.SetReadDeadline(due)
}

// wake ends a read, so that the link looks at what is due.
func (l *link) wake() {
	l.wakes.Lock()
	defer l.wakes.Unlock()
	l.woken = true
	if l.nc != nil {
		_ = l.nc.SetReadDeadline(time.Unix(1, 0))
	}
}

func isTimeout(err error) bool {
	var timeout net.Error
	return errors.As(err, &timeout) && timeout.Timeout()
}

// overdue is an error if an answer should have come.
func (l *link) overdue(now time.Time) error {
	if len(l.asked) == 0 || now.Before(l.asked[0].deadline) {
		return nil
	}
	return fmt.Errorf("no answer to %s within %s", l.asked[0].command, l.n.t.cfg.Ping)
}

// tend sends what is due, and returns when to look again.
func (l *link) tend(now time.Time) (due time.Time, err error) {
	if l.beat.IsZero() { // before the answer to HELLO
		return l.asked[0].deadline, nil
	}
	var out []byte
	if !now.Before(l.beat) {
		if err := l.n.t.cn.Err(); err != nil { // the client does not know of this connection
			return due, err
		}
		l.beat = now.Add(l.n.t.cfg.Ping)
		out = l.ask(out, question{command: l.alive}, l.alive)
	}
	if err := l.write(l.track(out)); err != nil {
		return due, err
	}
	due = l.beat
	if len(l.asked) > 0 && l.asked[0].deadline.Before(due) {
		due = l.asked[0].deadline
	}
	return due, nil
}

// track asks for the prefixes that are new. The server refuses a command as a
// whole if one of them overlaps with what it has.
func (l *link) track(out []byte) []byte {
	added := l.n.t.prefixes.Load().added
	if len(added) == l.sent {
		return out
	}
	words := []string{"CLIENT", "TRACKING", "ON", "BCAST"}
	for _, p := range added[l.sent:] {
		words = append(words, "PREFIX", p.text)
	}
	l.sent = len(added)
	return l.ask(out, question{command: tracking, prefixes: l.sent}, words...)
}

// ask appends a command to out, which must be written then.
func (l *link) ask(out []byte, q question, words ...string) []byte {
	q.deadline = time.Now().Add(l.n.t.cfg.Ping)
	l.asked = append(l.asked, q)
	return appendCommand(out, words)
}

func (l *link) write(out []byte) error {
	if len(out) == 0 {
		return nil
	}
	if err := l.nc.SetWriteDeadline(time.Now().Add(l.n.t.cfg.Ping)); err != nil {
		return err
	}
	_, err := l.nc.Write(out)
	return err
}

// answered takes a reply, which is that to the oldest question.
func (l *link) answered(reply any) error {
	if len(l.asked) == 0 {
		return fmt.Errorf("%w: nothing was asked", errProtocol)
	}
	q := l.asked[0]
	l.asked = l.asked[1:]
	err, _ := reply.(replyError)
	switch {
	case err != "" && passing(err):
		return err
	case q.command == hello && err != "":
		return refusal(err)
	case q.command == hello:
		if version := field(reply, "proto"); version != int64(3) {
			return refusal(fmt.Errorf("HELLO 3 was answered with protocol %v", version))
		}
		l.beat = time.Now() // ROLE goes out before CLIENT TRACKING, whose answer counts
	case q.command == role && err != "": // forbidden, or unknown to a proxy
		l.alive = ping
	case q.command == role:
		return wrongRole(reply)
	case q.command == tracking && err != "":
		return refusal(err)
	case q.command == tracking:
		l.n.confirmed(l, q.prefixes)
	}
	return nil
}

// wrongRole is the error of what is not a primary: writes do not pass through it.
func wrongRole(reply any) error {
	if list, _ := reply.([]any); len(list) > 0 && (list[0] == "slave" || list[0] == "sentinel") {
		return fmt.Errorf("the server is no primary: it says %q", list[0])
	}
	return nil
}

// passing reports whether err says that the server cannot serve now, or not on
// this connection, rather than that it does not want to.
func passing(err error) bool {
	return redis.IsLoadingError(err) || redis.IsMasterDownError(err) || redis.IsClusterDownError(err) ||
		redis.IsTryAgainError(err) || redis.IsMaxClientsError(err) ||
		redis.HasErrorPrefix(err, "BUSY") || redis.HasErrorPrefix(err, "NOAUTH")
}

// told passes keys on to the functions of their prefixes.
type told struct {
	l      *link
	prefix *Prefix
	keys   []string
}

// batch is the greatest number of keys that a function gets.
const batch = 256

func (b *told) add(key string) {
	if b.prefix == nil || !b.prefix.covers(key) || len(b.keys) == batch {
		b.flush()
		if b.prefix = b.l.n.t.prefixes.Load().of(key); b.prefix == nil {
			return
		}
	}
	b.keys = append(b.keys, key)
}

func (b *told) flush() {
	if len(b.keys) == 0 {
		return
	}
	b.l.n.t.keys.Add(uint64(len(b.keys)))
	b.prefix.invalidate(b.keys)
	clear(b.keys)
	b.keys = b.keys[:0]
}
