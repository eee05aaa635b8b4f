package coalesce

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"os"
	"strconv"
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
	poison = true
	redistest.Main(m)
}

// quiet keeps go-redis from telling of each connection that the tests break.
type quiet struct{}

func (quiet) Printf(context.Context, string, ...any) {}

// open returns a Reader over a client of srv as redisha.Open makes it for a cache.
func open(tb testing.TB, srv *testserver.Server, cfg Config) *Reader {
	tb.Helper()
	return reader(tb, own(tb, conn.Config{Dialer: srv.Dial, FailFast: true}, "redis://127.0.0.1:6379?pool_size=1024"), cfg)
}

// foreign returns a Reader over a plain go-redis client of srv, and what it sends.
func foreign(tb testing.TB, srv *testserver.Server, cfg Config) (*Reader, *redistest.Recorder) {
	tb.Helper()
	rdb := srv.Client(tb)
	rec := &redistest.Recorder{}
	rdb.AddHook(rec)
	cn, err := conn.Of(rdb)
	require.NoError(tb, err)
	return reader(tb, cn, cfg), rec
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

func reader(tb testing.TB, cn *conn.Client, cfg Config) *Reader {
	tb.Helper()
	r := New(cn, cfg)
	tb.Cleanup(func() { require.NoError(tb, r.Close(context.Background())) })
	return r
}

// occupy takes all lanes of q, so that reads have to wait until they are free.
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
func single(r *Reader) *queue { return r.servers.All()[0] }

// off is a breaker that is always closed.
var off = breaker.Config{Disabled: true}

// seed is logged, and can be given to play a game again.
func seed(tb testing.TB) uint64 {
	tb.Helper()
	n := rand.Uint64()
	if given, err := strconv.ParseUint(os.Getenv("REDISHA_TEST_SEED"), 10, 64); err == nil {
		n = given
	}
	tb.Logf("REDISHA_TEST_SEED=%d", n)
	return n
}
