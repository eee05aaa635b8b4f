package main

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
)

const (
	pause    = 2 * time.Millisecond // of a writer, between two commands
	patience = 15 * time.Second     // what each command's context allows
)

// A call is one command of a writer.
type call struct {
	began, ended time.Time
	err          error
}

// A writer sends one command after the other, each with a value of its own: the
// number of the call.
type writer struct {
	name  string
	push  bool          // RPUSH to one list, which must not be executed twice; else SET, each to a key of its own
	rest  time.Duration // instead of pause
	calls []call

	succeeded atomic.Int64 // when a command last ended well, Unix nanoseconds
}

func (w *writer) list() string     { return "list:" + w.name }
func (w *writer) key(n int) string { return "key:" + w.name + ":" + strconv.Itoa(n) }

// write calls c until stop.
func (w *writer) write(ctx context.Context, c client, stop *atomic.Bool) {
	for n := 0; !stop.Load(); n++ {
		w.calls = append(w.calls, w.call(ctx, c, n))
		time.Sleep(cmp.Or(w.rest, pause))
	}
}

func (w *writer) call(ctx context.Context, c client, n int) call {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	began := time.Now()
	var err error
	if w.push {
		err = c.push(ctx, w.list(), strconv.Itoa(n))
	} else {
		err = c.set(ctx, w.key(n), strconv.Itoa(n))
	}
	ended := time.Now()
	if err == nil {
		w.succeeded.Store(ended.UnixNano())
	}
	return call{began: began, ended: ended, err: err}
}

// startWriters starts two writers of each kind. stop ends them after the command
// that they have under way.
func startWriters(ctx context.Context, c client) (writers []*writer, stop func()) {
	var ended atomic.Bool
	var running sync.WaitGroup
	for i := range 4 {
		w := &writer{name: strconv.Itoa(i), push: i%2 == 1}
		writers = append(writers, w)
		running.Go(func() { w.write(ctx, c, &ended) })
	}
	return writers, sync.OnceFunc(func() {
		ended.Store(true)
		running.Wait()
	})
}

// An asker reads what the writers have left.
type asker interface {
	LRange(ctx context.Context, key string, start, stop int64) *redis.StringSliceCmd
	MGet(ctx context.Context, keys ...string) *redis.SliceCmd
}

// A deposit is what a server holds of a writer: how often each value.
type deposit map[int]int

// deposited asks a server for what it holds of w.
func (w *writer) deposited(ctx context.Context, rdb asker) (deposit, error) {
	d := make(deposit)
	if w.push {
		values, err := rdb.LRange(ctx, w.list(), 0, -1).Result()
		for _, v := range values {
			n, err := strconv.Atoi(v)
			if err != nil {
				return nil, fmt.Errorf("%s holds %q: %w", w.list(), v, err)
			}
			d[n]++
		}
		return d, err
	}
	all := make([]int, len(w.calls))
	for i := range all {
		all[i] = i
	}
	for part := range slices.Chunk(all, 1000) {
		keys := make([]string, len(part))
		for i, n := range part {
			keys[i] = w.key(n)
		}
		values, err := rdb.MGet(ctx, keys...).Result()
		if err != nil {
			return nil, err
		}
		for i, v := range values {
			if v != nil {
				d[part[i]] = 1
			}
		}
	}
	return d, nil
}

// recovered returns when the first command ended that the new primary, promoted
// at a certain time, has executed. What ended later than that and is there in the
// end cannot have been executed by the old one, whose writes nobody copied then.
func recovered(calls []call, d deposit, promoted time.Time) (time.Time, bool) {
	for n, c := range calls {
		if c.err == nil && !c.ended.Before(promoted) && d[n] > 0 {
			return c.ended, true
		}
	}
	return time.Time{}, false
}

// A tally counts what became of calls.
type tally struct {
	calls        int
	errors       int // all that failed
	unknown      int // those of them whose outcome is not known, as the client said
	worstUnknown int // of one writer
	duplicates   int // executed more than once
	lost         int // acknowledged, and not there in the end
	kinds        map[string]int
}

// add counts calls against what the primary holds of them in the end; nil is not
// known.
func (t *tally) add(calls []call, d deposit, unknown func(error) bool) {
	if t.kinds == nil {
		t.kinds = make(map[string]int)
	}
	before := t.unknown
	for n, c := range calls {
		t.calls++
		t.duplicates += max(d[n]-1, 0)
		switch {
		case c.err == nil:
			if d != nil && d[n] == 0 {
				t.lost++
			}
		default:
			t.errors++
			t.kinds[kindOf(c.err)]++
			if unknown(c.err) {
				t.unknown++
			}
		}
	}
	t.worstUnknown = max(t.worstUnknown, t.unknown-before)
}
