package pubsub_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/redistest"
)

func TestChannelsOfOneServer(t *testing.T) {
	srv := redistest.New(t, redistest.Config{})
	c := client(t, srv.URL())
	h := hold(t, c)
	h.Add(tagged(100)...)
	h.awaitLive(t, 100)
	h.delivers(t, plain(c), tagged(100)...)
	require.Equal(t, 1, h.Stats().Connections)
}

func TestChannelsOfACluster(t *testing.T) {
	cluster := redistest.NewCluster(t, redistest.ClusterConfig{})
	c := client(t, cluster.URL())
	h := hold(t, c)
	start := time.Now()
	h.Add(tagged(1000)...)
	h.awaitLive(t, 1000)
	t.Log(time.Since(start))
	h.delivers(t, byScript(c), tagged(1000)...)
	require.Equal(t, 3, h.Stats().Connections)
	t.Logf("%+v", h.Stats())
}
