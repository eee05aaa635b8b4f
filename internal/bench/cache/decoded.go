package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	rediscache "github.com/go-redis/cache/v9"
	"github.com/redis/go-redis/v9"
	"github.com/redis/rueidis"

	"github.com/redisha/redisha/cache"
	"github.com/redisha/redisha/internal/bench/harness"
)

const (
	typedWork = "Get of a 1 KiB JSON struct, 128 callers"
	localWork = "hit in the process (L1), decoded"
	scopeWork = "hit in a request's scope"

	redisCache = "go-redis/cache"
	clientSide = "rueidis DoCache, decoding"

	profileBytes = 1024

	// nearKeys is how many keys are read in the process, scopeKeys in one request.
	nearKeys  = 1000
	scopeKeys = 100
)

// A profileGetter reads the profile of that number.
type profileGetter struct {
	get   func(ctx context.Context, n int) (*profile, error)
	close func() error
}

// decoded measures reads that end in a struct.
func (b *bench) decoded(ctx context.Context) error {
	if !b.Wants(typedWork, localWork, scopeWork) {
		return nil
	}
	b.Setting("structs: a profile of %d B as JSON by encoding/json on all sides; redisha: a `View[int, *profile]`, with its header, no compression. go-redis/cache: over such a client as go-redis', Marshal and Unmarshal of encoding/json, no local cache.", profileBytes)
	b.Setting("L1: LocalEntries %d, LocalMaxAge 1 h, %d keys that are all there; beside it `DoCache` of the same keys with DecodeJSON. Scope: %d keys of one request. One caller.", 2*nearKeys, nearKeys, scopeKeys)
	if err := b.fillProfiles(ctx); err != nil {
		return err
	}
	typed := harness.Comparison{
		Work: typedWork, Quantity: harness.OpsPerSecond, Baseline: redisCache, Rounds: 9, Slice: b.Slice(400 * time.Millisecond),
		Targets: []harness.Target{{Contender: ours, Limit: harness.AtLeast(3, harness.Ratio)}},
		Contenders: []harness.Contender{
			b.profiles(redisCache, 128, keyCount, b.openRedisCache),
			b.profiles(ours, 128, keyCount, func(context.Context) (profileGetter, error) { return b.openProfiles(0) }),
		},
	}
	local := harness.Comparison{
		Work: localWork, Rounds: 15, Slice: b.Slice(200 * time.Millisecond), Baseline: clientSide,
		Targets: []harness.Target{
			{Contender: ours, Limit: harness.AtMost(1, harness.Ratio)},
			{Contender: ours, Limit: harness.AtMost(100, harness.Median)},
			{Contender: ours, Quantity: harness.Allocs, Limit: harness.AtMost(0.01, harness.Median)},
		},
		Contenders: []harness.Contender{
			b.profiles(clientSide, 1, nearKeys, b.openDoCache),
			b.profiles(ours, 1, nearKeys, b.openLocal),
		},
	}
	scope := harness.Comparison{
		Work: scopeWork, Rounds: 15, Slice: b.Slice(200 * time.Millisecond),
		Targets: []harness.Target{
			{Contender: ours, Limit: harness.AtMost(30, harness.Median)},
			{Contender: ours, Quantity: harness.Allocs, Limit: harness.AtMost(0.01, harness.Median)},
		},
		Contenders: []harness.Contender{b.profiles(ours, 1, scopeKeys, b.openScope)},
	}
	for _, c := range []harness.Comparison{typed, local, scope} {
		if err := b.Compare(ctx, c); err != nil {
			return err
		}
	}
	return nil
}

func profileView(c *cache.Client, localEntries int) *cache.View[int, *profile] {
	return cache.NewView[int, *profile](c, "profile", cache.ViewConfig{
		TTL: ttl, MinCompressBytes: -1, LocalEntries: localEntries, LocalMaxAge: ttl,
	})
}

// fillProfiles stores the profiles for all sides.
func (b *bench) fillProfiles(ctx context.Context) error {
	c, disconnect, err := openCache(b.server.URL())
	if err != nil {
		return err
	}
	values := make(map[int]*profile, keyCount)
	pipe := b.monitor.Pipeline()
	for n := range keyCount {
		p := newProfile(n, profileBytes)
		text, err := json.Marshal(p)
		if err != nil {
			return errors.Join(err, disconnect())
		}
		values[n] = &p
		pipe.Set(ctx, profileKey(n), text, ttl)
	}
	_, err = pipe.Exec(ctx)
	return errors.Join(err, profileView(c, 0).SetMany(ctx, values), disconnect())
}

// profileKey is where peers find the JSON of a profile.
func profileKey(n int) string { return fmt.Sprintf("profile:%d", n) }

// openProfiles opens a view of the profiles.
func (b *bench) openProfiles(localEntries int) (profileGetter, error) {
	c, disconnect, err := openCache(b.server.URL())
	if err != nil {
		return profileGetter{}, err
	}
	view := profileView(c, localEntries)
	return profileGetter{get: view.Get, close: disconnect}, nil
}

func (b *bench) openRedisCache(context.Context) (profileGetter, error) {
	rdb := goRedis(b.server.Addr())
	c := rediscache.New(&rediscache.Options{Redis: rdb, Marshal: json.Marshal, Unmarshal: json.Unmarshal})
	keys := profileKeys()
	return profileGetter{
		get: func(ctx context.Context, n int) (*profile, error) {
			p := new(profile)
			return p, c.Get(ctx, keys[n], p)
		},
		close: rdb.Close,
	}, nil
}

func profileKeys() []string {
	keys := make([]string, keyCount)
	for n := range keys {
		keys[n] = profileKey(n)
	}
	return keys
}

// openDoCache opens a client that has all keys in its process.
func (b *bench) openDoCache(ctx context.Context) (profileGetter, error) {
	c, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{b.server.Addr()}})
	if err != nil {
		return profileGetter{}, err
	}
	keys := profileKeys()
	g := profileGetter{
		get: func(ctx context.Context, n int) (*profile, error) {
			p := new(profile)
			return p, c.DoCache(ctx, c.B().Get().Key(keys[n]).Cache(), ttl).DecodeJSON(p)
		},
		close: func() error { c.Close(); return nil },
	}
	for n := range nearKeys {
		if _, err := g.get(ctx, n); err != nil {
			return profileGetter{}, errors.Join(err, g.close())
		}
	}
	return g, nil
}

// openLocal opens a view that has all keys in its L1.
func (b *bench) openLocal(ctx context.Context) (profileGetter, error) {
	c, disconnect, err := openCache(b.server.URL())
	if err != nil {
		return profileGetter{}, err
	}
	view := profileView(c, 2*nearKeys)
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) { // it opens when the server has said that it tells of changes
		far := 0
		for n := range nearKeys {
			e, err := view.Lookup(ctx, n)
			if err != nil {
				return profileGetter{}, errors.Join(err, disconnect())
			}
			if e.Source != cache.FromLocal {
				far++
			}
		}
		if far == 0 {
			return profileGetter{get: view.Get, close: disconnect}, nil
		}
		if time.Now().After(end) {
			return profileGetter{}, errors.Join(fmt.Errorf("%d of %d keys are not in the L1", far, nearKeys), disconnect())
		}
	}
}

// openScope opens a view that has its keys in the scope of one request.
func (b *bench) openScope(context.Context) (profileGetter, error) {
	c, disconnect, err := openCache(b.server.URL())
	if err != nil {
		return profileGetter{}, err
	}
	view := profileView(c, 0)
	request := c.Scope(context.Background())
	for n := range scopeKeys {
		if _, err := view.Get(request, n); err != nil {
			return profileGetter{}, errors.Join(err, disconnect())
		}
	}
	return profileGetter{
		get:   func(_ context.Context, n int) (*profile, error) { return view.Get(request, n) },
		close: disconnect,
	}, nil
}

// profiles measures reads of the first keys.
func (b *bench) profiles(name string, callers, keys int, open func(context.Context) (profileGetter, error)) harness.Contender {
	var g profileGetter
	load := harness.Load{Callers: callers, Servers: []*redis.Client{b.monitor}}
	if keys < keyCount {
		load.TimeEvery = -1 // it would take longer than the read
	}
	return harness.Contender{
		Name:  name,
		Setup: func(ctx context.Context) (err error) { g, err = open(ctx); return err },
		Run: func(ctx context.Context, m *harness.B) error {
			return m.Measure(ctx, load, func(ctx context.Context, caller, n int) error {
				i := pick(caller, n, keys)
				p, err := g.get(ctx, i)
				if err == nil && p.ID != i {
					return fmt.Errorf("profile %d is that of %d", i, p.ID)
				}
				return err
			})
		},
		Close: func() error {
			if g.close == nil {
				return nil
			}
			return g.close()
		},
	}
}
