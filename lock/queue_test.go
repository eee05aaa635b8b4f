package lock

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/redisha/redisha/internal/redistest"
	"github.com/redisha/redisha/internal/redistest/both"
)

// channelPrefix begins the channels of locks whose keys begin with a brace.
const channelPrefix = "p:"

// tokenOf returns a token for people.
func tokenOf(n int) string { return fmt.Sprintf("%c%022d", tokenVersion, n) }

// listen subscribes to the channels of processes and returns what comes, in order.
func listen(t *testing.T, rdb redis.UniversalClient, processes ...string) func(n int) []string {
	t.Helper()
	var channels []string
	for _, p := range processes {
		channels = append(channels, channelPrefix+p)
	}
	sub := rdb.Subscribe(t.Context(), channels...)
	t.Cleanup(func() { _ = sub.Close() })
	for range channels {
		_, err := sub.Receive(t.Context())
		require.NoError(t, err)
	}
	return func(n int) (got []string) {
		for range n {
			m, err := sub.ReceiveMessage(t.Context())
			require.NoError(t, err)
			got = append(got, strings.TrimPrefix(m.Channel, channelPrefix)+" "+m.Payload[:1+tokenLen])
		}
		return got
	}
}

// A model says what the scripts of one lock shall do.
type model struct {
	lease string // the token of who has it; "" for none
	queue []string
	told  []string // messages
}

// alive reports whether an entry's process listens.
func alive(entry string) bool { return entry[tokenLen:] != "pgone" }

func (m *model) wake() {
	if m.lease != "" {
		return
	}
	granted := false
	for len(m.queue) > 0 {
		first := m.queue[0]
		token, process := first[:tokenLen], first[tokenLen:]
		if granted && alive(first) {
			m.told = append(m.told, process+" s"+token)
			return
		}
		m.queue = m.queue[1:]
		if alive(first) {
			m.told = append(m.told, process+" y"+token)
			m.lease, granted = token, true
		}
	}
}

func (m *model) wait(entries ...string) (missing int64) {
	for _, e := range entries {
		if e[:tokenLen] != m.lease && !slices.Contains(m.queue, e) {
			m.queue = append(m.queue, e)
			missing++
		}
	}
	m.wake()
	return missing
}

func (m *model) pass(token, entry string) {
	m.queue = slices.DeleteFunc(m.queue, func(e string) bool { return e == entry })
	if m.lease == token {
		m.lease = ""
	}
	m.wake()
}

// Whatever is called in whatever order, the scripts do what the model does: the
// lock goes to the first who is there, once, and nobody is passed over.
func TestQueueScriptsFollowTheModel(t *testing.T) {
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		ctx := t.Context()
		processes := []string{"p1", "p2"}
		messages := listen(t, rdb, processes...)
		lock := 0
		rapid.Check(t, func(rt *rapid.T) {
			lock++
			lease := fmt.Sprintf("{%d}", lock)
			fence, queue := lease+":f", lease+":q"
			m := &model{}
			entries := make([]string, 6)
			for i := range entries {
				entries[i] = tokenOf(i) + rapid.SampledFrom([]string{"p1", "p2", "pgone"}).Draw(rt, "process")
			}
			entry := rapid.SampledFrom(entries)
			run := func(script *redis.Script, keys []string, args ...any) []int64 {
				reply, err := script.Run(ctx, rdb, keys, args...).Result()
				require.NoError(rt, err)
				var numbers []int64
				if list, ok := reply.([]any); ok {
					for _, n := range list {
						numbers = append(numbers, n.(int64))
					}
				}
				return numbers
			}
			rt.Repeat(map[string]func(*rapid.T){
				"wait": func(rt *rapid.T) {
					some := rapid.SliceOfN(entry, 1, 3).Draw(rt, "entries")
					var args []any
					for _, e := range some {
						args = append(args, e)
					}
					require.Equal(rt, m.wait(some...), run(waitScript, []string{lease, queue}, args...)[0])
				},
				"obtain": func(rt *rapid.T) {
					e := entry.Draw(rt, "entry")
					token := e[:tokenLen]
					mine := m.lease == "" || m.lease == token
					if mine {
						m.lease = token
						m.queue = slices.DeleteFunc(m.queue, func(o string) bool { return o == e })
					} else {
						m.wait(e)
					}
					reply, err := rdb.Eval(ctx, obtainText(), []string{lease, queue, fence},
						token+"{}", tokenLen, 60000, e, "drop").Result()
					require.NoError(rt, err)
					_, got := reply.(int64)
					require.Equal(rt, mine, got)
				},
				"release": func(*rapid.T) {
					m.lease = ""
					m.wake()
					require.NoError(rt, rdb.Del(ctx, lease).Err())
					run(wakeScript, []string{lease, queue})
				},
				"expire": func(*rapid.T) {
					m.lease = ""
					require.NoError(rt, rdb.Del(ctx, lease).Err())
				},
				"wake": func(*rapid.T) {
					m.wake()
					run(wakeScript, []string{lease, queue})
				},
				"pass": func(rt *rapid.T) {
					e := entry.Draw(rt, "entry")
					m.pass(e[:tokenLen], e)
					run(passScript, []string{lease, queue}, e[:tokenLen], e)
				},
				"": func(rt *rapid.T) {
					value := rdb.Get(ctx, lease).Val()
					require.Equal(rt, m.lease, value[:min(len(value), tokenLen)])
					require.Equal(rt, len(m.queue), len(rdb.LRange(ctx, queue, 0, -1).Val()))
					if len(m.queue) > 0 {
						require.Equal(rt, m.queue, rdb.LRange(ctx, queue, 0, -1).Val())
						require.InDelta(rt, queueLife, rdb.PTTL(ctx, queue).Val(), float64(30*time.Second))
					}
					require.Equal(rt, m.told, messages(len(m.told)))
					m.told = nil
				},
			})
		})
	})
}

func TestWhatIsSetAsideLastsForTheClaimAndTellsTheTime(t *testing.T) {
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		ctx := t.Context()
		sub := rdb.Subscribe(ctx, "p:pme")
		defer sub.Close()
		_, err := sub.Receive(ctx)
		require.NoError(t, err)
		before, err := rdb.Time(ctx).Result()
		require.NoError(t, err)
		reply, err := waitScript.Run(ctx, rdb, []string{"{k}", "{k}:q"}, tokenOf(1)+"pme").Int64Slice()
		require.NoError(t, err)
		require.EqualValues(t, 1, reply[0])
		require.InDelta(t, claimTTL.Milliseconds(), reply[1], 1000)
		require.Zero(t, reply[2])
		m, err := sub.ReceiveMessage(ctx)
		require.NoError(t, err)
		at, lease, _ := strings.Cut(m.Payload[1+tokenLen:], " ")
		require.Equal(t, "{k}", lease)
		require.GreaterOrEqual(t, micros(at), before.UnixMicro(), "every digit")
		require.Equal(t, tokenOf(1), rdb.Get(ctx, "{k}").Val(), "set aside: a token alone")
	})
}

// No more than a hundred who are gone are taken out in one call.
func TestAWakeIsBounded(t *testing.T) {
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		ctx := t.Context()
		for i := range 250 {
			require.NoError(t, rdb.RPush(ctx, "{k}:q", tokenOf(i)+"pgone").Err())
		}
		messages := listen(t, rdb, "p")
		require.NoError(t, rdb.RPush(ctx, "{k}:q", tokenOf(250)+"p").Err())
		for _, left := range []int64{151, 51} {
			require.NoError(t, wakeScript.Run(ctx, rdb, []string{"{k}", "{k}:q"}).Err())
			require.Equal(t, left, rdb.LLen(ctx, "{k}:q").Val())
		}
		require.NoError(t, wakeScript.Run(ctx, rdb, []string{"{k}", "{k}:q"}).Err())
		require.Equal(t, []string{"p y" + tokenOf(250)}, messages(1))
	})
}

func TestWithoutTheRightToPublishNobodyLosesHisPlace(t *testing.T) {
	srv := redistest.Shared(t)
	admin := srv.Client(t)
	ctx := t.Context()
	require.NoError(t, admin.Do(ctx, "ACL", "SETUSER", "mute", "on", ">x", "~*", "+@all", "resetchannels").Err())
	t.Cleanup(func() { admin.Do(context.Background(), "ACL", "DELUSER", "mute") })
	opt := *admin.Options()
	opt.Username, opt.Password = "mute", "x"
	rdb := redis.NewClient(&opt)
	defer rdb.Close()
	entry := tokenOf(1) + "p"
	reply, err := waitScript.Run(ctx, rdb, []string{"{k}", "{k}:q"}, entry).Int64Slice()
	require.NoError(t, err)
	require.Equal(t, []int64{1, -2, 1}, reply)
	require.Equal(t, []string{entry}, rdb.LRange(ctx, "{k}:q", 0, -1).Val())
}
