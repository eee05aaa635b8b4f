package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/bench/children"
	"github.com/redisha/redisha/internal/bench/harness"
	"github.com/redisha/redisha/internal/redistest"
)

func TestMain(m *testing.M) {
	children.Obey(order.obey)
	redistest.Main(m)
}

// benchOn is a bench on the server.
func benchOn(t *testing.T, server *redistest.Server) *bench {
	return &bench{Suite: &harness.Suite{Quick: true}, server: server, monitor: server.Client(t)}
}

func TestValuesAreJSONOfTheirSize(t *testing.T) {
	for _, n := range []int{0, 1, keyCount - 1} {
		for _, size := range sizes {
			value := text(n, size)
			require.Len(t, value, size)
			require.True(t, json.Valid(value))
		}
		value, err := json.Marshal(newProfile(n, 1024))
		require.NoError(t, err)
		require.Len(t, value, 1024)
	}
	require.NotEqual(t, text(1, 100), text(2, 100))
}

func TestPicksAreSpread(t *testing.T) {
	var picked [keyCount]int
	for caller := range 100 {
		for call := range 1000 {
			picked[pick(caller, call, keyCount)]++
		}
	}
	for i, n := range picked {
		require.LessOrEqual(t, n, 40, "%d, of 10 on average", i)
	}
	require.NotEqual(t, pick(0, 1, keyCount), pick(1, 0, keyCount))
}

// Every contender must do the same work.
func TestEverySideReadsWhatIsStored(t *testing.T) {
	server := redistest.Shared(t)
	b := benchOn(t, server)
	set, err := b.fill(t.Context(), 100)
	require.NoError(t, err)
	for _, s := range slowSides {
		c, err := s.open(server.Addr())
		require.NoError(t, err, s.name)
		for _, i := range []int{0, 1, keyCount - 1} {
			got, err := c.get(t.Context(), set.names[i], set.keys[i])
			require.NoError(t, err, s.name)
			require.Equal(t, string(text(i, 100)), string(got), s.name)
		}
		_, err = c.get(t.Context(), "nothing", prefix+"nothing")
		require.Error(t, err, s.name)
		require.NoError(t, c.end())
	}
}

// What passes the proxy is late, each by the delay, and no later.
func TestDelayedRequestsDoNotQueue(t *testing.T) {
	const delay, requests = 100 * time.Millisecond, 20
	o := order{Target: redistest.Shared(t).Addr(), Delay: delay}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	served := make(chan error, 1)
	go func() { served <- o.serve(l) }()
	c, err := net.Dial("tcp", l.Addr().String())
	require.NoError(t, err)
	began := time.Now()
	for range requests {
		_, err := io.WriteString(c, "PING\r\n")
		require.NoError(t, err)
		time.Sleep(time.Millisecond) // so that they are several chunks
	}
	_, err = io.ReadFull(c, make([]byte, len("+PONG\r\n")))
	require.NoError(t, err)
	require.GreaterOrEqual(t, time.Since(began), delay)
	_, err = io.ReadFull(c, make([]byte, (requests-1)*len("+PONG\r\n")))
	require.NoError(t, err)
	require.Less(t, time.Since(began), requests*delay/2)
	require.NoError(t, c.Close())
	require.NoError(t, l.Close())
	require.NoError(t, <-served)
}

func TestTheProxyIsAProcess(t *testing.T) {
	server := redistest.Shared(t)
	b := &bench{Suite: new(harness.Suite), server: server, monitor: server.Client(t)}
	topic := harness.Topic{Name: "test", Run: func(ctx context.Context, s *harness.Suite) error {
		b.Suite = s
		addr, err := b.startDelay(ctx, server.Addr(), time.Millisecond)
		if err != nil {
			return err
		}
		c, err := openPlain(addr)
		if err != nil {
			return err
		}
		if _, err = b.fill(ctx, 100); err != nil {
			return err
		}
		began := time.Now()
		if _, err = c.get(ctx, "", prefix+"100-1"); err != nil {
			return err
		}
		require.GreaterOrEqual(t, time.Since(began), time.Millisecond)
		return c.end()
	}}
	var stderr bytes.Buffer
	require.Zero(t, harness.Run(t.Context(), topic, nil, io.Discard, &stderr), stderr.String())
}

func TestAQuickRunComparesAllSides(t *testing.T) {
	redistest.Require(t)
	var stdout, stderr bytes.Buffer
	code := harness.Run(t.Context(), topic, []string{"-quick", "-only", "GET 100 B, 16 callers$"}, &stdout, &stderr)
	require.Zero(t, code, stderr.String())
	for _, s := range sides {
		require.Contains(t, stdout.String(), "| GET 100 B, 16 callers | "+s.name+" ")
	}
	require.NotContains(t, stdout.String(), "network |")
}
