package main

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/bench/harness"
	"github.com/redisha/redisha/internal/redistest"
)

func TestMain(m *testing.M) { redistest.Main(m) }

var openers = map[string]func(*redistest.Server) opener{"go-redis": bare, "connection": connection, "cache view": cacheView}

// Every contender must do the same work: the same bytes under the same key with
// a TTL.
func TestContendersStoreTheSame(t *testing.T) {
	server := redistest.Shared(t)
	rdb := server.Client(t)
	for name, open := range openers {
		for _, size := range []int{100, 1024} {
			require.NoError(t, rdb.FlushAll(t.Context()).Err())
			w := newWork(size)
			c, err := open(server)()
			require.NoError(t, err)
			require.NoError(t, w.check(t.Context(), c))
			require.NoError(t, c.close())

			for i, key := range w.keys {
				got, err := rdb.Get(t.Context(), key).Bytes()
				require.NoError(t, err, name)
				require.Equal(t, w.values[i], got, name)
				require.Len(t, got, size)
			}
			left, err := rdb.PTTL(t.Context(), w.keys[0]).Result()
			require.NoError(t, err)
			require.InDelta(t, ttl, left, float64(ttl/10+time.Minute), name)
		}
	}
}

func TestContendersSendOneCommandAnOperation(t *testing.T) {
	server := redistest.Shared(t)
	rdb := server.Client(t)
	w := newWork(100)
	for name, open := range openers {
		c, err := open(server)()
		require.NoError(t, err)
		require.NoError(t, w.check(t.Context(), c))
		require.NoError(t, rdb.ConfigResetStat(t.Context()).Err())
		require.NoError(t, w.check(t.Context(), c))
		require.NoError(t, c.close())

		info, err := rdb.InfoMap(t.Context(), "commandstats").Result()
		require.NoError(t, err)
		sent := info["Commandstats"]
		require.Contains(t, sent["cmdstat_get"], "calls=1000,", name)
		require.Contains(t, sent["cmdstat_set"], "calls=1000,", name)
		delete(sent, "cmdstat_get")
		delete(sent, "cmdstat_set")
		for command := range sent {
			require.Contains(t, []string{"cmdstat_config|resetstat", "cmdstat_info"}, command, name)
		}
	}
}

func TestCheckFindsAClientThatDoesNotStore(t *testing.T) {
	w := newWork(100)
	lost := errors.New("lost")
	broken := client{
		set: func(context.Context, string, string, []byte) error { return nil },
		get: func(context.Context, string, string) ([]byte, error) { return []byte("x"), nil },
	}
	require.ErrorContains(t, w.check(t.Context(), broken), `redisha:cache:overhead:0 reads "x", want`)
	broken.get = func(context.Context, string, string) ([]byte, error) { return nil, lost }
	require.ErrorIs(t, w.check(t.Context(), broken), lost)
	broken.set = func(context.Context, string, string, []byte) error { return lost }
	require.ErrorIs(t, w.check(t.Context(), broken), lost)
}

func TestAQuickRunMeasuresEveryContender(t *testing.T) {
	redistest.Require(t)
	for _, op := range []operation{get, set} {
		var stdout, stderr bytes.Buffer
		code := harness.Run(t.Context(), topic, []string{"-quick", "-only", string(op) + " 100 B"}, &stdout, &stderr)
		require.Zero(t, code, stderr.String())
		for _, name := range []string{"go-redis again", "connection", "cache view"} {
			require.Regexp(t, `\| `+string(op)+` 100 B +\| `+name+` +\| time/op +\| [\d.]+ .?s .* × go-redis \|`, stdout.String())
		}
		require.NotContains(t, stdout.String(), "1024 B")
	}
}

func TestEveryRoleContenderHasTheBudget(t *testing.T) {
	server := redistest.Shared(t)
	for _, op := range []operation{get, set} {
		c := comparison(server, nil, op, 100)
		require.Equal(t, string(op)+" 100 B", c.Work)
		require.Equal(t, c.Contenders[0].Name, c.Baseline)
		require.Len(t, c.Contenders, 4)
		require.Len(t, c.Targets, 2)
		for i, target := range c.Targets {
			require.Equal(t, c.Contenders[2+i].Name, target.Contender)
		}
	}
}
