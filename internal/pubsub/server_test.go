package pubsub_test

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/pubsub"
	"github.com/redisha/redisha/internal/redistest"
)

// patience is for what takes milliseconds on an idle machine.
const patience = 20 * time.Second

// clients are those that a program may have made.
var clients = map[string]func(*redis.Options){
	"as redisha makes it": func(o *redis.Options) {
		o.MaxRetries, o.DialerRetries, o.DialTimeout, o.ContextTimeoutEnabled = -1, 1, 2*time.Second, true
	},
	"go-redis' defaults": func(*redis.Options) {},
	"RESP2":              func(o *redis.Options) { o.Protocol = 2 },
}

// eachClient runs test with an owner for each kind of client.
func eachClient(t *testing.T, srv *redistest.Server, test func(*testing.T, *owner)) {
	for name, set := range clients {
		t.Run(name, func(t *testing.T) {
			opt := srv.Options()
			set(opt)
			rdb := redis.NewClient(opt)
			t.Cleanup(func() { _ = rdb.Close() })
			test(t, own(t, pubsub.Config{Open: func(ctx context.Context) *redis.PubSub { return rdb.Subscribe(ctx) }}))
		})
	}
}

func (o *owner) awaitLive(t *testing.T, n int) {
	t.Helper()
	require.Eventually(t, func() bool { return o.Stats().Live == n }, patience, time.Millisecond)
}

func (o *owner) awaitGaps(t *testing.T, n int) {
	t.Helper()
	require.Eventually(t, func() bool { return o.gapCount() == n }, patience, time.Millisecond)
}

// delivers requires that a message published now comes.
func (o *owner) delivers(t *testing.T, rdb redis.UniversalClient, channel string) {
	t.Helper()
	payload := strconv.FormatInt(time.Now().UnixNano(), 10)
	require.NoError(t, rdb.Publish(t.Context(), channel, payload).Err())
	require.Eventually(t, func() bool {
		got := o.messages(channel)
		return len(got) > 0 && got[len(got)-1] == payload
	}, patience, time.Millisecond)
}

func TestAStoppedServerIsNoticed(t *testing.T) {
	srv := redistest.New(t, redistest.Config{})
	eachClient(t, srv, func(t *testing.T, o *owner) {
		o.Add("a")
		o.awaitLive(t, 1)
		time.Sleep(1100 * time.Millisecond) // a PING goes and is answered
		require.Zero(t, o.gapCount())
		require.NoError(t, srv.Pause())
		defer func() { _ = srv.Continue() }()
		stopped := time.Now()
		o.awaitGaps(t, 1)
		at, err := o.lastGap()
		require.ErrorContains(t, err, "no answer to PING")
		t.Logf("noticed after %s", at.Sub(stopped).Round(time.Millisecond))
		require.Less(t, at.Sub(stopped), 20*time.Second, "2 s, and the rest for a busy machine")

		time.Sleep(500 * time.Millisecond) // it dials in vain
		require.NoError(t, srv.Continue())
		continued := time.Now()
		o.awaitLive(t, 1)
		t.Logf("live again after %s", time.Since(continued).Round(time.Millisecond))
		require.Equal(t, 1, o.gapCount())
		o.delivers(t, srv.Client(t), "a")
	})
}

func TestAServerThatWasKilledIsFoundAgain(t *testing.T) {
	srv := redistest.New(t, redistest.Config{})
	eachClient(t, srv, func(t *testing.T, o *owner) {
		o.Add(numbered(100)...)
		o.awaitLive(t, 100)
		for i := range 3 {
			srv.Kill()
			o.awaitGaps(t, i+1)
			require.Zero(t, o.Stats().Live)
			require.NoError(t, srv.Restart(t.Context()))
			o.awaitLive(t, 100)
		}
		require.EqualValues(t, 3, o.Stats().Gaps)
		o.delivers(t, srv.Client(t), "c7")
	})
}

func TestAConnectionThatIsKilledIsReplacedAtOnce(t *testing.T) {
	srv := redistest.New(t, redistest.Config{})
	rdb := srv.Client(t)
	eachClient(t, srv, func(t *testing.T, o *owner) {
		o.Add("a", "b")
		o.awaitLive(t, 2)
		for i := range 4 {
			killed := time.Now()
			require.NoError(t, rdb.Do(t.Context(), "client", "kill", "type", "pubsub").Err())
			o.awaitGaps(t, i+1)
			o.awaitLive(t, 2)
			if i == 0 {
				t.Logf("live again after %s", time.Since(killed).Round(10*time.Microsecond))
			}
			o.delivers(t, rdb, "b")
		}
		list, err := rdb.Do(t.Context(), "client", "list", "type", "pubsub").Text()
		require.NoError(t, err)
		require.Equal(t, 1, strings.Count(list, " addr="))
	})
}

func TestFiveThousandChannelsAreSubscribedAndDeliver(t *testing.T) {
	const n = 5000
	srv := redistest.New(t, redistest.Config{})
	rdb := srv.Client(t)
	eachClient(t, srv, func(t *testing.T, o *owner) {
		channels := numbered(n)
		start := time.Now()
		o.Add(channels...)
		o.awaitLive(t, n)
		t.Logf("subscribed in %s", time.Since(start).Round(time.Millisecond))
		pipe := rdb.Pipeline()
		for _, channel := range channels {
			pipe.Publish(t.Context(), channel, "x")
		}
		_, err := pipe.Exec(t.Context())
		require.NoError(t, err)
		require.Eventually(t, func() bool { return o.Stats().Messages == n }, patience, time.Millisecond)
		require.NoError(t, rdb.Do(t.Context(), "client", "kill", "type", "pubsub").Err())
		o.awaitGaps(t, 1)
		o.awaitLive(t, n)
		o.Remove(channels...)
		require.Eventually(t, func() bool {
			left, err := rdb.PubSubChannels(t.Context(), "*").Result()
			return err == nil && len(left) == 0
		}, patience, time.Millisecond)
		require.Equal(t, 1, o.gapCount())
	})
}

func TestAFloodArrivesWholeAndInOrder(t *testing.T) {
	const n = 20_000
	srv := redistest.New(t, redistest.Config{})
	rdb := srv.Client(t)
	eachClient(t, srv, func(t *testing.T, o *owner) {
		o.Add("a")
		o.awaitLive(t, 1)
		var wg sync.WaitGroup
		wg.Go(func() { // channels that come and go meanwhile
			for i := range 500 {
				o.Add(fmt.Sprint("x", i))
				o.Remove(fmt.Sprint("x", i-3))
			}
		})
		for from := 0; from < n; from += 1000 {
			pipe := rdb.Pipeline()
			for i := from; i < from+1000; i++ {
				pipe.Publish(t.Context(), "a", i)
			}
			_, err := pipe.Exec(t.Context())
			require.NoError(t, err)
		}
		wg.Wait()
		require.Eventually(t, func() bool { return len(o.messages("a")) >= n }, patience, 10*time.Millisecond)
		for i, payload := range o.messages("a") {
			require.Equal(t, strconv.Itoa(i), payload)
		}
		require.Zero(t, o.gapCount())
	})
}

func TestAnACLThatAllowsSomeChannels(t *testing.T) {
	srv := redistest.New(t, redistest.Config{Users: []string{"bob on >secret resetchannels &good:* -@all +subscribe +unsubscribe +hello +client +auth"}})
	eachClient(t, srv, func(t *testing.T, _ *owner) {
		opt := srv.Options()
		opt.Username, opt.Password = "bob", "secret"
		rdb := redis.NewClient(opt)
		t.Cleanup(func() { _ = rdb.Close() })
		o := own(t, pubsub.Config{Open: func(ctx context.Context) *redis.PubSub { return rdb.Subscribe(ctx) }})
		o.Add("good:1", "bad:1", "good:2", "bad:2")
		o.awaitLive(t, 2)
		require.Eventually(t, func() bool { return o.Stats().Refused == 2 }, patience, time.Millisecond)
		require.ErrorContains(t, o.Stats().LastError, "NOPERM")
		o.delivers(t, srv.Client(t), "good:2")
		require.Zero(t, o.gapCount())
	})
}
