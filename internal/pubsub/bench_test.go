package pubsub_test

import (
	"context"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/pubsub"
	"github.com/redisha/redisha/internal/redistest"
)

// From PUBLISH to the function Message, and to a goroutine that it wakes. What
// the server and go-redis take is in it: bare has a goroutine that reads from
// go-redis and wakes by itself.
func BenchmarkPublishToMessage(b *testing.B) {
	srv := redistest.New(b, redistest.Config{})
	rdb := srv.Client(b)
	woken := make(chan time.Time, 1)
	if n, _ := strconv.Atoi(os.Getenv("BUSY")); n > 0 {
		for range n {
			go func() {
				for rdb.Get(context.Background(), "x").Err() == redis.Nil {
				}
			}()
		}
	}
	measure := func(b *testing.B) {
		var took []time.Duration
		for b.Loop() {
			start := time.Now()
			require.NoError(b, rdb.Publish(b.Context(), "a", "x").Err())
			took = append(took, (<-woken).Sub(start))
		}
		slices.Sort(took)
		b.ReportMetric(float64(took[len(took)/2].Nanoseconds())/1e3, "µs/p50")
		b.ReportMetric(float64(took[len(took)*99/100].Nanoseconds())/1e3, "µs/p99")
	}
	b.Run("bare", func(b *testing.B) {
		ps := rdb.Subscribe(b.Context(), "a")
		defer func() { _ = ps.Close() }()
		_, err := ps.Receive(b.Context())
		require.NoError(b, err)
		go func() {
			for {
				if _, err := ps.ReceiveMessage(context.Background()); err != nil {
					return
				}
				woken <- time.Now()
			}
		}()
		measure(b)
	})
	b.Run("Subscription", func(b *testing.B) {
		live := make(chan struct{}, 1)
		s, err := pubsub.New(pubsub.Config{
			Open:       func(ctx context.Context) *redis.PubSub { return rdb.Subscribe(ctx) },
			Message:    func(string, string) { woken <- time.Now() },
			Subscribed: func(string) { live <- struct{}{} },
		})
		require.NoError(b, err)
		defer func() { require.NoError(b, s.Close()) }()
		s.Add("a")
		<-live
		measure(b)
	})
	b.Run("Channels", func(b *testing.B) {
		live := make(chan struct{}, 1)
		s, err := pubsub.Open(client(b, srv.URL()), pubsub.ChannelsConfig{
			Message:    func(string, string) { woken <- time.Now() },
			Subscribed: func(string) { live <- struct{}{} },
		})
		require.NoError(b, err)
		defer func() { require.NoError(b, s.Close()) }()
		s.Add("a")
		<-live
		measure(b)
	})
}
