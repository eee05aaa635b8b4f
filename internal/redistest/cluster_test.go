package redistest_test

import (
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/redistest"
)

func TestClusterStartsSettled(t *testing.T) {
	for name, cfg := range map[string]redistest.ClusterConfig{
		"3+3":               {},
		"one":               {Primaries: 1, Replicas: -1},
		"TLS and passwords": {Primaries: 2, Data: redistest.Config{Password: "data", TLS: &redistest.TLS{RequireClientCert: true}}},
	} {
		t.Run(name, func(t *testing.T) {
			begin := time.Now()
			c := redistest.NewCluster(t, cfg)
			t.Log("settled in", time.Since(begin))
			u, err := url.Parse(c.URL())
			require.NoError(t, err)
			require.Equal(t, strings.Join(c.Addrs(), ","), u.Host)
			require.Equal(t, map[bool]string{true: "rediss+cluster", false: "redis+cluster"}[cfg.Data.TLS != nil], u.Scheme)
			password, _ := u.User.Password()
			require.Equal(t, cfg.Data.Password, password)
			require.Nil(t, c.Proxy(c.Nodes[0]))
			rdb := c.Client(t)
			for _, key := range []string{"a", "b", "c", "d", "e"} {
				require.NoError(t, rdb.Set(t.Context(), key, key, 0).Err())
				s, err := c.PrimaryOf(t.Context(), key)
				require.NoError(t, err)
				require.NoError(t, s.Client(t).Get(t.Context(), key).Err()) // MOVED if it were another
				replicas, err := c.ReplicasOf(t.Context(), key)
				require.NoError(t, err)
				if cfg.Replicas < 0 {
					require.Empty(t, replicas)
					continue
				}
				require.Len(t, replicas, 1)
				require.NotSame(t, s, replicas[0])
			}
		})
	}
}

func TestClusterFailsOver(t *testing.T) {
	c := redistest.NewCluster(t, redistest.ClusterConfig{})
	primary, err := c.PrimaryOf(t.Context(), "k")
	require.NoError(t, err)
	replicas, err := c.ReplicasOf(t.Context(), "k")
	require.NoError(t, err)
	begin := time.Now()
	require.NoError(t, c.Failover(t.Context(), replicas[0]))
	t.Log("failover in", time.Since(begin))
	now, err := c.PrimaryOf(t.Context(), "k")
	require.NoError(t, err)
	require.Same(t, replicas[0], now)
	require.NoError(t, c.Settled(t.Context()))
	t.Log("settled in", time.Since(begin))

	now.Kill()
	begin = time.Now()
	back, err := c.AwaitPrimary(t.Context(), "k", now.Addr())
	require.NoError(t, err)
	require.Same(t, primary, back)
	t.Log("after kill in", time.Since(begin))
	require.NoError(t, now.Restart(t.Context()))
	require.NoError(t, c.Settled(t.Context()))
	t.Log("after restart", time.Since(begin))
}

func TestSlotMigrates(t *testing.T) {
	c := redistest.NewCluster(t, redistest.ClusterConfig{Replicas: -1, Data: redistest.Config{Password: "secret"}})
	rdb := c.Client(t)
	keys := []string{"{tag}1", "{tag}2", "{tag}3"}
	for _, key := range keys {
		require.NoError(t, rdb.Set(t.Context(), key, key, 0).Err())
	}
	slot, err := c.Slot(t.Context(), keys[0])
	require.NoError(t, err)
	from, err := c.PrimaryOf(t.Context(), keys[0])
	require.NoError(t, err)
	to := c.Nodes[0]
	if to == from {
		to = c.Nodes[1]
	}
	require.ErrorContains(t, c.MigrateKeys(t.Context(), slot), "no migration is under way")
	require.ErrorContains(t, c.BeginMigration(t.Context(), slot, from), "serves it already")
	require.NoError(t, c.BeginMigration(t.Context(), slot, to))
	require.ErrorContains(t, from.Client(t).Get(t.Context(), "{tag}new").Err(), "ASK ")
	require.NoError(t, c.MigrateKeys(t.Context(), slot, keys[0]))
	require.ErrorContains(t, from.Client(t).Get(t.Context(), keys[0]).Err(), "ASK ")
	require.ErrorContains(t, from.Client(t).MGet(t.Context(), keys...).Err(), "TRYAGAIN")
	require.Equal(t, keys[0], rdb.Get(t.Context(), keys[0]).Val())
	require.NoError(t, c.MigrateKeys(t.Context(), slot))
	require.NoError(t, c.EndMigration(t.Context(), slot))
	require.ErrorContains(t, from.Client(t).Get(t.Context(), keys[0]).Err(), "MOVED ")
	now, err := c.PrimaryOf(t.Context(), keys[0])
	require.NoError(t, err)
	require.Same(t, to, now)
	require.NoError(t, c.Settled(t.Context()))
	require.NoError(t, c.MigrateSlot(t.Context(), slot, from))
	for _, key := range keys {
		require.Equal(t, key, rdb.Get(t.Context(), key).Val())
	}
}
