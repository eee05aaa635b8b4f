package resolve

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/testserver"
)

const (
	group    = "mymaster"
	primaryA = "10.0.0.1:6379"
	primaryB = "10.0.0.2:6379"
)

// A scene is some Sentinels in memory, on 10.1.0.1:26379 and so on, which all
// name primaryA with config-epoch 1.
type scene struct {
	t         *testing.T
	net       *testserver.Net
	sentinels []*testserver.Sentinel
	addrs     []string
	log       *logBook
}

func newScene(t *testing.T, n int) *scene {
	s := &scene{t: t, net: testserver.NewNet(), log: &logBook{}}
	for i := range n {
		s.add(fmt.Sprintf("10.1.0.%d:26379", i+1))
	}
	return s
}

func (s *scene) add(addr string) *testserver.Sentinel {
	sentinel := testserver.NewSentinel(s.t, s.net, addr)
	sentinel.Monitor(testserver.Monitored{Name: group, Primary: primaryA, Epoch: 1})
	s.sentinels = append(s.sentinels, sentinel)
	s.addrs = append(s.addrs, addr)
	return sentinel
}

// tell lets Sentinels know of a primary, without an announcement.
func tell(primary string, epoch uint64, sentinels ...*testserver.Sentinel) {
	for _, s := range sentinels {
		m, _ := s.Monitored(group)
		m.Name, m.Primary, m.Epoch = group, primary, epoch
		s.Monitor(m)
	}
}

func (s *scene) open(change ...func(*SentinelConfig)) Resolver {
	s.t.Helper()
	cfg := SentinelConfig{Addrs: s.addrs, MasterName: group, Dial: s.net.Dial, Name: "redisha:test", Logger: s.log.logger()}
	for _, f := range change {
		f(&cfg)
	}
	r, err := NewSentinel(cfg)
	require.NoError(s.t, err)
	s.t.Cleanup(func() { require.NoError(s.t, r.Close()) })
	return r
}

// logBook keeps what was logged, without times.
type logBook struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBook) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBook) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(l, &slog.HandlerOptions{Level: slog.LevelInfo, ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}}))
}

func (l *logBook) lines() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Split(strings.TrimSpace(l.b.String()), "\n")
}

// count returns how many lines contain text.
func (l *logBook) count(text string) int {
	var n int
	for _, line := range l.lines() {
		if strings.Contains(line, text) {
			n++
		}
	}
	return n
}

// await waits until the State is as wanted and returns how long that took.
func await(t *testing.T, r Resolver, within time.Duration, want func(*State) bool) time.Duration {
	t.Helper()
	start := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	for {
		changed := r.Changed()
		if want(r.State()) {
			return time.Since(start)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			require.FailNowf(t, "the state did not come", "state %+v, err %v after %s", *r.State(), r.Err(), within)
		}
	}
}

func at(primary string) func(*State) bool {
	return func(s *State) bool { return s.Primary == primary }
}

func TestPrimaryIsFoundAndFollowed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, 3)
		r := s.open()
		await(t, r, 10*time.Millisecond, at(primaryA))
		require.EqualValues(t, 1, r.State().Epoch)
		require.NoError(t, r.Err())

		time.Sleep(100 * time.Millisecond)
		s.sentinels[1].Switch(group, primaryB, 2)
		took := await(t, r, time.Second, at(primaryB))
		require.LessOrEqual(t, took, 50*time.Millisecond, "an announcement triggers a poll")
		require.EqualValues(t, 2, r.State().Epoch)
		synctest.Wait() // the statistics follow the state
		st := r.Stats()
		require.EqualValues(t, 1, st.Switches)
		require.EqualValues(t, 1, st.Announcements)
		require.EqualValues(t, 2, st.ConfigEpoch)
		require.Equal(t, 1, s.log.count("failover: new primary"))
	})
}
