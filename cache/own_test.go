package cache

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/conn"
	"github.com/redisha/redisha/internal/endpoint"
	"github.com/redisha/redisha/internal/redistest"
	"github.com/redisha/redisha/internal/testserver"
)

// All works alike on a client that redisha made. What it reads is not copied.
func TestAViewOnAClientOfOurOwn(t *testing.T) {
	own := newOwn(t, testserver.New(t))
	c := newClient(t, own, Config{})
	require.NoError(t, c.Check(t.Context()))
	raw := NewView[string, []byte](c, "raw", ViewConfig{Codec: Raw})
	texts := NewView[string, string](c, "text", ViewConfig{Codec: Raw})
	users := NewView[string, user](c, "user", ViewConfig{})
	for _, value := range []string{"", "short", string(kilobyte), string(kilobyte[:100]) + string(kilobyte)} {
		require.NoError(t, raw.Set(t.Context(), "k", []byte(value)))
		for range 2 {
			got, err := raw.Get(t.Context(), "k")
			require.NoError(t, err)
			require.NotNil(t, got)
			require.Equal(t, value, string(got))
			require.Equal(t, len(got), cap(got))
			for i := range got {
				got[i] = 'X' // it is the caller's
			}
		}
		require.NoError(t, texts.Set(t.Context(), "k", value))
		text, err := texts.Get(t.Context(), "k")
		require.NoError(t, err)
		require.Equal(t, value, text)
	}
	got, err := users.Fetch(t.Context(), "k", func(context.Context, string) (user, error) { return user{ID: 1}, nil })
	require.NoError(t, err)
	require.Equal(t, user{ID: 1}, got)
	require.NoError(t, users.Delete(t.Context(), "k")) // the server learns the script
	require.NoError(t, users.Delete(t.Context(), "k", "l"))
	s := c.Stats()
	require.Equal(t, "cache", s.Conn.Role)
	require.EqualValues(t, 1, s.Conn.Commands.Latency[4].Count, "keys are deleted in one pipeline")
}

// Reads go to a replica, but for what this process has just written.
func TestReadsGoToReplicas(t *testing.T) {
	primary := redistest.New(t, redistest.Config{})
	replica := redistest.NewReplica(t, primary, redistest.Config{})
	ep, err := endpoint.Parse(fmt.Sprintf("redis+replica://%s,%s?read_from=replica_preferred", primary.Addr(), replica.Addr()))
	require.NoError(t, err)
	cn, err := conn.New(conn.Config{Role: "cache", Endpoint: ep, FailFast: true, Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, cn.Close()) })
	writer := NewView[string, string](newClient(t, primary.Client(t), Config{}), "v", ViewConfig{})
	require.NoError(t, writer.Set(t.Context(), "k", "theirs"))
	c := newClient(t, cn, Config{})
	v := NewView[string, string](c, "v", ViewConfig{})
	reads := func(s *redistest.Server) bool {
		return strings.Contains(s.Client(t).Info(t.Context(), "commandstats").Val(), "cmdstat_get:")
	}
	require.Eventually(t, func() bool {
		n, err := replica.Client(t).DBSize(t.Context()).Result()
		return err == nil && n == 1 && cn.Check(t.Context()) == nil && cn.Stats().Replicas.Known > 0
	}, time.Minute, 10*time.Millisecond)
	require.NoError(t, primary.Client(t).ConfigResetStat(t.Context()).Err())
	got, err := v.Get(t.Context(), "k")
	require.NoError(t, err)
	require.Equal(t, "theirs", got)
	require.True(t, reads(replica))
	require.False(t, reads(primary))

	require.Eventually(t, func() bool { // the second is over too soon on a machine that stands still
		require.NoError(t, v.Set(t.Context(), "k", "ours"))
		got, err = v.Get(t.Context(), "k")
		return err == nil && got == "ours" && reads(primary)
	}, time.Minute, time.Millisecond)

	// Of several keys, each is read where it belongs.
	require.NoError(t, writer.Set(t.Context(), "l", "theirs"))
	require.Eventually(t, func() bool {
		require.NoError(t, v.SetMany(t.Context(), map[string]string{"k": "newer", "m": "new"}))
		for i, res := range v.GetMany(t.Context(), []string{"l", "k", "missing", "m", "k", "l"}) {
			if want := []string{"theirs", "newer", "", "new", "newer", "theirs"}[i]; res.Value != want || (res.Err == ErrMiss) != (want == "") {
				return false // the replica is late
			}
		}
		stats := func(s *redistest.Server) string { return s.Client(t).Info(t.Context(), "commandstats").Val() }
		return strings.Contains(stats(replica), "cmdstat_mget:") && strings.Contains(stats(primary), "cmdstat_mget:")
	}, time.Minute, time.Millisecond)

	// After a Clear all do: the replica may still have the values.
	require.NoError(t, primary.Client(t).ConfigResetStat(t.Context()).Err())
	require.Eventually(t, func() bool {
		require.NoError(t, v.Clear(t.Context()))
		_, err := v.Get(t.Context(), "never seen")
		return err == ErrMiss && reads(primary)
	}, time.Minute, recentFor+time.Millisecond)
}
