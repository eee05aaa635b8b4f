package lock

import (
	"context"
	"fmt"
	"slices"
	"strconv"
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

// processLen is how long the names of processes are.
const processLen = 17

// processOf returns the name of a process that begins as given.
func processOf(name string) string { return name + strings.Repeat("_", processLen-len(name)) }

// entryOf returns an entry of a queue, for a lease of 5s.
func entryOf(token, process string) string {
	return token + processOf(process) + lifeOf(5*time.Second) + `{"holder":"h","since":`
}

// listen subscribes to the channels of processes and returns what comes, in order.
func listen(t *testing.T, rdb redis.UniversalClient, processes ...string) func(n int) []string {
	t.Helper()
	var channels []string
	for _, p := range processes {
		channels = append(channels, channelPrefix+processOf(p))
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
			got = append(got, strings.TrimRight(strings.TrimPrefix(m.Channel, channelPrefix), "_")+" "+m.Payload[:1+tokenLen])
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
func alive(entry string) bool { return processIn(entry) != "pgone" }

func processIn(entry string) string {
	return strings.TrimRight(entry[tokenLen:tokenLen+processLen], "_")
}

func (m *model) wake() {
	if m.lease != "" {
		return
	}
	for len(m.queue) > 0 {
		first := m.queue[0]
		m.queue = m.queue[1:]
		if alive(first) {
			m.lease = first[:tokenLen]
			m.told = append(m.told, processIn(first)+" y"+m.lease)
			return
		}
	}
}

func (m *model) wait(entries ...string) (missing, his int64) {
	for i, e := range entries {
		switch {
		case e[:tokenLen] == m.lease:
			his = int64(i + 1)
		case !slices.Contains(m.queue, e):
			m.queue = append(m.queue, e)
			missing++
		}
	}
	m.wake()
	return missing, his
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
			all := []string{lease, queue, fence}
			m := &model{}
			entries := make([]string, 6)
			for i := range entries {
				entries[i] = entryOf(tokenOf(i), rapid.SampledFrom([]string{"p1", "p2", "pgone"}).Draw(rt, "process"))
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
					missing, his := m.wait(some...)
					reply := run(waitScript, all, args...)
					require.Equal(rt, []int64{missing, his}, []int64{reply[0], reply[4]})
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
					reply, err := rdb.Eval(ctx, obtainText(), all,
						token+"{}", tokenLen, 60000, e, "drop").Result()
					require.NoError(rt, err)
					_, got := reply.(int64)
					require.Equal(rt, mine, got)
				},
				"release": func(*rapid.T) {
					m.lease = ""
					m.wake()
					require.NoError(rt, rdb.Del(ctx, lease).Err())
					run(wakeScript, all)
				},
				"expire": func(*rapid.T) {
					m.lease = ""
					require.NoError(rt, rdb.Del(ctx, lease).Err())
				},
				"wake": func(*rapid.T) {
					m.wake()
					run(wakeScript, all)
				},
				"pass": func(rt *rapid.T) {
					e := entry.Draw(rt, "entry")
					m.pass(e[:tokenLen], e)
					run(passScript, all, e[:tokenLen], e)
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

// A lease that is handed over is made for its whole: with its holder, its time, a
// token, and the TTL that its entry names, up to the claim.
func TestALeaseThatIsHandedOverIsWhatItsMessageSays(t *testing.T) {
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		ctx := t.Context()
		sub := rdb.Subscribe(ctx, "p:"+processOf("pme"))
		defer sub.Close()
		_, err := sub.Receive(ctx)
		require.NoError(t, err)
		var last int64
		for ttl, want := range map[time.Duration]time.Duration{5 * time.Second: claimTTL, claimTTL + time.Millisecond: claimTTL, 700 * time.Millisecond: 700 * time.Millisecond, MinTTL: MinTTL, 1000 * time.Hour: claimTTL} {
			before, err := rdb.Time(ctx).Result()
			require.NoError(t, err)
			entry := strings.Replace(entryOf(tokenOf(1), "pme"), lifeOf(5*time.Second), lifeOf(ttl), 1)
			reply, err := waitScript.Run(ctx, rdb, []string{"{k}", "{k}:q", "{k}:f"}, entry).Int64Slice()
			require.NoError(t, err)
			require.EqualValues(t, 1, reply[0])
			require.Zero(t, reply[2])
			m, err := sub.ReceiveMessage(ctx)
			require.NoError(t, err)
			said := strings.SplitN(m.Payload[1+tokenLen:], " ", 3)
			require.Equal(t, "{k}", said[2])
			c := newCall(said[0], said[1])
			require.GreaterOrEqual(t, c.at, reply[3])
			require.GreaterOrEqual(t, c.at, before.UnixMicro(), "every digit")
			require.GreaterOrEqual(t, c.fence, c.at)
			require.Greater(t, c.fence, last)
			last = c.fence
			require.Equal(t, strconv.FormatInt(last, 10), rdb.Get(ctx, "{k}:f").Val())
			require.InDelta(t, fenceLife, rdb.PTTL(ctx, "{k}:f").Val(), float64(time.Minute))
			require.Equal(t, fmt.Sprintf(`%s{"holder":"h","since":%d}`, tokenOf(1), c.at/1000), rdb.Get(ctx, "{k}").Val())
			end := rdb.Time(ctx).Val().Add(rdb.PTTL(ctx, "{k}").Val()) // what it says is at most a little late
			require.InDelta(t, c.at+want.Microseconds(), end.UnixMicro(), 5e5)
			require.NoError(t, rdb.Del(ctx, "{k}").Err())
		}
	})
}

// What is no entry is taken out.
func TestForeignEntriesAreTakenOut(t *testing.T) {
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		ctx := t.Context()
		messages := listen(t, rdb, "p")
		for _, entry := range []string{"", "x", tokenOf(1), tokenOf(1) + processOf("p"), tokenOf(1) + processOf("p") + "{}", tokenOf(1) + processOf("p") + "0000{", entryOf(tokenOf(2), "p")} {
			require.NoError(t, rdb.RPush(ctx, "{k}:q", entry).Err())
		}
		require.NoError(t, wakeScript.Run(ctx, rdb, []string{"{k}", "{k}:q", "{k}:f"}).Err())
		require.Equal(t, []string{"p y" + tokenOf(2)}, messages(1))
		require.Zero(t, rdb.Exists(ctx, "{k}:q").Val())
	})
}

// A full server refuses what needs memory, until a script has written: a lock is
// handed over there, too, and nobody is told of a lease that is not there.
func TestALockIsHandedOverOnAFullServer(t *testing.T) {
	srv := redistest.New(t, redistest.Config{Lines: []string{"maxmemory-policy noeviction"}})
	rdb := srv.Client(t)
	ctx := t.Context()
	messages := listen(t, rdb, "p")
	require.NoError(t, rdb.RPush(ctx, "{k}:q", entryOf(tokenOf(1), "p")).Err())
	require.NoError(t, rdb.ConfigSet(ctx, "maxmemory", "1").Err())
	require.True(t, redis.HasErrorPrefix(rdb.Set(ctx, "x", "y", 0).Err(), "OOM"))
	require.NoError(t, wakeScript.Run(ctx, rdb, []string{"{k}", "{k}:q", "{k}:f"}).Err())
	require.Equal(t, []string{"p y" + tokenOf(1)}, messages(1))
	require.Equal(t, tokenOf(1), rdb.GetRange(ctx, "{k}", 0, int64(tokenLen)-1).Val())
}

// No more than a hundred who are gone are taken out in one call.
func TestAWakeIsBounded(t *testing.T) {
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		ctx := t.Context()
		for i := range 250 {
			require.NoError(t, rdb.RPush(ctx, "{k}:q", entryOf(tokenOf(i), "pgone")).Err())
		}
		messages := listen(t, rdb, "p")
		require.NoError(t, rdb.RPush(ctx, "{k}:q", entryOf(tokenOf(250), "p")).Err())
		for _, left := range []int64{151, 51} {
			require.NoError(t, wakeScript.Run(ctx, rdb, []string{"{k}", "{k}:q", "{k}:f"}).Err())
			require.Equal(t, left, rdb.LLen(ctx, "{k}:q").Val())
		}
		require.NoError(t, wakeScript.Run(ctx, rdb, []string{"{k}", "{k}:q", "{k}:f"}).Err())
		require.Equal(t, []string{"p y" + tokenOf(250)}, messages(1))
		require.NoError(t, rdb.Del(ctx, "{k}").Err())

		for i := range 101 {
			require.NoError(t, rdb.RPush(ctx, "{k}:q", entryOf(tokenOf(i), "pgone")).Err())
		}
		require.NoError(t, wakeScript.Run(ctx, rdb, []string{"{k}", "{k}:q", "{k}:f"}).Err())
		require.EqualValues(t, 1, rdb.LLen(ctx, "{k}:q").Val())
		require.Positive(t, rdb.PTTL(ctx, "{k}:q").Val(), "which was empty in between")
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
	entry := entryOf(tokenOf(1), "p")
	reply, err := waitScript.Run(ctx, rdb, []string{"{k}", "{k}:q", "{k}:f"}, entry).Int64Slice()
	require.NoError(t, err)
	require.Equal(t, []int64{1, -2, 1}, reply[:3])
	require.Equal(t, []string{entry}, rdb.LRange(ctx, "{k}:q", 0, -1).Val())
	require.Positive(t, rdb.PTTL(ctx, "{k}:q").Val(), "which was empty in between")
}
