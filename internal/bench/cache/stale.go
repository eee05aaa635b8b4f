package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redisha/redisha/cache"
	"github.com/redisha/redisha/internal/bench/harness"
)

const (
	staleWork = "reads while others write and delete, 4 clients"
	naive     = "naive cache-aside"

	staleClients = 4
	staleReaders = 16 // of each client
	staleKeys    = 64
	staleCount   = 25_000 // reads in a turn
)

var (
	staleReads = harness.Quantity{Name: "stale reads", Unit: harness.Count}
	reads      = harness.Quantity{Name: "reads", Unit: harness.Count}
	loads      = harness.Quantity{Name: "loads", Unit: harness.Count}
)

// A rowCache is one process' cache of the rows of a source.
type rowCache struct {
	fetch  func(ctx context.Context, key int) (version int64, err error)
	delete func(ctx context.Context, key int) error
	close  func() error
}

// A source has a version of each of its rows, and knows which one nobody may be
// older than.
type source struct {
	rows  [staleKeys]row
	loads atomic.Int64
}

type row struct {
	version atomic.Int64
	deleted atomic.Int64 // the version after which a delete has returned
	mu      sync.Mutex   // one writer at a time
}

// load reads a row, at some moment of a while.
func (s *source) load(_ context.Context, key int) (int64, error) {
	s.loads.Add(1)
	pause(time.Millisecond / 4)
	version := s.rows[key].version.Load()
	pause(time.Millisecond)
	return version, nil
}

// pause takes up to most.
func pause(most time.Duration) { time.Sleep(rand.N(most)) } //nolint:gosec // no secret

// change writes a row and deletes it from the cache.
func (s *source) change(ctx context.Context, c rowCache, key int) error {
	r := &s.rows[key]
	r.mu.Lock()
	defer r.mu.Unlock()
	version := r.version.Add(1)
	if err := c.delete(ctx, key); err != nil {
		return err
	}
	r.deleted.Store(version)
	return nil
}

// stale measures how many reads return what was deleted before they began.
func (b *bench) stale(ctx context.Context) error {
	if !b.Wants(staleWork) {
		return nil
	}
	b.Setting("stale reads: %d clients with %d readers and a writer each, %d keys; a writer changes a row, deletes it from the cache, and goes on within half a millisecond; a load takes up to 1.25 ms. A read is stale if its row is older than one whose delete had returned before the read began. Naive: GET, else the source and SET; DEL.", staleClients, staleReaders, staleKeys)
	return b.Compare(ctx, harness.Comparison{
		Work: staleWork, Quantity: staleReads, Whole: true, Cold: true,
		Targets: []harness.Target{{Contender: ours, Limit: harness.AtMost(0, harness.Worst)}},
		Contenders: []harness.Contender{
			{Name: naive, Run: func(ctx context.Context, m *harness.B) error { return b.underWrites(ctx, openNaive, m) }},
			{Name: ours, Run: func(ctx context.Context, m *harness.B) error { return b.underWrites(ctx, openRows, m) }},
		},
	})
}

func openRows(addr string, s *source) (rowCache, error) {
	c, disconnect, err := openCache("redis://" + addr)
	if err != nil {
		return rowCache{}, err
	}
	view := cache.NewView[int, int64](c, "row", cache.ViewConfig{TTL: ttl})
	return rowCache{
		fetch:  func(ctx context.Context, key int) (int64, error) { return view.Fetch(ctx, key, s.load) },
		delete: func(ctx context.Context, key int) error { return view.Delete(ctx, key) },
		close:  disconnect,
	}, nil
}

func openNaive(addr string, s *source) (rowCache, error) {
	rdb := goRedis(addr)
	name := func(key int) string { return "row:" + strconv.Itoa(key) }
	return rowCache{
		fetch: func(ctx context.Context, key int) (int64, error) {
			version, err := rdb.Get(ctx, name(key)).Int64()
			if !errors.Is(err, redis.Nil) {
				return version, err
			}
			if version, err = s.load(ctx, key); err != nil {
				return 0, err
			}
			return version, rdb.Set(ctx, name(key), version, ttl).Err()
		},
		delete: func(ctx context.Context, key int) error { return rdb.Del(ctx, name(key)).Err() },
		close:  rdb.Close,
	}, nil
}

// underWrites reads on all clients while each of them writes as well.
func (b *bench) underWrites(ctx context.Context, open func(addr string, s *source) (rowCache, error), m *harness.B) (err error) {
	if err := b.monitor.FlushAll(ctx).Err(); err != nil {
		return err
	}
	s := new(source)
	var clients []rowCache
	for range staleClients {
		c, err := open(b.server.Addr(), s)
		if err != nil {
			return err
		}
		clients = append(clients, c)
		defer func() { err = errors.Join(err, c.close()) }()
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	var writers sync.WaitGroup
	failed := make(chan error, staleClients)
	for _, c := range clients {
		writers.Go(func() {
			for ctx.Err() == nil {
				if err := s.change(ctx, c, rand.IntN(staleKeys)); err != nil && ctx.Err() == nil { //nolint:gosec // no secret
					failed <- err
					return
				}
				pause(time.Millisecond / 2)
			}
		})
	}
	count := staleCount
	if b.Quick {
		count /= 10
	}
	var old atomic.Int64
	load := harness.Load{Callers: staleClients * staleReaders, Count: count, Servers: []*redis.Client{b.monitor}}
	err = m.Measure(ctx, load, func(ctx context.Context, caller, _ int) error {
		key := rand.IntN(staleKeys) //nolint:gosec // no secret
		least := s.rows[key].deleted.Load()
		version, err := clients[caller%staleClients].fetch(ctx, key)
		if version < least && err == nil {
			old.Add(1)
		}
		return err
	})
	stop()
	writers.Wait()
	close(failed)
	m.Record(staleReads, float64(old.Load()))
	m.Record(reads, float64(count))
	m.Record(loads, float64(s.loads.Load()))
	if writeErr := <-failed; writeErr != nil {
		return errors.Join(err, fmt.Errorf("a writer: %w", writeErr))
	}
	return err
}
