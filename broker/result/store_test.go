package result

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2/server"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/redistest"
	"github.com/redisha/redisha/internal/redistest/both"
	"github.com/redisha/redisha/internal/testserver"
)

func TestARecordIsStoredUnderItsIDWithATTL(t *testing.T) {
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		c := newClient(t, rdb, Config{Namespace: "shop", TTL: time.Hour})
		want := golden["retry"]
		want.ID = "order-7:3"
		stored, err := c.Store(t.Context(), want)
		require.NoError(t, err)
		require.True(t, stored)

		got, err := c.Get(t.Context(), "order-7:3")
		require.NoError(t, err)
		require.Equal(t, want, got)
		ttl := rdb.PTTL(t.Context(), "shop:result:order-7:3").Val()
		require.Greater(t, ttl, time.Hour-time.Minute)
		require.LessOrEqual(t, ttl, time.Hour)

		want.TTL = time.Minute
		_, err = c.Store(t.Context(), want)
		require.NoError(t, err)
		require.LessOrEqual(t, rdb.PTTL(t.Context(), "shop:result:order-7:3").Val(), time.Minute)
	})
}

func TestNoRecordMeansPending(t *testing.T) {
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		got, err := newClient(t, rdb, Config{}).Get(t.Context(), "nobody")
		require.NoError(t, err)
		require.Equal(t, Record{ID: "nobody", State: Pending}, got)
	})
}

// Each return value of store.lua, and the message that goes with it.
func TestStoreScriptReturns(t *testing.T) {
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		sub := rdb.Subscribe(t.Context(), key+"x")
		t.Cleanup(func() { _ = sub.Close() })
		_, err := sub.Receive(t.Context())
		require.NoError(t, err)
		codec := newCodec(t)
		run := func(r Record, command string) int {
			n, err := storeScript.Run(t.Context(), rdb, []string{key + "x"}, appendRecord(nil, r, codec), 1000, command).Int()
			require.NoError(t, err)
			return n
		}
		require.Equal(t, 1, run(Record{State: Started, Attempt: 2}, "PUBLISH"))
		require.Equal(t, 0, run(Record{State: Success, Attempt: 1}, "PUBLISH"))
		require.Equal(t, 1, run(Record{State: Progress, Attempt: 2}, "PUBLISH"), "the same attempt goes on")
		require.Equal(t, 2, run(Record{State: Retry, Attempt: 2}, "NOSUCHCOMMAND"), "stored, but nobody was told")
		require.Equal(t, byte(Retry), rdb.Get(t.Context(), key+"x").Val()[offState])
		require.Equal(t, 1, run(Record{State: Success, Attempt: 3}, "PUBLISH"))
		require.Equal(t, 0, run(Record{State: Success, Attempt: 4}, "PUBLISH"), "a final record stays")
		require.Equal(t, 1, run(Record{State: Success, Attempt: 3}, "PUBLISH"), "the same once more")
		require.NoError(t, rdb.Publish(t.Context(), key+"x", "end").Err())

		var told []string
		for msg := ""; msg != "end"; {
			m, err := sub.ReceiveMessage(t.Context())
			require.NoError(t, err)
			msg = m.Payload
			told = append(told, msg)
		}
		require.Equal(t, []string{"\x01", "\x02", "\x10", "end"}, told, "one message for each effect")
		require.LessOrEqual(t, rdb.PTTL(t.Context(), key+"x").Val(), time.Second)
	})
}

func TestFenceAndAttemptAreComparedAsOneNumber(t *testing.T) {
	type order struct {
		fence   uint64
		attempt int
	}
	rising := []order{{0, 0}, {0, 1}, {0, 255}, {0, 256}, {0, 1 << 30}, {1, 0}, {1, 300}, {255, 9}, {256, 1}, {1 << 53, 2}, {1<<53 + 1, 1}, {1<<64 - 1, 0}, {1<<64 - 1, 7}}
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		c := newClient(t, rdb, Config{})
		for i, o := range rising {
			for j, older := range rising {
				id := fmt.Sprint(i, "-", j)
				stored, err := c.Store(t.Context(), Record{ID: id, State: Started, Fence: o.fence, Attempt: o.attempt})
				require.NoError(t, err)
				require.True(t, stored)
				stored, err = c.Store(t.Context(), Record{ID: id, State: Success, Fence: older.fence, Attempt: older.attempt})
				require.NoError(t, err)
				require.Equal(t, j >= i, stored, "%v over %v", older, o)
			}
		}
	})
}

func TestWhatIsNoRecordIsReplaced(t *testing.T) {
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		c := newClient(t, rdb, Config{})
		later := appendRecord(nil, Record{State: Success}, newCodec(t))
		later[1] = 0x28 // version 2
		for _, tc := range []struct {
			name, there string
			stored      bool
		}{
			{"text", "hello, this is no record", true},
			{"nothing", "", true},
			{"half a header", "\xC1\x18\x10\x00", true},
			{"another mark", "\xC2\x18\x10\x00 0123456789abcdef", true},
			{"another kind", "\xC1\x10\x10\x00 0123456789abcdef", true},
			{"a final record of a later version", string(later), false},
		} {
			t.Run(tc.name, func(t *testing.T) {
				id := strings.ReplaceAll(tc.name, " ", "-")
				require.NoError(t, rdb.Set(t.Context(), key+id, tc.there, time.Minute).Err())
				stored, err := c.Store(t.Context(), Record{ID: id, State: Started})
				require.NoError(t, err)
				require.Equal(t, tc.stored, stored)
				_, err = c.Get(t.Context(), id)
				if !tc.stored {
					require.ErrorIs(t, err, ErrCorrupt)
					require.EqualError(t, err, fmt.Sprintf("result: get %q: corrupt record: its version is 2, want 1: was it written by a later version of this library?", id))
				} else {
					require.NoError(t, err)
				}
			})
		}
	})
}

func TestAKeyOfAnotherTypeIsAnErrorThatAsksWhy(t *testing.T) {
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		c := newClient(t, rdb, Config{})
		require.NoError(t, rdb.LPush(t.Context(), key+"list", "x").Err())
		_, err := c.Store(t.Context(), Record{ID: "list", State: Success})
		require.ErrorContains(t, err, `result: store "list": `)
		require.ErrorContains(t, err, "WRONGTYPE")
		require.ErrorContains(t, err, "does something else write this key?")
		_, err = c.Get(t.Context(), "list")
		require.ErrorContains(t, err, `result: get "list": WRONGTYPE`)
		require.ErrorContains(t, err, "does something else write this key?")
		_, err = c.Wait(t.Context(), "list")
		require.ErrorContains(t, err, `result: wait "list": WRONGTYPE`, "waiting would not help")
	})
}

func TestStoreManyGivesEachRecordItsVerdict(t *testing.T) {
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		c := newClient(t, rdb, Config{MaxValueBytes: 10})
		require.NoError(t, rdb.LPush(t.Context(), key+"list", "x").Err())
		_, err := c.Store(t.Context(), Record{ID: "done", State: Success})
		require.NoError(t, err)
		verdicts, err := c.StoreMany(t.Context(), []Record{
			{ID: "a", State: Started, Attempt: 1},
			{ID: "large", State: Success, Value: make([]byte, 11)},
			{ID: "done", State: Failure},
			{ID: "list", State: Success},
			{ID: "a", State: Success, Attempt: 1},
			{ID: "a", State: Success, Attempt: 2},
			{ID: "", State: Success},
		})
		require.EqualError(t, err, `result: store "large": Value is 11 bytes, want at most 10: return less, or raise result.Config.MaxValueBytes`)
		require.Len(t, verdicts, 7)
		require.Equal(t, Verdict{Stored: true}, verdicts[0])
		var tooLarge *TooLargeError
		require.ErrorAs(t, verdicts[1].Err, &tooLarge)
		require.Equal(t, &TooLargeError{Field: "Value", Size: 11, Limit: 10}, tooLarge)
		require.Equal(t, Verdict{}, verdicts[2])
		require.ErrorContains(t, verdicts[3].Err, `result: store "list": `)
		require.Equal(t, Verdict{Stored: true}, verdicts[4])
		require.Equal(t, Verdict{}, verdicts[5], "in their order")
		require.EqualError(t, verdicts[6].Err, `result: store "": the ID is empty, want 1 to 255 bytes`)

		s := c.Stats()
		require.EqualValues(t, 2, s.Refused)
		require.EqualValues(t, 1, s.TooLarge)
		require.Equal(t, []StateCount{
			{"pending", 0}, {"started", 1}, {"progress", 0}, {"retry", 0},
			{"success", 2}, {"failure", 0}, {"cancelled", 0}, {"expired", 0}, {"dead", 0},
		}, s.Stored)

		verdicts, err = c.StoreMany(t.Context(), nil)
		require.NoError(t, err)
		require.Empty(t, verdicts)
	})
}

func TestAFlushedScriptIsNotNoticed(t *testing.T) {
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		c := newClient(t, rdb, Config{})
		for i := range 3 {
			require.NoError(t, rdb.ScriptFlush(t.Context()).Err())
			verdicts, err := c.StoreMany(t.Context(), []Record{
				{ID: fmt.Sprint("a", i), State: Success}, {ID: fmt.Sprint("b", i), State: Success},
			})
			require.NoError(t, err)
			require.Equal(t, []Verdict{{Stored: true}, {Stored: true}}, verdicts)
			require.NoError(t, rdb.ScriptFlush(t.Context()).Err())
			stored, err := c.Store(t.Context(), Record{ID: fmt.Sprint("c", i), State: Success})
			require.NoError(t, err)
			require.True(t, stored)
		}
	})
}

func TestABatchIsOneRoundTrip(t *testing.T) {
	srv := testserver.New(t)
	rdb := srv.Client(t)
	trips := &tripCounter{}
	rdb.AddHook(trips)
	c := newClient(t, rdb, Config{})
	batch := make([]Record, 200)
	for i := range batch {
		batch[i] = Record{ID: fmt.Sprint(i), State: Started}
	}
	_, err := c.StoreMany(t.Context(), batch)
	require.NoError(t, err)
	require.Equal(t, 2, trips.pipelines, "the first one brings the script")
	_, err = c.StoreMany(t.Context(), batch)
	require.NoError(t, err)
	require.Equal(t, 3, trips.pipelines)
}

type tripCounter struct{ pipelines int }

func (*tripCounter) DialHook(next redis.DialHook) redis.DialHook          { return next }
func (*tripCounter) ProcessHook(next redis.ProcessHook) redis.ProcessHook { return next }
func (h *tripCounter) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		if strings.HasPrefix(cmds[0].Name(), "eval") { // not the handshake
			h.pipelines++
		}
		return next(ctx, cmds)
	}
}

func TestRecordsThatCannotBeStoredSayWhy(t *testing.T) {
	c := newClient(t, testserver.New(t).Client(t), Config{MaxValueBytes: 3})
	for _, tc := range []struct {
		record Record
		reason string
	}{
		{Record{ID: "", State: Success}, `result: store "": the ID is empty, want 1 to 255 bytes`},
		{Record{ID: "x", State: 9}, `result: store "x": Record.State is 9, want one of this package's`},
		{Record{ID: "x", Task: strings.Repeat("t", 256)}, `result: store "x": Record.Task has 256 bytes, want at most 255`},
		{Record{ID: "x", Attempt: -1}, `result: store "x": Record.Attempt is -1, want 0 to 4294967295`},
		{Record{ID: "x", TTL: -1}, `result: store "x": Record.TTL is -1ns, want at least 1ms, or 0 for Config.TTL`},
		{Record{ID: "x", TTL: time.Microsecond}, `result: store "x": Record.TTL is 1µs, want at least 1ms, or 0 for Config.TTL`},
		{Record{ID: "x", Value: []byte("long")}, `result: store "x": Value is 4 bytes, want at most 3: return less, or raise result.Config.MaxValueBytes`},
		{Record{ID: "x", Progress: []byte("long")}, `result: store "x": Progress is 4 bytes, want at most 3: return less, or raise result.Config.MaxValueBytes`},
	} {
		stored, err := c.Store(t.Context(), tc.record)
		require.EqualError(t, err, tc.reason)
		require.False(t, stored)
	}
	_, err := c.Store(t.Context(), Record{ID: "x", State: Success, Value: []byte("fit"), Progress: []byte("fit")})
	require.NoError(t, err)
}

func TestAFailureIsStorableHoweverLongItsErrorIs(t *testing.T) {
	c := newClient(t, testserver.New(t).Client(t), Config{MaxValueBytes: 3})
	_, err := c.Store(t.Context(), Record{ID: "x", State: Success, Value: []byte("long")})
	cause := CauseOf(err)
	require.Equal(t, "*fmt.wrapError", cause.Type)
	cause.Message = strings.Repeat("é", 100_000)
	cause.Chain = append(cause.Chain, cause.Message)
	given := *cause
	stored, err := c.Store(t.Context(), Record{ID: "x", State: Failure, Cause: cause})
	require.NoError(t, err)
	require.True(t, stored)
	require.Equal(t, given, *cause, "the caller's stays as it is")
	got, err := c.Get(t.Context(), "x")
	require.NoError(t, err)
	require.Equal(t, strings.Repeat("é", (maxMessageBytes-3)/2)+"…", got.Cause.Message)
	require.Equal(t, []string{
		"*result.TooLargeError: Value is 4 bytes, want at most 3: return less, or raise result.Config.MaxValueBytes",
		strings.Repeat("é", (maxChainBytes-3)/2) + "…",
	}, got.Cause.Chain)
}

func TestLargeValuesAreStoredCompressed(t *testing.T) {
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		c := newClient(t, rdb, Config{})
		value := bytes.Repeat([]byte("0123456789"), 10_000)
		_, err := c.Store(t.Context(), Record{ID: "x", State: Success, Value: value, Progress: value})
		require.NoError(t, err)
		require.Less(t, rdb.StrLen(t.Context(), key+"x").Val(), int64(5000))
		got, err := c.Get(t.Context(), "x")
		require.NoError(t, err)
		require.Equal(t, value, got.Value)
		require.Equal(t, value, got.Progress)
	})
}

func TestAnExpiredRecordIsPendingAgain(t *testing.T) {
	srv := testserver.New(t)
	c := newClient(t, srv.Client(t), Config{TTL: time.Hour})
	_, err := c.Store(t.Context(), Record{ID: "x", State: Success})
	require.NoError(t, err)
	srv.FastForward(time.Hour)
	got, err := c.Get(t.Context(), "x")
	require.NoError(t, err)
	require.Equal(t, Pending, got.State)
}

func TestForgottenRecordsAreGone(t *testing.T) {
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		c := newClient(t, rdb, Config{})
		for _, id := range []string{"a", "b", "c"} {
			_, err := c.Store(t.Context(), Record{ID: id, State: Success})
			require.NoError(t, err)
		}
		require.NoError(t, c.Forget(t.Context(), "a", "b", "never-was"))
		require.NoError(t, c.Forget(t.Context()))
		keys, err := rdb.Keys(t.Context(), "*").Result()
		require.NoError(t, err)
		require.Equal(t, []string{key + "c"}, keys)
		stored, err := c.Store(t.Context(), Record{ID: "a", State: Started})
		require.NoError(t, err)
		require.True(t, stored)
	})
}

func TestOfManyFinalStatesAtOnceExactlyOneIsStored(t *testing.T) {
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		c := newClient(t, rdb, Config{})
		for round := range 20 {
			id := fmt.Sprint("round-", round)
			var wg sync.WaitGroup
			winners := make(chan string, 16)
			for i := range 16 {
				wg.Go(func() {
					value := fmt.Sprint("value of ", i)
					stored, err := c.Store(context.Background(), Record{ID: id, State: Success, Attempt: i, Value: []byte(value)})
					if err != nil {
						value = err.Error()
					}
					if stored || err != nil {
						winners <- value
					}
				})
			}
			wg.Wait()
			close(winners)
			winner := <-winners
			require.NotEmpty(t, winner)
			_, more := <-winners
			require.False(t, more, "a second winner")
			got, err := c.Get(t.Context(), id)
			require.NoError(t, err)
			require.Equal(t, winner, string(got.Value))
		}
	})
}

func TestAServerWithoutMemoryRefusesAndKeepsWhatIsThere(t *testing.T) {
	srv := redistest.New(t, redistest.Config{})
	rdb := srv.Client(t)
	c := newClient(t, rdb, Config{})
	_, err := c.Store(t.Context(), Record{ID: "x", State: Started, Attempt: 1})
	require.NoError(t, err)
	require.NoError(t, rdb.ConfigSet(t.Context(), "maxmemory", "1").Err())
	_, err = c.Store(t.Context(), Record{ID: "x", State: Success, Attempt: 1})
	require.True(t, redis.IsOOMError(err), "%v", err)
	got, err := c.Get(t.Context(), "x")
	require.NoError(t, err)
	require.Equal(t, Started, got.State)
}

func TestAnErrorOfTheServerIsPassedOn(t *testing.T) {
	srv := testserver.New(t)
	c := newClient(t, srv.Client(t), Config{})
	srv.SetPreHook(func(p *server.Peer, cmd string, _ ...string) bool {
		switch cmd {
		case "GET", "EVALSHA", "UNLINK":
			p.WriteError("NOPERM not for you")
			return true
		}
		return false
	})
	_, err := c.Store(t.Context(), Record{ID: "x", State: Success})
	require.EqualError(t, err, `result: store "x": NOPERM not for you`)
	require.True(t, redis.IsPermissionError(err))
	_, err = c.StoreMany(t.Context(), []Record{{ID: "x", State: Success}})
	require.EqualError(t, err, `result: store "x": NOPERM not for you`)
	_, err = c.Get(t.Context(), "x")
	require.EqualError(t, err, `result: get "x": NOPERM not for you`)
	require.EqualError(t, c.Forget(t.Context(), "w", "x"), `result: forget "w": NOPERM not for you`)
	_, err = c.Wait(t.Context(), "x")
	require.EqualError(t, err, `result: wait "x": NOPERM not for you`)
}

func TestAnUnreachableServerIsAnErrorOfEachRecord(t *testing.T) {
	srv := testserver.New(t)
	opt := srv.Options()
	opt.MaxRetries, opt.DialerRetries = -1, 1
	rdb := redis.NewClient(opt)
	t.Cleanup(func() { _ = rdb.Close() })
	c := newClient(t, rdb, Config{})
	srv.Stop()
	verdicts, err := c.StoreMany(t.Context(), []Record{{ID: "a", State: Success}, {ID: "b", State: Success}})
	require.ErrorContains(t, err, `result: store "a": `)
	require.ErrorContains(t, verdicts[1].Err, `result: store "b": `)
}

func TestACancelledCallSaysWhyItWasCancelled(t *testing.T) {
	c := newClient(t, testserver.New(t).Client(t), Config{})
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("no longer needed"))
	_, err := c.Store(ctx, Record{ID: "a", State: Success})
	require.EqualError(t, err, `result: store "a": no longer needed`)
	_, err = c.StoreMany(ctx, []Record{{ID: "a", State: Success}})
	require.EqualError(t, err, `result: store "a": no longer needed`)
	_, err = c.Get(ctx, "a")
	require.EqualError(t, err, `result: get "a": no longer needed`)
	require.EqualError(t, c.Forget(ctx, "a"), `result: forget "a": no longer needed`)
	_, err = c.Wait(ctx, "a")
	require.EqualError(t, err, `result: wait "a": no longer needed; the task is pending`)
}
