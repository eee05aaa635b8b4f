package cache

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/alicebob/miniredis/v2/server"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/redistest"
)

// A lease whose holder does not know that it has it would keep others from the
// key for eleven seconds.
func TestALeaseWhoseReplyWasLostIsGivenBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, rdb := newServer(t)
		require.NoError(t, acquireScript.Load(t.Context(), rdb).Err())
		c := newClient(t, rdb, Config{})
		v := NewView[string, string](c, "v", ViewConfig{})
		rdb.AddHook(loseReply{script: acquireScript.Hash()})
		got, err := v.Fetch(t.Context(), "k", func(context.Context, string) (string, error) { return "past", nil })
		require.NoError(t, err)
		require.Equal(t, "past", got)
		synctest.Wait()
		require.Empty(t, s.Keys(), "the lease is given back")
	})
}

// loseReply lets a script run and loses its reply.
type loseReply struct{ script string }

func (h loseReply) DialHook(next redis.DialHook) redis.DialHook { return next }

func (h loseReply) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		err := next(ctx, cmd)
		if args := cmd.Args(); err == nil && len(args) > 1 && args[0] == "evalsha" && args[1] == h.script {
			err = errors.New("read: connection reset by peer")
			cmd.SetErr(err)
		}
		return err
	}
}

func (h loseReply) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

func TestALeaseIsGivenBackWhereTheValueDoesNotFit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, rdb := newServer(t)
		c := newClient(t, rdb, Config{})
		v := NewView[string, string](c, "v", ViewConfig{})
		full := false
		s.SetPreHook(func(p *server.Peer, cmd string, args ...string) bool {
			if full && cmd == "EVALSHA" && args[0] == fillScript.Hash() {
				p.WriteError("OOM command not allowed when used memory > 'maxmemory'.")
				return true
			}
			return false
		})
		require.NoError(t, fillScript.Load(t.Context(), rdb).Err())
		full = true
		got, err := v.Fetch(t.Context(), "k", func(context.Context, string) (string, error) { return "value", nil })
		require.NoError(t, err)
		require.Equal(t, "value", got)
		synctest.Wait()
		require.Empty(t, s.Keys())
	})
}

// A flight that hangs does not keep its process from what another has set.
func TestFetchFindsAValueBesideALoadThatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, rdb := newServer(t)
		here := NewView[string, string](newClient(t, rdb, Config{ReadTimeout: time.Second / 4}), "v", ViewConfig{})
		there := NewView[string, string](newClient(t, rdb, Config{}), "v", ViewConfig{})
		hung := make(chan error, 1)
		go func() {
			_, err := here.Fetch(t.Context(), "k", func(ctx context.Context, _ string) (string, error) {
				<-ctx.Done()
				return "", ctx.Err()
			})
			hung <- err
		}()
		time.Sleep(time.Second)
		require.NoError(t, there.Set(t.Context(), "k", "set"))
		start := time.Now()
		got, err := here.Fetch(t.Context(), "k", noLoad[string, string](t))
		require.NoError(t, err)
		require.Equal(t, "set", got)
		require.Zero(t, time.Since(start))
		require.ErrorIs(t, <-hung, context.DeadlineExceeded)
	})
}

// Who joined a young flight without a read asks Redis before he takes its failure
// for his own.
func TestAValueInRedisGoesBeforeTheFailureOfALoad(t *testing.T) {
	for _, isSet := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			_, rdb := newServer(t)
			here := NewView[string, string](newClient(t, rdb, Config{}), "v", ViewConfig{})
			there := NewView[string, string](newClient(t, rdb, Config{}), "v", ViewConfig{})
			release := make(chan struct{})
			failed := make(chan error, 1)
			go func() {
				_, err := here.Fetch(t.Context(), "k", func(context.Context, string) (string, error) {
					<-release
					return "", errors.New("source failed")
				})
				failed <- err
			}()
			synctest.Wait()
			if isSet {
				require.NoError(t, there.Set(t.Context(), "k", "set"))
			}
			joined := make(chan string, 1)
			go func() {
				got, err := here.Fetch(t.Context(), "k", noLoad[string, string](t))
				if err != nil {
					got = err.Error()
				}
				joined <- got
			}()
			synctest.Wait()
			close(release)
			require.ErrorContains(t, <-failed, "source failed")
			if isSet {
				require.Equal(t, "set", <-joined)
			} else {
				require.Contains(t, <-joined, "source failed")
			}
		})
	}
}

func TestADeleteOfSeveralKeysThatWasRefusedSaysSo(t *testing.T) {
	srv := redistest.New(t, redistest.Config{Password: "right"})
	opt := srv.Options()
	opt.Password = "wrong"
	rdb := redis.NewClient(opt)
	defer rdb.Close()
	c := newClient(t, rdb, Config{})
	v := NewView[string, string](c, "v", ViewConfig{})
	require.ErrorContains(t, v.Delete(t.Context(), "a", "b"), "WRONGPASS")
	require.Zero(t, c.Stats().Deletes)
}
