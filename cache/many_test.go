package cache

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/alicebob/miniredis/v2/server"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/conn"
	"github.com/redisha/redisha/internal/endpoint"
	"github.com/redisha/redisha/internal/redistest"
	"github.com/redisha/redisha/internal/redistest/both"
)

func TestEachOfManyKeysHasItsOwnResult(t *testing.T) {
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		c := newClient(t, rdb, Config{})
		v := NewView[string, user](c, "v", ViewConfig{})
		require.Empty(t, v.GetMany(t.Context(), nil))
		require.NoError(t, v.Set(t.Context(), "there", user{ID: 1, Tags: []string{"a"}}))
		_, err := v.Fetch(t.Context(), "absent", func(context.Context, string) (user, error) { return user{}, ErrNotFound })
		require.Equal(t, ErrNotFound, err)
		require.NoError(t, rdb.Set(t.Context(), v.prefix+"corrupt", "\xc1\x11junk", time.Hour).Err())
		require.NoError(t, rdb.Set(t.Context(), v.prefix+"leased", newLease(), time.Hour).Err())
		require.NoError(t, rdb.LPush(t.Context(), v.prefix+"list", "x").Err())
		before := c.Stats()
		keys := []string{"there", "missing", "absent", "corrupt", "there", "leased", "list"}
		results := v.GetMany(t.Context(), keys)
		there := Result[user]{Value: user{ID: 1, Tags: []string{"a"}}}
		require.Equal(t, []Result[user]{there, {Err: ErrMiss}, {Err: ErrNotFound}, {Err: ErrMiss}, there, {Err: ErrMiss}, {Err: ErrMiss}}, results)
		results[0].Value.Tags[0] = "changed"
		require.Equal(t, "a", results[4].Value.Tags[0], "each value is its own")
		require.Equal(t, []string{"there", "missing", "absent", "corrupt", "there", "leased", "list"}, keys)
		st := c.Stats()
		require.EqualValues(t, 2, st.Hits-before.Hits)
		require.EqualValues(t, 1, st.Absences-before.Absences)
		require.EqualValues(t, 4, st.Misses-before.Misses)
		require.EqualValues(t, 1, st.DecodeErrors-before.DecodeErrors)
		require.EqualValues(t, 1, st.GetTime.Count-before.GetTime.Count)
		require.Equal(t, before.Errors, st.Errors)
	})
}

func TestWhatIsSetTogetherIsGotTogetherAndHasATTL(t *testing.T) {
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		c := newClient(t, rdb, Config{})
		v := NewView[int, string](c, "v", ViewConfig{MaxValueBytes: 10_000, MinCompressBytes: -1})
		require.NoError(t, v.SetMany(t.Context(), nil))
		values := make(map[int]string)
		var keys []int
		for i := range maxPipeline + 500 { // more than one pipeline, by number and by length
			values[i] = strings.Repeat("x", i)
			keys = append(keys, i)
		}
		require.NoError(t, v.SetMany(t.Context(), values, TTL(time.Minute)))
		for i, res := range v.GetMany(t.Context(), keys) {
			require.NoError(t, res.Err)
			require.Equal(t, values[i], res.Value)
		}
		for _, key := range keys[:100] {
			ttl := rdb.PTTL(t.Context(), joinKey(v.prefix, key)).Val()
			require.Positive(t, ttl)
			require.LessOrEqual(t, ttl, time.Minute)
		}
		require.EqualValues(t, len(values), c.Stats().Sets)
		require.EqualValues(t, 1, c.Stats().SetTime.Count)

		require.EqualError(t, v.SetMany(t.Context(), values, TTL(-1)), "cache: set: TTL is -1ns, want at least 1ms")
	})
}

func TestWhatCannotBeSetKeepsTheOthersFromNothing(t *testing.T) {
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		c := newClient(t, rdb, Config{})
		v := NewView[string, string](c, "v", ViewConfig{MaxValueBytes: 10})
		err := v.SetMany(t.Context(), map[string]string{"a": "1", "b": "2", "long": strings.Repeat("x", 11)})
		require.EqualError(t, err, `cache: set: 1 of 3 keys, first "v:long": the value has 13 bytes, want at most 10: raise ViewConfig.MaxValueBytes or store less`)
		var keys *KeysError[string]
		require.ErrorAs(t, err, &keys)
		require.Len(t, keys.Errs, 1)
		var tooLong *tooLargeError
		require.ErrorAs(t, keys.Errs["long"], &tooLong)
		require.ErrorAs(t, err, &tooLong)
		results := v.GetMany(t.Context(), []string{"a", "b", "long"})
		require.Equal(t, []Result[string]{{Value: "1"}, {Value: "2"}, {Err: ErrMiss}}, results)
		require.EqualValues(t, 2, c.Stats().Sets)

		err = v.SetMany(t.Context(), map[string]string{"long": strings.Repeat("x", 11)})
		require.ErrorContains(t, err, `cache: set "v:long": the value has 13 bytes`)
	})
}

// A load that runs while its key is set, in this process or another one, is not
// stored over what was set.
func TestALoadThatSetManyOvertookIsNotStored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, rdb := newServer(t)
		c := newClient(t, rdb, Config{})
		v := NewView[string, int64](c, "v", ViewConfig{})
		src := newSource(int64(1))
		first := goFetch(t.Context(), v, "k", src.load)
		<-src.began
		require.NoError(t, v.SetMany(t.Context(), map[string]int64{"k": 50, "l": 51}))
		got, err := v.Fetch(t.Context(), "k", noLoad[string, int64](t))
		require.NoError(t, err)
		require.EqualValues(t, 50, got, "the old load is not waited for")
		close(src.release)
		require.Equal(t, fetched[int64]{1, nil}, <-first)
		require.Equal(t, []Result[int64]{{Value: 50}}, v.GetMany(t.Context(), []string{"k"}))
		require.EqualValues(t, 1, c.Stats().FillsRefused)
	})
}

func TestAnOutageIsTheErrorOfEachKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, rdb := newServer(t)
		c := newClient(t, rdb, Config{})
		v := NewView[string, string](c, "v", ViewConfig{})
		s.Stop()
		keys := []string{"a", "b", "c"}
		for i, res := range v.GetMany(t.Context(), keys) {
			require.ErrorContains(t, res.Err, fmt.Sprintf(`cache: get "v:%s": `, keys[i]))
			require.NotErrorIs(t, res.Err, ErrMiss)
			require.Empty(t, res.Value)
		}
		require.EqualValues(t, 3, c.Stats().Errors)
		require.Zero(t, c.Stats().GetTime.Count)

		err := v.SetMany(t.Context(), map[string]string{"a": "1", "b": "2"})
		require.ErrorContains(t, err, `cache: set: 2 of 2 keys, first "v:`)
		var failed *KeysError[string]
		require.ErrorAs(t, err, &failed)
		require.Len(t, failed.Errs, 2)
		require.EqualValues(t, 5, c.Stats().Errors)
		require.Zero(t, c.Stats().Sets)

		gone := errors.New("gone")
		ctx, cancel := context.WithCancelCause(t.Context())
		cancel(gone)
		for _, res := range v.GetMany(ctx, keys) {
			require.ErrorIs(t, res.Err, gone)
		}
		require.ErrorIs(t, v.SetMany(ctx, map[string]string{"a": "1"}), gone)
		require.ErrorIs(t, v.Delete(ctx, keys...), gone)
		require.EqualValues(t, 5, c.Stats().Errors, "whose caller left is no error")
	})
}

// A server may refuse some keys only.
func TestTheErrorOfAKeyIsThatOfNoOther(t *testing.T) {
	s, rdb := newServer(t)
	c := newClient(t, rdb, Config{})
	v := NewView[string, string](c, "v", ViewConfig{})
	s.SetPreHook(func(p *server.Peer, _ string, args ...string) bool {
		if len(args) > 0 && args[0] == "redisha:cache:v:bad" {
			p.WriteError("NOPERM not this one")
			return true
		}
		return false
	})
	err := v.SetMany(t.Context(), map[string]string{"good": "1", "bad": "2", "fine": "3"})
	require.EqualError(t, err, `cache: set: 1 of 3 keys, first "v:bad": NOPERM not this one`)
	require.Equal(t, []Result[string]{{Value: "1"}, {Value: "3"}}, v.GetMany(t.Context(), []string{"good", "fine"}))
	err = v.Delete(t.Context(), "good", "bad", "fine")
	require.ErrorContains(t, err, `cache: delete: 1 of 3 keys, first "v:bad": NOPERM not this one`)
	var failed *KeysError[string]
	require.ErrorAs(t, err, &failed)
	require.Len(t, failed.Errs, 1)
	require.ErrorContains(t, failed.Errs["bad"], "NOPERM not this one")
	require.Equal(t, []Result[string]{{Err: ErrMiss}, {Err: ErrMiss}}, v.GetMany(t.Context(), []string{"good", "fine"}))
	require.EqualValues(t, 2, c.Stats().Sets)
	require.EqualValues(t, 2, c.Stats().Deletes)
}

func TestManyKeysOfWhatIsOfNoUseFailLikeOne(t *testing.T) {
	_, rdb := newServer(t)
	c := newClient(t, rdb, Config{})
	keys, values := []string{"a", "b"}, map[string]string{"a": "1"}
	use := func(ctx context.Context, v *View[string, string], get, set string) {
		for _, res := range v.GetMany(ctx, keys) {
			require.EqualError(t, res.Err, get)
		}
		require.EqualError(t, v.SetMany(ctx, values), set)
	}
	wrong := `cache: view "v v": the name is "v v", want letters, digits, _ and - only`
	use(t.Context(), NewView[string, string](c, "v v", ViewConfig{}), wrong, wrong)
	v := NewView[string, string](c, "v", ViewConfig{})
	use(nil, v, "cache: get: nil context: pass context.Background() or the request's", //nolint:staticcheck // on purpose
		"cache: set: nil context: pass context.Background() or the request's")
	require.NoError(t, c.Close())
	use(t.Context(), v, "cache: get: redis: client is closed", "cache: set: redis: client is closed")
}

func TestManyKeysOnACluster(t *testing.T) {
	cluster := redistest.NewCluster(t, redistest.ClusterConfig{
		Replicas: -1, NodeTimeout: 10 * time.Minute, // the others go on without the one that is killed
		Data: redistest.Config{Lines: []string{"cluster-require-full-coverage no"}},
	})
	ep, err := endpoint.Parse(cluster.URL())
	require.NoError(t, err)
	own, err := conn.New(conn.Config{Role: "cache", Endpoint: ep, FailFast: true, Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, own.Close()) })
	for name, rdb := range map[string]redis.UniversalClient{"own": own, "foreign": cluster.Client(t)} {
		t.Run(name, func(t *testing.T) {
			v := NewView[string, string](newClient(t, rdb, Config{ReadTimeout: 20 * time.Second, Name: name}), "v", ViewConfig{})
			values := make(map[string]string)
			var keys []string
			for i := range 300 {
				key := fmt.Sprint("k", i)
				keys = append(keys, key)
				values[key] = "is " + key
			}
			require.NoError(t, v.SetMany(t.Context(), values))
			for i, res := range v.GetMany(t.Context(), keys) {
				require.NoError(t, res.Err)
				require.Equal(t, values[keys[i]], res.Value)
			}
			require.NoError(t, v.Delete(t.Context(), keys...))
			for _, res := range v.GetMany(t.Context(), keys) {
				require.Equal(t, ErrMiss, res.Err)
			}
		})
	}

	v := NewView[string, string](newClient(t, own, Config{ReadTimeout: 20 * time.Second}), "v", ViewConfig{})
	values, gone := make(map[string]string), make(map[string]bool)
	var keys []string
	for i := range 60 {
		key := fmt.Sprint("k", i)
		node, err := cluster.PrimaryOf(t.Context(), joinKey(v.prefix, key))
		require.NoError(t, err)
		keys = append(keys, key)
		values[key], gone[key] = "is "+key, node == cluster.Nodes[0]
	}
	require.NoError(t, v.SetMany(t.Context(), values))
	cluster.Nodes[0].Kill()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for i, res := range v.GetMany(ctx, keys) {
		if gone[keys[i]] {
			require.Error(t, res.Err)
			require.NotErrorIs(t, res.Err, ErrMiss)
			continue
		}
		require.NoError(t, res.Err)
		require.Equal(t, values[keys[i]], res.Value)
	}
	for op, err := range map[string]error{"set": v.SetMany(ctx, values), "delete": v.Delete(ctx, keys...)} {
		var failed *KeysError[string]
		require.ErrorAs(t, err, &failed, op)
		for _, key := range keys {
			require.Equal(t, gone[key], failed.Errs[key] != nil, "%s %s: %v", op, key, failed.Errs[key])
		}
	}
}
