package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redisha/redisha/cache"
	"github.com/redisha/redisha/internal/bench/harness"
	"github.com/redisha/redisha/internal/redistest"
)

const (
	manyWork  = "1,000 keys of 1 KiB by one call"
	manyKeys  = 1000
	onePipe   = "go-redis, one node's pipeline"
	oursOne   = "redisha FetchMany, one node"
	oursNodes = "redisha FetchMany, Cluster of 3"
)

// many measures FetchMany of keys that are all there.
func (b *bench) many(ctx context.Context) error {
	if !b.Wants(manyWork) {
		return nil
	}
	nodes, err := redistest.StartCluster(ctx, redistest.ClusterConfig{Replicas: -1})
	if err != nil {
		return err
	}
	b.Defer(nodes.Stop)
	b.Setting("1,000 keys: in Redis all of them; the Cluster is 3 primaries on this machine. Time, CPU and allocations are those of a call.")
	var monitors []*redis.Client
	for _, node := range nodes.Nodes {
		rdb := redis.NewClient(node.Options())
		b.Defer(rdb.Close)
		monitors = append(monitors, rdb)
	}
	one := []*redis.Client{b.monitor}
	return b.Compare(ctx, harness.Comparison{
		Work: manyWork, Baseline: onePipe, Rounds: 15, Slice: b.Slice(200 * time.Millisecond),
		Targets: []harness.Target{{Contender: oursNodes, Limit: harness.AtMost(3, harness.Ratio)}},
		Contenders: []harness.Contender{
			b.reader(onePipe, one, b.openPipe),
			b.reader(oursOne, one, func(ctx context.Context) (manyReader, error) { return openFetchMany(ctx, b.server.URL()) }),
			b.reader(oursNodes, monitors, func(ctx context.Context) (manyReader, error) { return openFetchMany(ctx, nodes.URL()) }),
		},
	})
}

// A manyReader reads all keys, and returns how many bytes they have.
type manyReader struct {
	read  func(ctx context.Context) (bytes int, err error)
	close func() error
}

func manyValues() map[string][]byte {
	values := make(map[string][]byte, manyKeys)
	for n := range manyKeys {
		values["many-"+strconv.Itoa(n)] = text(n, 1024)
	}
	return values
}

func (b *bench) openPipe(ctx context.Context) (manyReader, error) {
	rdb := goRedis(b.server.Addr())
	values := manyValues()
	keys := slices.Collect(maps.Keys(values))
	pipe := rdb.Pipeline()
	for name, value := range values {
		pipe.Set(ctx, name, value, ttl)
	}
	if _, err := pipe.Exec(ctx); err != nil {
		return manyReader{}, errors.Join(err, rdb.Close())
	}
	return manyReader{
		read: func(ctx context.Context) (bytes int, err error) {
			pipe := rdb.Pipeline()
			cmds := make([]*redis.StringCmd, len(keys))
			for i, key := range keys {
				cmds[i] = pipe.Get(ctx, key)
			}
			if _, err := pipe.Exec(ctx); err != nil {
				return 0, err
			}
			found := make(map[string][]byte, len(keys))
			for i, cmd := range cmds {
				value, err := cmd.Bytes()
				if err != nil {
					return 0, err
				}
				found[keys[i]] = value
				bytes += len(value)
			}
			return bytes, nil
		},
		close: rdb.Close,
	}, nil
}

func openFetchMany(ctx context.Context, url string) (manyReader, error) {
	c, disconnect, err := openCache(url)
	if err != nil {
		return manyReader{}, err
	}
	view := cache.NewView[string, []byte](c, viewName, cache.ViewConfig{TTL: ttl, Codec: cache.Raw, Plain: true, MinCompressBytes: -1})
	values := manyValues()
	keys := slices.Collect(maps.Keys(values))
	if err := view.SetMany(ctx, values); err != nil {
		return manyReader{}, errors.Join(err, disconnect())
	}
	loaded := errors.New("a key is not there")
	return manyReader{
		read: func(ctx context.Context) (bytes int, err error) {
			found, err := view.FetchMany(ctx, keys, func(context.Context, []string) (map[string][]byte, error) { return nil, loaded })
			for _, value := range found {
				bytes += len(value)
			}
			return bytes, err
		},
		close: disconnect,
	}, nil
}

func (b *bench) reader(name string, servers []*redis.Client, open func(context.Context) (manyReader, error)) harness.Contender {
	var r manyReader
	return harness.Contender{
		Name:  name,
		Setup: func(ctx context.Context) (err error) { r, err = open(ctx); return err },
		Run: func(ctx context.Context, m *harness.B) error {
			return m.Measure(ctx, harness.Load{Servers: servers}, func(ctx context.Context, _, _ int) error {
				bytes, err := r.read(ctx)
				if err == nil && bytes != manyKeys*1024 {
					return fmt.Errorf("%d bytes, want %d", bytes, manyKeys*1024)
				}
				return err
			})
		},
		Close: func() error {
			if r.close == nil {
				return nil
			}
			return r.close()
		},
	}
}
