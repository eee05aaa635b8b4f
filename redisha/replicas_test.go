package redisha_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/cache"
	"github.com/redisha/redisha/redisha"
	"github.com/redisha/redisha/redisha/redishatest"
)

func TestACacheThatReadsReplicasSeesItsOwnWrites(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		servers := redishatest.NewSentinels(t)
		cfg := servers.Config()
		cfg.Cache.URL += "?read_from=replica_preferred"
		clients := open(t, redisha.Config{Cache: cfg.Cache, Logger: cfg.Logger})
		ctx := t.Context()
		view := cache.NewView[string, string](clients.Cache, "v", cache.ViewConfig{})
		load := func(context.Context, string) (string, error) { return "loaded", nil }

		require.NoError(t, view.Set(ctx, "k", "old"))
		time.Sleep(2 * time.Second)
		require.NoError(t, servers.SetLag(true)) // from now on the replicas have the past
		require.NoError(t, view.Set(ctx, "k", "new"))
		v, err := view.Get(ctx, "k")
		require.NoError(t, err)
		require.Equal(t, "new", v, "a key that was just written is read from the primary")
		time.Sleep(2 * time.Second)
		v, err = view.Get(ctx, "k")
		require.NoError(t, err)
		require.Equal(t, "old", v, "the replica lags, which read_from allows")
		require.NoError(t, view.Delete(ctx, "k"))
		v, err = view.Fetch(ctx, "k", load)
		require.NoError(t, err)
		require.Equal(t, "loaded", v, "what was deleted is not read from a replica")
		require.NotZero(t, clients.Cache.Stats().Conn.Replicas.Known)

		for _, replica := range servers.Replicas() {
			replica.Stop()
		}
		time.Sleep(time.Minute)
		v, err = view.Get(ctx, "k")
		require.NoError(t, err)
		require.Equal(t, "loaded", v, "without replicas the primary answers")
	})
}

func TestOnlyCachesReadFromReplicas(t *testing.T) {
	for _, cfg := range []redisha.Config{
		{Broker: redisha.BrokerConfig{Endpoint: at("redis+replica://h1,h2?read_from=replica")}},
		{Results: redisha.ResultsConfig{Endpoint: at("redis+sentinel://h1/m?read_from=replica_preferred")}},
		{Locks: redisha.LocksConfig{Endpoint: at("redis+cluster://h1,h2?read_from=replica")}},
	} {
		_, err := redisha.Open(t.Context(), cfg)
		require.ErrorContains(t, err, "reads from the primary alone")
	}
}

func TestAReadOfAReplicaWhoseConnectionBreaksIsRepeated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		servers := redishatest.NewSentinels(t)
		cfg := servers.Config()
		cfg.Cache.URL += "?read_from=replica"
		clients := open(t, redisha.Config{Cache: cfg.Cache, Logger: cfg.Logger})
		view := cache.NewView[string, string](clients.Cache, "v", cache.ViewConfig{})
		require.NoError(t, view.Set(t.Context(), "k", "v"))
		time.Sleep(2 * time.Second)
		for range 3 {
			v, err := view.Get(t.Context(), "k")
			require.NoError(t, err)
			require.Equal(t, "v", v)
			for _, replica := range servers.Replicas() {
				replica.CutConnections()
			}
		}
	})
}
