package coalesce

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"runtime/debug"
	"strings"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redisha/redisha/internal/conn"
	"github.com/redisha/redisha/internal/lanes"
)

// A Value is what was under a key, and belongs to one goroutine. It may be a view
// of memory that is used again once it is released. The zero Value is nothing.
type Value struct {
	bytes []byte
	batch *batch // nil: the bytes are nobody else's
	node  string
}

// Bytes returns the bytes, which must not be changed, and are valid until Release;
// nil if there was no value, and empty but not nil if that was empty.
func (v *Value) Bytes() []byte { return v.bytes }

// Shared reports whether the bytes are a view of memory that others have as well.
// If not, they are the caller's, who may keep them beyond Release.
func (v *Value) Shared() bool { return v.batch != nil }

// Node returns the address of the node of a Cluster that has sent the value, if it
// was the one that [Reader.Node] had for the key when the read was sent; else, and
// without Cluster, it is "".
func (v *Value) Node() string { return v.node }

// Release gives the memory back. A Value must be released once, and its copies not
// at all; to release the same variable again does nothing. One that is never
// released costs the memory of its batch until the garbage collector finds it.
func (v *Value) Release() {
	b := v.batch
	*v = Value{}
	if b != nil {
		b.release()
	}
}

// A batch is what travels together, with the memory of its reply.
type batch struct {
	r    *Reader
	slot *slot // of all its readers; nil without a limit
	end  *end

	// Under queue.mu, until it departs.
	keys     []string
	places   [2 * maxKeys]uint16 // a hash table: 1 + where a key is in keys
	full     int                 // how many keys it may have
	readers  int                 // seats that wait
	deadline time.Time           // the latest one of its readers
	endless  bool                // a reader has none
	grouped  bool                // somebody waits for more than one of its keys

	// Under queue.mu.
	departed bool
	left     int // readers who did not wait for the end
	cancel   context.CancelFunc

	granted lanes.Ticket // its one reader reads the key itself, on this lane
	reply   reply
	err     error  // of all keys
	node    string // that has answered; see Value.Node
	holders atomic.Int32
}

// poison, in tests, makes the use of memory that was given back show.
var poison bool

// Memory above these is not kept for the next batch.
const keepBytes = maxBytes + maxBytes/2

func (r *Reader) newBatch(s *slot) *batch {
	b, _ := r.batches.Get().(*batch)
	if b == nil {
		b = &batch{r: r}
	}
	b.end, b.slot = newEnd(), s
	if s != nil {
		s.add(b.end)
	}
	b.full = r.sizes.keys()
	return b
}

// release is told that one of those who hold the batch needs it no more.
func (b *batch) release() {
	if b.holders.Add(-1) == 0 {
		b.recycle()
	}
}

func (b *batch) recycle() {
	if poison {
		for i := range b.reply.bytes[:cap(b.reply.bytes)] {
			b.reply.bytes[:cap(b.reply.bytes)][i] = 0xDB
		}
	}
	bytes := b.reply.bytes[:0]
	if cap(bytes) > keepBytes {
		bytes = nil
	}
	clear(b.keys)
	clear(b.reply.answers)
	*b = batch{
		r: b.r, keys: b.keys[:0],
		reply: reply{bytes: bytes, answers: b.reply.answers[:0]},
	}
	b.r.batches.Put(b)
}

// add gives a reader a seat.
func (b *batch) add(key string, t *term) (index int) {
	b.readers++
	if t.deadline.IsZero() {
		b.endless = true
	} else if t.deadline.After(b.deadline) {
		b.deadline = t.deadline
	}
	place := b.place(key)
	if index = int(*place) - 1; index >= 0 {
		b.r.counts.shared.Inc()
		return index
	}
	b.keys = append(b.keys, key)
	*place = uint16(len(b.keys)) //nolint:gosec // at most maxKeys
	return len(b.keys) - 1
}

// place returns where a key is, or would be. There is always one: half of them are
// free. (A map costs four times as much.)
func (b *batch) place(key string) *uint16 {
	for i := maphash.String(b.r.sizes.seed, key); ; i++ {
		place := &b.places[i%uint64(len(b.places))]
		if *place == 0 || b.keys[*place-1] == key {
			return place
		}
	}
}

// A seat is where somebody waits for a key.
type seat struct {
	queue *queue
	batch *batch
	index int
}

// wait returns when the batch is answered, or the time is over, with an error then.
// If the reader is to read the key itself, it returns the ticket for that.
func (s seat) wait(ctx context.Context) (granted lanes.Ticket, err error) {
	b := s.batch
	end := b.end
	if left := ctx.Done(); left == nil {
		<-end.done
	} else {
		select {
		case <-end.done:
		case <-left:
			// Of several reads another one may have taken all the time: what has been
			// answered meanwhile is taken.
			if end.how.Load() != answered || b.granted.Admitted {
				err = context.Cause(ctx)
			}
		}
	}
	if err == nil && end.how.Load() == expired {
		err = context.DeadlineExceeded
	}
	if err != nil && s.queue.leave(b) {
		return lanes.Ticket{}, err
	}
	if !b.granted.Admitted {
		return lanes.Ticket{}, nil
	}
	granted = b.granted
	b.release()
	if err != nil {
		s.queue.landed(granted, false)
		return lanes.Ticket{}, err
	}
	return granted, nil
}

// take returns what an answered batch has brought, or that the key is to be read
// again, alone.
func (s seat) take() (v Value, again bool, err error) {
	b := s.batch
	if err = b.err; err == nil {
		switch a := &b.reply.answers[s.index]; a.state {
		case present:
			return Value{bytes: a.value, batch: b, node: b.node}, false, nil
		case tooLong, moved:
			again = true
		case failed:
			err = a.err
		case none:
			err = errNoReply
		}
	}
	b.release()
	return Value{}, again, err
}

var errNoReply = errors.New("the client has returned no reply")

// A flightContext has the latest deadline of its readers, and ends when all have
// left, as they do by then: that costs no timer.
type flightContext struct {
	context.Context
	deadline time.Time
	endless  bool
	route    conn.Route
}

func (c *flightContext) Deadline() (time.Time, bool) { return c.deadline, !c.endless }

func (c *flightContext) Value(key any) any {
	if _, ok := key.(conn.RouteKey); ok {
		return &c.route
	}
	return c.Context.Value(key)
}

// depart is called under queue.mu.
func (b *batch) depart(node string) (ctx *flightContext) {
	ctx = &flightContext{deadline: b.deadline, endless: b.endless}
	ctx.route.Begin(node)
	ctx.Context, b.cancel = context.WithCancel(b.r.life)
	b.departed = true
	b.holders.Store(int32(b.readers) + 1) //nolint:gosec // it fits
	return ctx
}

// fly sends the batch, by a goroutine of its own: it must not end with one of its
// readers. It returns how long that took from start, or 0 if there was an error.
func (b *batch) fly(ctx *flightContext, start time.Time) (took time.Duration) {
	b.err = errNoReply
	defer func() {
		if cause := recover(); cause != nil {
			b.r.cn.Logger().Error("panic in a hook of the client", "panic", cause, "stack", string(debug.Stack()))
			b.err = fmt.Errorf("panic in a hook of the client: %v", cause)
		}
		b.cancel()
		b.end.come(answered) // what the batch held may be another's after release
		b.release()
	}()
	b.r.counts.batches.Inc()
	b.r.counts.keys.Add(uint64(len(b.keys)))
	b.reply.begin(len(b.keys))
	b.err = b.read(ctx)
	b.node = ctx.route.Node()
	if b.err != nil || !b.measure() {
		return 0
	}
	return max(time.Since(start), 1)
}

// read reads the keys. The error is that of all.
func (b *batch) read(ctx context.Context) error {
	if len(b.keys) > 1 && b.r.asksMGet() {
		err := b.mget(ctx)
		if err == nil || !forMGet(err) {
			return err
		}
		b.r.mgetRefused.Store(time.Now().Add(refusedFor).UnixNano())
	}
	b.pipeline(ctx)
	return nil
}

// mget reads the keys by one command.
func (b *batch) mget(ctx context.Context) error {
	words := make([]any, 1, len(b.keys)+1) // hooks may keep them
	words[0] = "mget"
	for _, key := range b.keys {
		words = append(words, key)
	}
	cmd := newMGet(ctx, &b.reply, words)
	defer cmd.over()
	if err := b.r.rdb.Process(ctx, cmd); err != nil {
		return err
	}
	if !b.reply.finish() {
		return errNoReply
	}
	return nil
}

// pipeline reads each key by a command of its own.
func (b *batch) pipeline(ctx context.Context) {
	if len(b.keys) == 1 {
		b.reply.answers[0] = answerOf(b.r.rdb.Get(ctx, b.keys[0]))
		return
	}
	pipe := b.r.rdb.Pipeline()
	cmds := make([]*redis.StringCmd, len(b.keys))
	for i, key := range b.keys {
		cmds[i] = pipe.Get(ctx, key)
	}
	conn.Exec(ctx, pipe)
	for i, cmd := range cmds {
		a := answerOf(cmd)
		if a.err != nil && b.r.cluster != nil && redirects(a.err) {
			a = answer{state: moved}
		}
		b.reply.answers[i] = a
	}
}

// redirects reports whether an error is that of a slot in motion, which go-redis
// has followed in vain.
func redirects(err error) bool {
	return redis.HasErrorPrefix(err, "MOVED ") || redis.HasErrorPrefix(err, "ASK ")
}

// measure learns from the lengths of the values. It reports whether there was no
// error.
func (b *batch) measure() (well bool) {
	values, bytes := 0, 0
	well = true
	for i := range b.reply.answers {
		switch a := &b.reply.answers[i]; a.state {
		case present:
			values++
			bytes += len(a.value)
			b.r.sizes.saw(b.keys[i], len(a.value))
		case tooLong:
			b.r.sizes.saw(b.keys[i], largeBytes+1)
		case failed, moved, none:
			well = false
		}
	}
	b.r.sizes.sawBatch(values, bytes)
	return well
}

// refusedFor is for how long MGET is not tried again where the server refuses it.
const refusedFor = time.Minute

func (r *Reader) asksMGet() bool {
	if !r.mget {
		return false
	}
	until := r.mgetRefused.Load()
	return until == 0 || time.Now().UnixNano() >= until
}

// forMGet reports whether an error may be due to reading several keys by one
// command, so that reading each by its own may do better: one of them, or MGET, is
// forbidden to the user, or the server is one of a Cluster, or a proxy.
func forMGet(err error) bool {
	var reply redis.Error
	if !errors.As(err, &reply) {
		return false
	}
	msg := reply.Error()
	word, rest, _ := strings.Cut(msg, " ")
	switch word {
	case "NOPERM", "CROSSSLOT", "MOVED", "ASK":
		return true
	case "ERR":
		return strings.HasPrefix(rest, "unknown command")
	}
	return strings.HasPrefix(msg, "unsupported command") // Envoy's
}
