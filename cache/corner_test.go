package cache

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/alicebob/miniredis/v2/server"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/conn"
)

// The corners of a flight, each of which needs somebody who writes at the worst
// moment.

// junkBefore writes other junk under a key before each script.
type junkBefore struct {
	rdb redis.UniversalClient
	key string
	n   *atomic.Int64
}

func (h junkBefore) DialHook(next redis.DialHook) redis.DialHook { return next }

func (h junkBefore) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		if cmd.Name() == "evalsha" {
			h.rdb.Set(ctx, h.key, fmt.Sprint("junk ", h.n.Add(1)), time.Hour)
		}
		return next(ctx, cmd)
	}
}

func (h junkBefore) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

func TestAFlightDoesNotFightForAKeyForEver(t *testing.T) {
	s, rdb := newServer(t)
	require.NoError(t, acquireScript.Load(t.Context(), rdb).Err())
	var n atomic.Int64
	rdb.AddHook(junkBefore{s.Client(t), "redisha:cache:v:k", &n})
	c := newClient(t, rdb, Config{})
	v := NewView[string, string](c, "v", ViewConfig{})
	got, err := v.Fetch(t.Context(), "k", func(context.Context, string) (string, error) { return "value", nil })
	require.NoError(t, err)
	require.Equal(t, "value", got)
	require.EqualValues(t, maxKills+1, n.Load())
	require.EqualValues(t, maxKills+1, c.Stats().DecodeErrors)
	require.Zero(t, c.Stats().LeasesTaken)
	require.Zero(t, c.Stats().Fallbacks, "Redis answers")
	require.Zero(t, c.Stats().FallbacksRunning)
}

func TestACallerWhoIsAlwaysTooLateTakesAFlightOfItsOwn(t *testing.T) {
	_, rdb := newServer(t)
	c := newClient(t, rdb, Config{})
	v := NewView[string, string](c, "v", ViewConfig{})
	over, _, _ := v.flights.join("k", false) // and it stays open
	over.res = result[string]{step: v.flights.step(over), body: []byte(`"too old"`)}
	close(over.done)
	got, err := v.Fetch(t.Context(), "k", func(context.Context, string) (string, error) { return "value", nil })
	require.NoError(t, err)
	require.Equal(t, "value", got)
	require.EqualValues(t, maxJoins, c.Stats().Joined)
	require.EqualValues(t, maxJoins, c.Stats().Misses, "it joined before it read")
}

// A shape can be encoded by encoding/json, and not decoded.
type shape struct{ Side fmt.Stringer }

func TestAValueThatDoesNotDecodeAgainIsAnErrorForWhoShares(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, rdb := newServer(t)
		v := NewView[string, shape](newClient(t, rdb, Config{}), "v", ViewConfig{})
		src := newSource(shape{Side: time.Second})
		first := goFetch(t.Context(), v, "k", src.load)
		<-src.began
		second := goFetch(t.Context(), v, "k", src.load)
		synctest.Wait()
		close(src.release)
		require.Equal(t, fetched[shape]{shape{time.Second}, nil}, <-first)
		got := <-second
		require.ErrorContains(t, got.err, `cache: fetch "v:k": decode what was just encoded: json: cannot unmarshal`)
		require.Zero(t, got.value)
	})
}

func TestAClientThatIsClosedDuringTheReadStartsNoFlight(t *testing.T) {
	s, rdb := newServer(t)
	c := newClient(t, rdb, Config{})
	v := NewView[string, string](c, "v", ViewConfig{})
	var closing sync.WaitGroup
	defer closing.Wait()
	s.SetPreHook(func(_ *server.Peer, cmd string, _ ...string) bool {
		if strings.EqualFold(cmd, "get") {
			closing.Go(func() { _ = c.Close() }) // which waits for the read
			for !c.running.closed() {
				runtime.Gosched()
			}
		}
		return false
	})
	_, err := v.Fetch(t.Context(), "k", mustNotLoad[string])
	require.ErrorIs(t, err, ErrClosed)
	require.Empty(t, v.flights.open)
}

func TestAProxyThatAnswersOtherwiseIsAnErrorOfTheLease(t *testing.T) {
	s, rdb := newServer(t)
	c := newClient(t, rdb, Config{})
	s.SetPreHook(func(p *server.Peer, cmd string, _ ...string) bool {
		if strings.HasPrefix(strings.ToLower(cmd), "eval") {
			p.WriteLen(0)
			return true
		}
		return false
	})
	_, _, err := c.acquire(t.Context(), "k", newLease(), time.Minute, "")
	require.EqualError(t, err, "the script that takes a load lease returned []interface {}, want an integer or a string")
	got, err := NewView[string, string](c, "v", ViewConfig{}).Fetch(t.Context(), "k", func(context.Context, string) (string, error) { return "value", nil })
	require.NoError(t, err)
	require.Equal(t, "value", got)
}

// lateTimer is a context whose deadline has passed and whose timer has not fired.
type lateTimer struct{ context.Context }

func (lateTimer) Deadline() (time.Time, bool) { return time.Now().Add(-time.Nanosecond), true }

func TestADeadlineCountsFromItsInstant(t *testing.T) {
	require.ErrorIs(t, conn.Ended(lateTimer{t.Context()}), context.DeadlineExceeded)
	require.NoError(t, conn.Ended(t.Context()))
	later, cancel := context.WithTimeout(t.Context(), time.Hour)
	defer cancel()
	require.NoError(t, conn.Ended(later))
	why := errors.New("why")
	cancelled, cancelCause := context.WithCancelCause(t.Context())
	cancelCause(why)
	require.Equal(t, why, conn.Ended(cancelled))
}

func TestAnUncachedLoadThatFindsNoPlaceSaysSoWithoutAnOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, rdb := newServer(t)
		c := newClient(t, rdb, Config{MaxFallbacks: 1})
		v := NewView[string, string](c, "v", ViewConfig{LoadTimeout: time.Second})
		tombstone := appendEntry(nil, entry{kind: kindTombstone})
		for _, key := range []string{"a", "b"} {
			require.NoError(t, rdb.Set(t.Context(), "redisha:cache:v:"+key, tombstone, time.Hour).Err())
		}
		_, err := v.Fetch(t.Context(), "a", func(context.Context, string) (string, error) {
			time.Sleep(time.Minute)
			return "", nil
		})
		require.ErrorIs(t, err, context.DeadlineExceeded)
		_, err = v.Fetch(t.Context(), "b", mustNotLoad[string])
		require.EqualError(t, err, `cache: fetch "v:b": 1 loads without the cache run already (Config.MaxFallbacks)`)
		time.Sleep(time.Minute)
	})
}
