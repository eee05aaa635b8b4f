package conn

import (
	"errors"
	"net"
	"testing"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/redistest"
	"github.com/redisha/redisha/internal/testserver"
)

// With a wrong password go-redis fails the pipeline and leaves its commands as if
// they had succeeded.
func TestEachCommandOfAPipelineThatGotNoConnectionHasItsError(t *testing.T) {
	srv := redistest.New(t, redistest.Config{Password: "right"})
	opt := srv.Options()
	opt.Password = "wrong"
	foreign := redis.NewClient(opt)
	defer foreign.Close()
	for _, rdb := range []redis.UniversalClient{foreign, open(t, Config{Endpoint: parse(t, "redis://:wrong@"+srv.Addr())})} {
		pipe := rdb.Pipeline()
		pipe.Unlink(t.Context(), "a")
		pipe.Unlink(t.Context(), "b")
		cmds := Exec(t.Context(), pipe)
		require.Len(t, cmds, 2)
		for _, cmd := range cmds {
			require.ErrorContains(t, cmd.Err(), "WRONGPASS")
		}
	}
}

func TestExecLeavesTheErrorsOfCommandsAlone(t *testing.T) {
	rdb := testserver.New(t).Client(t)
	require.NoError(t, rdb.Set(t.Context(), "k", "v", 0).Err())
	pipe := rdb.Pipeline()
	pipe.LPush(t.Context(), "k", 1)
	pipe.Get(t.Context(), "k")
	cmds := Exec(t.Context(), pipe)
	require.True(t, redis.HasErrorPrefix(cmds[0].Err(), "WRONGTYPE"))
	require.NoError(t, cmds[1].Err())

	gone := redis.NewClient(&redis.Options{Addr: closedAddr, MaxRetries: -1, DialerRetries: 1})
	defer gone.Close()
	pipe = gone.Pipeline()
	pipe.Get(t.Context(), "k")
	var op *net.OpError
	require.True(t, errors.As(Exec(t.Context(), pipe)[0].Err(), &op))
}
