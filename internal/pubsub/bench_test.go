package pubsub_test

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/conn"
	"github.com/redisha/redisha/internal/pubsub"
	"github.com/redisha/redisha/internal/redistest"
)

// From before PUBLISH to the function Message. In "go-redis" a goroutine reads
// from go-redis and does nothing else: what is above that is ours.
func BenchmarkPublishToMessage(b *testing.B) {
	srv := redistest.New(b, redistest.Config{})
	rdb := srv.Client(b)
	came := make(chan time.Time, 1)
	measure := func(b *testing.B, publish func(channel, payload string) error) {
		took := make([]time.Duration, 0, b.N)
		for b.Loop() {
			start := time.Now()
			require.NoError(b, publish("{a}", "x"))
			took = append(took, (<-came).Sub(start))
		}
		report(b, took)
	}
	b.Run("go-redis", func(b *testing.B) {
		ps := rdb.Subscribe(b.Context(), "{a}")
		defer func() { _ = ps.Close() }()
		_, err := ps.Receive(b.Context())
		require.NoError(b, err)
		go func() {
			for {
				if _, err := ps.ReceiveMessage(context.Background()); err != nil {
					return
				}
				came <- time.Now()
			}
		}()
		measure(b, plain(rdb))
	})
	channels := func(b *testing.B, cn *conn.Client, publish func(channel, payload string) error) {
		live := make(chan struct{}, 1)
		c, err := pubsub.Open(cn, pubsub.ChannelsConfig{
			Message:    func(string, string) { came <- time.Now() },
			Subscribed: func(string) { live <- struct{}{} },
		})
		require.NoError(b, err)
		defer func() { require.NoError(b, c.Close()) }()
		c.Add("{a}")
		<-live
		measure(b, publish)
	}
	b.Run("Channels", func(b *testing.B) { channels(b, client(b, srv.URL()), plain(rdb)) })
	b.Run("Channels of a Cluster", func(b *testing.B) {
		cluster := redistest.NewCluster(b, redistest.ClusterConfig{Replicas: -1})
		node, err := cluster.PrimaryOf(b.Context(), "{a}")
		require.NoError(b, err)
		rdb := node.Client(b)
		channels(b, client(b, cluster.URL()), func(channel, payload string) error {
			return rdb.SPublish(b.Context(), channel, payload).Err()
		})
	})
}

// From Add to the function Subscribed, on a connection that is there.
func BenchmarkAddToSubscribed(b *testing.B) {
	for name, url := range map[string]func(*testing.B) string{
		"Channels":              func(b *testing.B) string { return redistest.New(b, redistest.Config{}).URL() },
		"Channels of a Cluster": func(b *testing.B) string { return redistest.NewCluster(b, redistest.ClusterConfig{Replicas: -1}).URL() },
	} {
		b.Run(name, func(b *testing.B) {
			live := make(chan string, 1)
			c, err := pubsub.Open(client(b, url(b)), pubsub.ChannelsConfig{Subscribed: func(channel string) { live <- channel }})
			require.NoError(b, err)
			defer func() { require.NoError(b, c.Close()) }()
			c.Add("{a}") // keeps the connection
			<-live
			took := make([]time.Duration, 0, b.N)
			for b.Loop() {
				channel := fmt.Sprint("{a}:", len(took))
				start := time.Now()
				c.Add(channel)
				<-live
				took = append(took, time.Since(start))
			}
			report(b, took)
		})
	}
}

func report(b *testing.B, took []time.Duration) {
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Nanoseconds())/1e3, "µs/p50")
	b.ReportMetric(float64(took[len(took)*99/100].Nanoseconds())/1e3, "µs/p99")
}
