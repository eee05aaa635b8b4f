package batch

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/breaker"
	"github.com/redisha/redisha/internal/conn"
	"github.com/redisha/redisha/internal/endpoint"
	"github.com/redisha/redisha/internal/lanes"
	"github.com/redisha/redisha/internal/redistest"
	"github.com/redisha/redisha/internal/testserver"
)

func TestMain(m *testing.M) {
	redis.SetLogger(quiet{})
	redistest.Main(m)
}

// quiet keeps go-redis from telling of each connection that the tests break.
type quiet struct{}

func (quiet) Printf(context.Context, string, ...any) {}

// open returns a Batcher over a client of srv as redisha.Open makes it.
func open(tb testing.TB, srv *testserver.Server) *Batcher {
	tb.Helper()
	return batcher(tb, own(tb, conn.Config{Dialer: srv.Dial}, "redis://127.0.0.1:6379?pool_size=1024"))
}

// foreign returns a Batcher over a plain go-redis client of srv, and what it sends.
func foreign(tb testing.TB, srv *testserver.Server) (*Batcher, *redistest.Recorder) {
	tb.Helper()
	rdb := srv.Client(tb)
	rec := &redistest.Recorder{}
	rdb.AddHook(rec)
	cn, err := conn.Of(rdb)
	require.NoError(tb, err)
	return batcher(tb, cn), rec
}

func own(tb testing.TB, cfg conn.Config, url string) *conn.Client {
	tb.Helper()
	var err error
	cfg.Endpoint, err = endpoint.Parse(url)
	require.NoError(tb, err)
	cfg.Role, cfg.Logger = "test", slog.New(slog.DiscardHandler)
	cn, err := conn.New(cfg)
	require.NoError(tb, err)
	tb.Cleanup(func() { _ = cn.Close() })
	return cn
}

func batcher(tb testing.TB, cn *conn.Client) *Batcher {
	tb.Helper()
	b := New(cn)
	tb.Cleanup(func() { require.NoError(tb, b.Close(context.Background())) })
	return b
}

// occupy takes all lanes of q, so that requests have to wait until they are free.
func occupy(q *queue) (free func()) {
	q.mu.Lock()
	defer q.mu.Unlock()
	var taken []lanes.Ticket
	for q.lanes.Free() {
		taken = append(taken, q.lanes.Board(time.Now()))
	}
	return func() {
		for _, t := range taken {
			q.landed(t, false)
		}
	}
}

// single is the queue of the one server.
func single(b *Batcher) *queue { return b.servers.All()[0] }

// off is a breaker that is always closed.
var off = breaker.Config{Disabled: true}

func words(w ...any) []any { return w }
