package cache

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/redisha/redisha/compress"
	"github.com/redisha/redisha/internal/redistest"
	"github.com/redisha/redisha/internal/redistest/both"
)

func TestWhatIsSetIsGotUntilItIsDeleted(t *testing.T) {
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		c := newClient(t, rdb, Config{})
		users := NewView[int64, user](c, "user", ViewConfig{})
		_, err := users.Get(t.Context(), 42)
		require.Equal(t, ErrMiss, err)

		want := user{ID: 42, Name: "Zoë", Tags: []string{"a"}}
		require.NoError(t, users.Set(t.Context(), 42, want))
		got, err := users.Get(t.Context(), 42)
		require.NoError(t, err)
		require.Equal(t, want, got)
		require.Equal(t, "string", rdb.Type(t.Context(), "redisha:cache:user:42").Val())

		require.NoError(t, users.Set(t.Context(), 42, user{ID: 43}))
		got, err = users.Get(t.Context(), 42)
		require.NoError(t, err)
		require.Equal(t, user{ID: 43}, got)

		require.NoError(t, users.Delete(t.Context(), 42, 7))
		require.NoError(t, users.Delete(t.Context()))
		_, err = users.Get(t.Context(), 42)
		require.Equal(t, ErrMiss, err)
		require.Zero(t, rdb.DBSize(t.Context()).Val())

		s := c.Stats()
		require.EqualValues(t, 2, s.Hits)
		require.EqualValues(t, 2, s.Misses)
		require.EqualValues(t, 2, s.Sets)
		require.EqualValues(t, 2, s.Deletes)
		require.Zero(t, s.Errors)
		require.EqualValues(t, 4, s.GetTime.Count)
		require.EqualValues(t, 2, s.SetTime.Count)
		require.EqualValues(t, 1, s.DeleteTime.Count)
		require.Equal(t, "standalone", s.Conn.Topology)
	})
}

func TestManyKeysAreDeletedAtOnce(t *testing.T) {
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		numbers := NewView[int, int](newClient(t, rdb, Config{}), "number", ViewConfig{})
		var keys []int
		for i := range maxPipeline + 10 {
			keys = append(keys, i)
			if i%100 == 0 || i > maxPipeline {
				require.NoError(t, numbers.Set(t.Context(), i, i))
			}
		}
		require.NoError(t, numbers.Set(t.Context(), -1, -1))
		require.NoError(t, numbers.Delete(t.Context(), keys...))
		require.Equal(t, []string{"redisha:cache:number:-1"}, rdb.Keys(t.Context(), "*").Val())
	})
}

// On a Cluster the keys of one call lie on different nodes and slots.
func TestAViewOnACluster(t *testing.T) {
	s := redistest.New(t, redistest.Config{Lines: []string{"cluster-enabled yes"}})
	node := s.Client(t)
	require.NoError(t, node.ClusterAddSlotsRange(t.Context(), 0, 16383).Err())
	require.Eventually(t, func() bool {
		return strings.Contains(node.ClusterInfo(t.Context()).Val(), "cluster_state:ok")
	}, 10*time.Second, 10*time.Millisecond)
	rdb := redis.NewClusterClient(&redis.ClusterOptions{Addrs: []string{s.Addr()}, MaxRetries: -1, ContextTimeoutEnabled: true})
	t.Cleanup(func() { _ = rdb.Close() })
	c := newClient(t, rdb, Config{})
	numbers := NewView[int, int](c, "number", ViewConfig{})
	var keys []int
	for i := range 50 {
		got, err := numbers.Fetch(t.Context(), i, func(_ context.Context, i int) (int, error) { return -i, nil })
		require.NoError(t, err)
		require.Equal(t, -i, got)
		got, err = numbers.Get(t.Context(), i)
		require.NoError(t, err)
		require.Equal(t, -i, got)
		keys = append(keys, i)
	}
	require.EqualValues(t, 50, node.DBSize(t.Context()).Val())
	require.NoError(t, numbers.Delete(t.Context(), keys...))
	require.Zero(t, node.DBSize(t.Context()).Val())
	require.Equal(t, "cluster", c.Stats().Conn.Topology)
}

// Any bytes are a key of their own, also those that mean something to others.
func TestHostileKeysStayApart(t *testing.T) {
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		v := NewView[string, string](newClient(t, rdb, Config{}), "v", ViewConfig{Codec: Raw})
		keys := []string{"", " ", "*", "?", "{a}", "}{", "a:b", "a\x00b", "\r\nFLUSHALL\r\n", "\xc1\x10", "\xff\xfe", "日本", strings.Repeat("k", 10_000), "%s%n"}
		for _, key := range keys {
			require.NoError(t, v.Set(t.Context(), key, "is "+key))
		}
		for _, key := range keys {
			got, err := v.Fetch(t.Context(), key, noLoad[string, string](t))
			require.NoError(t, err)
			require.Equal(t, "is "+key, got)
			require.NoError(t, v.Delete(t.Context(), key))
			_, err = v.Get(t.Context(), key)
			require.Equal(t, ErrMiss, err, "%q", key)
		}
		require.Zero(t, rdb.DBSize(t.Context()).Val())
	})
}

// Whatever the TTL, a value has one, and it is not above what was asked for.
func TestTTLIsNeverAboveWhatWasAskedForAndNeverMissing(t *testing.T) {
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		c := newClient(t, rdb, Config{})
		check := func(t *rapid.T, key string, asked time.Duration, from time.Time) {
			ttl := rdb.PTTL(context.Background(), key).Val()
			switch ttl { // as go-redis says it: -2 there is none, -1 there is no TTL
			case -2:
				require.GreaterOrEqual(t, time.Since(from), asked*9/10-time.Millisecond, "gone too early")
			default:
				require.NotEqual(t, time.Duration(-1), ttl)
				require.LessOrEqual(t, ttl, asked)
				require.GreaterOrEqual(t, ttl+time.Since(from)+2*time.Millisecond, asked*9/10)
			}
		}
		rapid.Check(t, func(t *rapid.T) {
			ttl := time.Duration(rapid.OneOf(
				rapid.Int64Range(int64(time.Millisecond), int64(3*time.Second)),
				rapid.Int64Range(int64(time.Millisecond), int64(90*24*time.Hour)),
				rapid.Int64Range(int64(time.Millisecond), int64(maxTTL)),
			).Draw(t, "ttl"))
			ctx, key := context.Background(), rapid.StringMatching(`[a-z]{8}`).Draw(t, "key")
			v := NewView[string, string](c, "v", ViewConfig{TTL: ttl, AbsentTTL: ttl})

			from := time.Now()
			require.NoError(t, v.Set(ctx, key, "x"))
			check(t, "redisha:cache:v:"+key, ttl, from)
			from = time.Now()
			require.NoError(t, NewView[string, string](c, "v", ViewConfig{}).Set(ctx, key, "x", TTL(ttl)))
			check(t, "redisha:cache:v:"+key, ttl, from)
			for _, loaded := range []error{nil, ErrNotFound} {
				require.NoError(t, v.Delete(ctx, key))
				_, err := v.Fetch(ctx, key, func(context.Context, string) (string, error) {
					from = time.Now()
					return "x", loaded
				})
				require.Equal(t, loaded, err)
				check(t, "redisha:cache:v:"+key, ttl, from)
			}
			require.NoError(t, v.Delete(ctx, key))
		})
	})
}

func TestJitterTakesUpToATenth(t *testing.T) {
	seen := make(map[int64]bool)
	for range 10_000 {
		seen[jitter(100*time.Millisecond)] = true
	}
	for ms := range int64(200) {
		require.Equal(t, ms >= 90 && ms <= 100, seen[ms], "%d ms", ms)
	}
	require.EqualValues(t, 9, jitter(9*time.Millisecond), "nothing to take")
	require.EqualValues(t, 1, jitter(time.Millisecond+999*time.Microsecond))
	require.EqualValues(t, 1, millis(time.Microsecond), "0 would mean no TTL")
}

func TestAValueExpires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, rdb := newServer(t)
		v := NewView[string, int](newClient(t, rdb, Config{}), "v", ViewConfig{TTL: time.Hour})
		require.NoError(t, v.Set(t.Context(), "k", 1))
		time.Sleep(54*time.Minute - time.Second)
		_, err := v.Get(t.Context(), "k")
		require.NoError(t, err)
		time.Sleep(6 * time.Minute)
		_, err = v.Get(t.Context(), "k")
		require.Equal(t, ErrMiss, err)
	})
}

func TestSetRefusesATTLBelowAMillisecond(t *testing.T) {
	_, rdb := newServer(t)
	v := NewView[string, int](newClient(t, rdb, Config{}), "v", ViewConfig{})
	for _, ttl := range []time.Duration{0, -1, 999 * time.Microsecond} {
		require.EqualError(t, v.Set(t.Context(), "k", 1, TTL(ttl)), fmt.Sprintf(`cache: set "v:k": TTL is %s, want at least 1ms`, ttl))
	}
	require.Zero(t, rdb.DBSize(t.Context()).Val())
}

func TestAValueAboveTheLimitIsRefused(t *testing.T) {
	_, rdb := newServer(t)
	c := newClient(t, rdb, Config{})
	v := NewView[string, string](c, "v", ViewConfig{Codec: Raw, MaxValueBytes: 1000})
	require.NoError(t, v.Set(t.Context(), "k", strings.Repeat("x", 1000)))
	require.EqualError(t, v.Set(t.Context(), "k", strings.Repeat("x", 1001)),
		`cache: set "v:k": the value has 1001 bytes, want at most 1000: raise ViewConfig.MaxValueBytes or store less`)
	require.EqualValues(t, 1, c.Stats().TooLarge)
	got, err := v.Get(t.Context(), "k")
	require.NoError(t, err)
	require.Len(t, got, 1000, "what was there stays")

	chans := NewView[string, chan int](c, "v", ViewConfig{})
	require.EqualError(t, chans.Set(t.Context(), "k", nil), `cache: set "v:k": encode: json: unsupported type: chan int`)
}

func TestLongValuesAreCompressedAndCounted(t *testing.T) {
	_, rdb := newServer(t)
	c := newClient(t, rdb, Config{})
	long := strings.Repeat("all the same ", 100)
	v := NewView[string, string](c, "v", ViewConfig{Codec: Raw})
	require.NoError(t, v.Set(t.Context(), "k", long))
	s := c.Stats()
	require.EqualValues(t, 1300, s.BytesBefore)
	require.Less(t, s.BytesAfter, uint64(100))
	require.EqualValues(t, s.BytesAfter+headerSize, rdb.StrLen(t.Context(), "redisha:cache:v:k").Val())
	for _, threshold := range []int{-1, 0, 1, 10_000} { // whatever the setting, it is read
		got, err := NewView[string, string](c, "v", ViewConfig{Codec: Raw, MinCompressBytes: threshold}).Get(t.Context(), "k")
		require.NoError(t, err)
		require.Equal(t, long, got)
	}
	off := NewView[string, string](c, "v", ViewConfig{Codec: Raw, MinCompressBytes: -1})
	require.NoError(t, off.Set(t.Context(), "k", long))
	require.EqualValues(t, 1300+headerSize, rdb.StrLen(t.Context(), "redisha:cache:v:k").Val())
}

// A plain value is what other programs read; any first byte is possible.
func TestPlainValuesAreExactlyTheCodecsBytes(t *testing.T) {
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		c := newClient(t, rdb, Config{})
		raw := NewView[int, []byte](c, "raw", ViewConfig{Plain: true, Codec: Raw})
		for first := range 256 {
			value := []byte{byte(first), 'x'}
			require.NoError(t, raw.Set(t.Context(), first, value))
			stored, err := rdb.Get(t.Context(), fmt.Sprint("redisha:cache:raw:", first)).Bytes()
			require.NoError(t, err)
			if first == mark {
				require.True(t, compress.IsFrame(stored))
			} else {
				require.Equal(t, value, stored)
			}
			got, err := raw.Get(t.Context(), first)
			require.NoError(t, err)
			require.Equal(t, value, got)
		}
		require.NoError(t, raw.Set(t.Context(), 0, nil))
		got, err := raw.Get(t.Context(), 0)
		require.NoError(t, err)
		require.Empty(t, got)
		require.Empty(t, rdb.Get(t.Context(), "redisha:cache:raw:0").Val())

		users := NewView[int, user](c, "user", ViewConfig{Plain: true})
		require.NoError(t, users.Set(t.Context(), 1, user{ID: 1, Name: "Zoë"}))
		require.Equal(t, `{"ID":1,"Name":"Zoë"}`, rdb.Get(t.Context(), "redisha:cache:user:1").Val())
		require.NoError(t, rdb.Set(t.Context(), "redisha:cache:user:2", `{"ID":2}`, time.Minute).Err())
		u, err := users.Fetch(t.Context(), 2, noLoad[int, user](t))
		require.NoError(t, err)
		require.Equal(t, user{ID: 2}, u, "what another program has written")
	})
}

func TestANilContextIsAnError(t *testing.T) {
	_, rdb := newServer(t)
	c := newClient(t, rdb, Config{})
	var none context.Context
	for use, err := range useAll(none, NewView[string, user](c, "user", ViewConfig{})) {
		require.EqualError(t, err, "cache: "+use+": nil context: pass context.Background() or the request's")
	}
	require.EqualError(t, c.Check(none), "cache: check: nil context: pass context.Background() or the request's")
	require.Nil(t, c.Scope(none))
}

func TestACallersContextEndsItsCall(t *testing.T) {
	_, rdb := newServer(t)
	v := NewView[string, user](newClient(t, rdb, Config{}), "user", ViewConfig{})
	ctx, cancel := context.WithCancelCause(t.Context())
	why := fmt.Errorf("the request is over")
	cancel(why)
	for use, err := range useAll(ctx, v) {
		require.Error(t, err, use)
	}
	_, err := v.Fetch(ctx, "k", noLoad[string, user](t))
	require.ErrorIs(t, err, why)
	require.EqualError(t, err, `cache: fetch "user:k": the request is over`)
}

func TestAValueIsGotIntoTheCallersMemory(t *testing.T) {
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		type page []byte
		type text string
		c := newClient(t, rdb, Config{})
		bytes := NewView[string, []byte](c, "v", ViewConfig{Codec: Raw})
		pages := NewView[string, page](c, "v", ViewConfig{Codec: Raw})
		texts := NewView[string, text](c, "v", ViewConfig{Codec: Raw})
		for _, value := range []string{"", "short", string(kilobyte), strings.Repeat("deflated ", 100)} {
			require.NoError(t, bytes.Set(t.Context(), "k", []byte(value)))
			memory := make([]byte, 2000)
			buf := memory[:3]
			require.NoError(t, bytes.GetInto(t.Context(), "k", &buf))
			require.Equal(t, value, string(buf))
			require.Same(t, &memory[0], &buf[:1][0])

			p := page(memory[:7])
			require.NoError(t, pages.GetInto(t.Context(), "k", &p))
			require.Equal(t, value, string(p))
			require.Same(t, &memory[0], &p[:1][0])

			small := []byte{'x'}
			require.NoError(t, bytes.GetInto(t.Context(), "k", &small))
			require.Equal(t, value, string(small))

			s := text("before")
			require.NoError(t, texts.GetInto(t.Context(), "k", &s))
			require.EqualValues(t, value, s)
		}

		users := NewView[string, user](c, "user", ViewConfig{})
		require.NoError(t, users.Set(t.Context(), "k", user{ID: 1}))
		dst := user{ID: 9, Name: "before", Tags: []string{"before"}}
		require.NoError(t, users.GetInto(t.Context(), "k", &dst))
		require.Equal(t, user{ID: 1}, dst, "nothing is left of what was there")

		before := c.Stats()
		require.Equal(t, ErrMiss, users.GetInto(t.Context(), "missing", &dst))
		_, err := users.Fetch(t.Context(), "absent", func(context.Context, string) (user, error) { return user{}, ErrNotFound })
		require.Equal(t, ErrNotFound, err)
		require.Equal(t, ErrNotFound, users.GetInto(t.Context(), "absent", &dst))
		require.NoError(t, rdb.Set(t.Context(), "redisha:cache:user:corrupt", "\xc1\x11", time.Hour).Err())
		require.Equal(t, ErrMiss, users.GetInto(t.Context(), "corrupt", &dst))
		require.EqualValues(t, 1, c.Stats().DecodeErrors-before.DecodeErrors)
		require.EqualError(t, users.GetInto(t.Context(), "k", nil), `cache: get "user:k": nil destination: pass a pointer to a value`)
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		require.ErrorIs(t, users.GetInto(ended, "k", &dst), context.Canceled)
		require.NoError(t, c.Close())
		require.EqualError(t, users.GetInto(t.Context(), "k", &dst), "cache: get: redis: client is closed")
	})
}

func TestGettingIntoABufferAllocatesNoOther(t *testing.T) {
	rdb := redis.NewClient(&redis.Options{Addr: "127.0.0.1:0"})
	t.Cleanup(func() { _ = rdb.Close() })
	rdb.AddHook(answer{string(append(appendHeader(nil, kindValue, header{}), kilobyte...))})
	v := NewView[int64, []byte](newClient(t, rdb, Config{}), "v", ViewConfig{Codec: Raw})
	get := testing.AllocsPerRun(100, func() { _, _ = v.Get(t.Context(), 1234567890) })
	buf := make([]byte, 0, 2000)
	into := testing.AllocsPerRun(100, func() { _ = v.GetInto(t.Context(), 1234567890, &buf) })
	require.Equal(t, string(kilobyte), string(buf))
	require.Less(t, into, get)
}

// A package-level variable that nobody has set, for example.
func TestWhatWasNotMadeIsAnError(t *testing.T) {
	for name, v := range map[string]*View[string, user]{"nil": nil, "zero": {}} {
		for use, err := range useAll(t.Context(), v) {
			require.EqualError(t, err, "cache: "+use+": a View that was not made: NewView makes one", name)
		}
	}
	var m Map[string, int]
	_, err := m.Get(t.Context(), "k")
	require.ErrorContains(t, err, "cache: get: what is used was not made: NewMap")
	var l Limiter[string]
	_, err = l.Allow(t.Context(), "k")
	require.ErrorContains(t, err, "was not made")
	var s SessionStore
	_, _, err = s.Find("k")
	require.ErrorContains(t, err, "was not made")
	var h Hash[string, int]
	_, err = h.Get(t.Context(), "k", "f")
	require.ErrorContains(t, err, "was not made")
}

func TestAMapsUpdateNeedsAFunction(t *testing.T) {
	_, rdb := newServer(t)
	c := newClient(t, rdb, Config{})
	m := NewMap[string, int](c, "m", MapConfig{})
	_, err := m.Update(t.Context(), "k", nil)
	require.EqualError(t, err, `cache: map "m": update: nil change function: pass what makes the new value of the old one`)
}
