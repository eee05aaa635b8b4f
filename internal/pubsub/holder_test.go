package pubsub_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/conn"
	"github.com/redisha/redisha/internal/endpoint"
	"github.com/redisha/redisha/internal/pubsub"
)

// A holder notes what Channels tell it, and requires that it makes sense.
type holder struct {
	*pubsub.Channels
	tb testing.TB

	telling atomic.Bool

	mu      sync.Mutex
	live    map[string]bool
	away    map[string]bool // Lost, and not Subscribed since
	got     map[string][]string
	lost    []string // channels, in order
	errs    []error  // of Lost
	refused []string // channels, in order
}

// hold returns the holder of Channels of c that end with the test.
func hold(tb testing.TB, c *conn.Client) *holder {
	tb.Helper()
	h := &holder{tb: tb, live: make(map[string]bool), away: make(map[string]bool), got: make(map[string][]string)}
	ch, err := pubsub.Open(c, pubsub.ChannelsConfig{
		Message: func(channel, payload string) {
			defer h.told()()
			h.got[channel] = append(h.got[channel], payload)
		},
		Subscribed: func(channel string) {
			defer h.told()()
			h.live[channel] = true
			delete(h.away, channel)
		},
		Lost: func(channels []string, err error) {
			defer h.told()()
			for _, channel := range channels {
				if h.away[channel] && !errors.Is(err, redis.ErrClosed) {
					tb.Errorf("%s was lost before", channel)
				}
				delete(h.live, channel)
				h.away[channel] = true
			}
			h.lost = append(h.lost, channels...)
			h.errs = append(h.errs, err)
		},
		Refused: func(channel string, _ error) {
			defer h.told()()
			h.refused = append(h.refused, channel)
		},
	})
	require.NoError(tb, err)
	h.Channels = ch
	tb.Cleanup(func() { require.NoError(tb, ch.Close()) })
	return h
}

// told requires that nothing else is told meanwhile.
func (h *holder) told() (done func()) {
	if !h.telling.CompareAndSwap(false, true) {
		h.tb.Error("two functions at once")
	}
	runtime.Gosched()
	h.mu.Lock()
	return func() {
		h.mu.Unlock()
		h.telling.Store(false)
	}
}

func (h *holder) read(f func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	f()
}

func (h *holder) liveChannels() (channels []string) {
	h.read(func() { channels = slices.Sorted(maps.Keys(h.live)) })
	return channels
}

// forget is called after a channel was removed, and all is settled.
func (h *holder) forget(channel string) {
	h.read(func() {
		delete(h.live, channel)
		delete(h.away, channel)
	})
}

func (h *holder) lostChannels() (channels []string) {
	h.read(func() { channels = slices.Clone(h.lost) })
	return channels
}

// reasons returns the error of each Lost.
func (h *holder) reasons() (errs []error) {
	h.read(func() { errs = slices.Clone(h.errs) })
	return errs
}

func (h *holder) refusedChannels() (channels []string) {
	h.read(func() { channels = slices.Clone(h.refused) })
	return channels
}

func (h *holder) messages(channel string) (got []string) {
	h.read(func() { got = slices.Clone(h.got[channel]) })
	return got
}

func (h *holder) awaitLive(tb testing.TB, n int) {
	tb.Helper()
	require.Eventually(tb, func() bool { return len(h.liveChannels()) == n }, patience, time.Millisecond)
}

// delivers requires that a message published now comes.
func (h *holder) delivers(tb testing.TB, publish func(channel, payload string) error, channels ...string) {
	tb.Helper()
	for _, channel := range channels {
		payload := strconv.FormatInt(time.Now().UnixNano(), 10)
		require.NoError(tb, publish(channel, payload))
		require.Eventually(tb, func() bool { return slices.Contains(h.messages(channel), payload) }, patience, time.Millisecond)
	}
}

// client returns a client of url as redisha makes it.
func client(tb testing.TB, url string) *conn.Client {
	tb.Helper()
	ep, err := endpoint.Parse(url)
	require.NoError(tb, err)
	c, err := conn.New(conn.Config{Role: "locks", Endpoint: ep, Logger: slog.New(slog.DiscardHandler)})
	require.NoError(tb, err)
	tb.Cleanup(func() { require.NoError(tb, c.Close()) })
	return c
}

func tagged(n int) []string {
	channels := make([]string, n)
	for i := range channels {
		channels[i] = fmt.Sprintf("ns:lock:{key%d}:p:abc", i)
	}
	return channels
}

func plain(rdb redis.UniversalClient) func(channel, payload string) error {
	return func(channel, payload string) error { return rdb.Publish(context.Background(), channel, payload).Err() }
}

// byScript publishes as the scripts of package lock do.
func byScript(rdb redis.UniversalClient) func(channel, payload string) error {
	script := redis.NewScript(`return redis.call("SPUBLISH", ARGV[1], ARGV[2])`)
	return func(channel, payload string) error {
		return script.Run(context.Background(), rdb, []string{channel}, channel, payload).Err()
	}
}
