package metrics

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/broker"
	"github.com/redisha/redisha/redisha/redishatest"
)

func TestQueuesAreLookedAtBetweenScrapes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := redishatest.New(t)
		clients := open(t, srv)
		task := broker.NewTask[int]("work", broker.TaskConfig{Queue: "mail"})
		for range 3 {
			_, err := task.Publish(t.Context(), clients.Broker, 1)
			require.NoError(t, err)
		}
		queues, err := NewQueues(clients.Broker, QueuesConfig{})
		require.NoError(t, err)
		reg := prometheus.NewPedanticRegistry()
		require.NoError(t, reg.Register(queues))
		require.Equal(t, map[string]float64{`redisha_queues_looks_total`: 0, `redisha_queues_failed_looks_total`: 0}, scrape(t, reg))

		time.Sleep(10 * time.Second)
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- queues.Run(ctx) }()
		synctest.Wait()
		_, err = task.Publish(ctx, clients.Broker, 1, broker.After(time.Hour))
		require.NoError(t, err)
		requireSeries(t, map[string]float64{
			`redisha_queue_tasks{queue="mail",state="ready"}`:            3,
			`redisha_queue_tasks{queue="mail",state="delayed"}`:          0,
			`redisha_queue_waiting_seconds{queue="mail"}`:                10,
			`redisha_queue_overdue_seconds{queue="mail"}`:                0,
			`redisha_queue_paused{queue="mail"}`:                         0,
			`redisha_queue_consumers{queue="mail",state="alive"}`:        0,
			`redisha_queue_events_total{event="published",queue="mail"}`: 3,
			`redisha_queue_events_total{event="dead",queue="mail"}`:      0,
			`redisha_queues_looks_total`:                                 1,
			`redisha_queues_failed_looks_total`:                          0,
		}, scrape(t, reg))
		time.Sleep(15 * time.Second)
		synctest.Wait()
		requireSeries(t, map[string]float64{
			`redisha_queue_tasks{queue="mail",state="delayed"}`: 1,
			`redisha_queue_waiting_seconds{queue="mail"}`:       25,
			`redisha_queues_looks_total`:                        2,
		}, scrape(t, reg))

		problems, err := testutil.GatherAndLint(reg)
		require.NoError(t, err)
		require.Empty(t, problems)
		text := scrapeText(t, reg)
		problems, err = promlint.New(strings.NewReader(text)).Lint()
		require.NoError(t, err)
		require.Empty(t, problems)

		// What is old is not shown as if it were new.
		srv.Hang(true)
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		series := scrape(t, reg)
		require.Positive(t, series[`redisha_queues_failed_looks_total`])
		require.NotContains(t, series, `redisha_queue_paused{queue="mail"}`)
		require.Error(t, queues.Err())
		srv.Hang(false)
		stop()
		require.NoError(t, <-ended)
	})
}

func TestNamedQueuesHaveSeriesBeforeTheyAreUsed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		clients := open(t, redishatest.New(t))
		queues, err := NewQueues(clients.Broker, QueuesConfig{Names: []string{"mail"}, Every: time.Second})
		require.NoError(t, err)
		reg := prometheus.NewPedanticRegistry()
		require.NoError(t, reg.Register(queues))
		ended := make(chan error, 1)
		go func() { ended <- queues.Run(t.Context()) }()
		synctest.Wait()
		requireSeries(t, map[string]float64{
			`redisha_queue_tasks{queue="mail",state="dead"}`:        0,
			`redisha_queue_events_total{event="dead",queue="mail"}`: 0,
		}, scrape(t, reg))
		require.NoError(t, clients.Close())
		require.ErrorIs(t, <-ended, broker.ErrClosed)
	})
	_, err := NewQueues(nil, QueuesConfig{})
	require.ErrorContains(t, err, "nil client")
	_, err = NewQueues(nil, QueuesConfig{Every: time.Millisecond})
	require.EqualError(t, err, "metrics: QueuesConfig.Every is 1ms, want at least 1s, or 0 for 15s")
}

// oneQueue is a collector that has found a queue which was never used.
func oneQueue(t *testing.T) *prometheus.Registry {
	t.Helper()
	reg := prometheus.NewPedanticRegistry()
	require.NoError(t, reg.Register(&Queues{cfg: QueuesConfig{Every: time.Second}, found: []broker.QueueStatus{{Name: "mail"}}, at: time.Now()}))
	return reg
}
