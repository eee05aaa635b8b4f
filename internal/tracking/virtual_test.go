package tracking_test

import (
	"context"
	"errors"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/tracking"
)

func TestOneConnectionAsksForAllPrefixes(t *testing.T) {
	bubble(t, func(t *testing.T, f *fake, c *cache) {
		require.Zero(t, f.dialled(), "without prefixes there is no connection")
		p := c.add(t, "a:")
		synctest.Wait()
		require.Equal(t, tracking.Standing, state(t, p))
		c.add(t, "b:")
		synctest.Wait()
		f.cut()
		synctest.Wait()
		require.Equal(t, []string{
			"CLIENT TRACKING ON BCAST PREFIX a:",
			"CLIENT TRACKING ON BCAST PREFIX b:",
			"CLIENT TRACKING ON BCAST PREFIX a: PREFIX b:",
		}, f.commands("CLIENT TRACKING"))
		require.Equal(t, tracking.Stats{
			Connections: 1, Connects: 2, Gaps: 1, LastGap: c.Stats().LastGap, LastError: c.Stats().LastError,
		}, c.Stats())
	})
}

func TestPrefixesNeitherOverlapNorRepeat(t *testing.T) {
	bubble(t, func(t *testing.T, f *fake, c *cache) {
		for _, prefix := range []string{"user:", "a:b:", "a:c:", "z"} {
			c.add(t, prefix)
		}
		for prefix, want := range map[string]string{
			"":        "empty",
			"user:":   `prefix "user:" is there already`,
			"user:1:": `prefix "user:1:" overlaps with "user:"`,
			"us":      `prefix "us" overlaps with "user:"`,
			"a:":      `prefix "a:" overlaps with "a:b:"`,
			"zz":      `prefix "zz" overlaps with "z"`,
		} {
			_, err := c.Add(prefix, c.invalidate)
			require.ErrorContains(t, err, want)
		}
		_, err := c.Add("b", nil)
		require.ErrorContains(t, err, `no function for prefix "b"`)
		c.add(t, "user.2:")
		c.add(t, "a:bb")
		synctest.Wait()
		require.NotContains(t, strings.Join(f.commands("CLIENT TRACKING"), "\n"), "zz")
	})
}

func TestMessagesAreReadAsTheyAre(t *testing.T) {
	bubble(t, func(t *testing.T, f *fake, c *cache) {
		p := c.add(t, "a:")
		synctest.Wait()
		f.push(t, invalidation("a:1", "a:2", "other"))
		f.push(t, invalidation())
		f.push(t, ">3\r\n$7\r\nmessage\r\n$1\r\nc\r\n*2\r\n:1\r\n%1\r\n+x\r\n_\r\n") // of something else
		f.push(t, "|1\r\n+ttl\r\n:1\r\n"+invalidation("a:3"))
		time.Sleep(900 * time.Millisecond)
		f.set("ROLE", "")
		for _, b := range []byte(invalidation("a:4")) { // byte by byte, while a question becomes due
			f.push(t, string(b))
			time.Sleep(10 * time.Millisecond)
		}
		f.push(t, newFake().answer["ROLE"])
		require.Equal(t, []string{"a:1", "a:2", "a:3", "a:4"}, c.keys())
		require.Empty(t, c.causes())
		f.push(t, ">2\r\n$10\r\ninvalidate\r\n_\r\n")
		require.Equal(t, []error{tracking.ErrFlushed}, c.causes())
		require.Equal(t, tracking.Standing, state(t, p))
		require.Equal(t, 1, f.dialled())
	})
}

func TestWhatIsNoReplyEndsTheConnection(t *testing.T) {
	for _, junk := range []string{
		"x\r\n", "\r\n", "\n", "+OK\r\n", ">2\r\n$10\r\ninvalidate\r\n:1\r\n", ">2\r\n$10\r\ninvalidate\r\n*1\r\n:1\r\n",
		">-1\r\n", ">2\r\n$10\r\ninvalidate\r\n*1\r\n$-5\r\n", "*99999999999\r\n", ">2\r\n$10\r\ninvalidate\r\n*1\r\n$1\r\nabc",
		">2\r\n" + strings.Repeat("*1\r\n", 100), "+" + strings.Repeat("x", 20<<10),
	} {
		t.Run(strings.TrimSpace(junk[:min(20, len(junk))]), func(t *testing.T) {
			bubble(t, func(t *testing.T, f *fake, c *cache) {
				c.add(t, "a:")
				synctest.Wait()
				f.mu.Lock()
				nc := f.conns[0]
				f.mu.Unlock()
				_, _ = nc.Write([]byte(junk)) // which may not be read to its end
				synctest.Wait()
				require.Len(t, c.causes(), 1)
				require.ErrorContains(t, c.causes()[0], "not a Redis reply")
				require.Equal(t, 2, f.dialled())
			})
		})
	}
}

// Silence ends what stands within twice Ping, whenever it begins.
func TestSilenceIsNoticedInTime(t *testing.T) {
	for _, after := range []time.Duration{1, 100 * time.Millisecond, 999 * time.Millisecond, 1001 * time.Millisecond} {
		bubble(t, func(t *testing.T, f *fake, c *cache) {
			p := c.add(t, "a:")
			time.Sleep(5*time.Second + after)
			require.Equal(t, tracking.Standing, state(t, p))
			f.hang()
			start := time.Now()
			for state(t, p) == tracking.Standing {
				time.Sleep(time.Millisecond)
				require.LessOrEqual(t, time.Since(start), 2*time.Second+20*time.Millisecond)
			}
			require.EqualValues(t, 1, c.Epoch())
			require.ErrorContains(t, c.causes()[0], "no answer to ROLE within 1s")
			time.Sleep(time.Minute)
			require.Equal(t, tracking.Down, state(t, p))
			require.Len(t, c.causes(), 1, "an interruption is told once")
			for command, answer := range newFake().answer {
				f.set(command, answer)
			}
			time.Sleep(5 * time.Second)
			require.Equal(t, tracking.Standing, state(t, p))
		})
	}
}

// A server that sends and sends is not silent, but what it sends may be old.
func TestMessagesThatComeTooLateEndTheEpoch(t *testing.T) {
	bubble(t, func(t *testing.T, f *fake, c *cache) {
		p := c.add(t, "a:")
		synctest.Wait()
		f.set("ROLE", "")
		start := time.Now()
		for state(t, p) == tracking.Standing {
			f.push(t, invalidation("a:1"))
			time.Sleep(time.Millisecond)
			require.LessOrEqual(t, time.Since(start), 3*time.Second+20*time.Millisecond)
		}
		require.Greater(t, time.Since(start), 2*time.Second)
	})
}

func TestARefusalIsToldOnceAndTriedAgain(t *testing.T) {
	for name, refusal := range map[string]struct{ command, answer, want string }{
		"forbidden":   {"CLIENT TRACKING", "-NOPERM this user has no permissions\r\n", "NOPERM"},
		"unknown":     {"CLIENT TRACKING", "-ERR unknown subcommand 'TRACKING'\r\n", "unknown subcommand"},
		"before RESP": {"HELLO", "-ERR unknown command 'HELLO'\r\n", "unknown command"},
		"RESP2":       {"HELLO", "*2\r\n$5\r\nproto\r\n:2\r\n", "protocol 2"},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, f *fake, c *cache) {
				granted := newFake().answer[refusal.command]
				f.set(refusal.command, refusal.answer)
				p := c.add(t, "a:")
				time.Sleep(5 * time.Minute)
				require.Equal(t, tracking.Refused, state(t, p))
				require.Len(t, c.refused(), 1)
				require.ErrorContains(t, c.refused()[0], refusal.want)
				require.Empty(t, c.causes())
				require.InDelta(t, 11, f.dialled(), 3)
				require.Equal(t, 1, c.Stats().Refused)

				f.set(refusal.command, granted)
				time.Sleep(31 * time.Second)
				require.Equal(t, tracking.Standing, state(t, p))
				require.Len(t, c.causes(), 1, "what was cached without has to go")
				require.Zero(t, c.Stats().Refused)

				f.set(refusal.command, refusal.answer)
				f.cut()
				time.Sleep(time.Minute)
				require.Equal(t, tracking.Refused, state(t, p))
				require.Len(t, c.causes(), 2)
				require.Len(t, c.refused(), 2)
			})
		})
	}
}

func TestAServerThatCannotServeNowDoesNotRefuse(t *testing.T) {
	for _, answer := range []string{"-LOADING Redis is loading\r\n", "-BUSY a script\r\n", "-NOAUTH Authentication required.\r\n"} {
		bubble(t, func(t *testing.T, f *fake, c *cache) {
			f.set("CLIENT TRACKING", answer)
			p := c.add(t, "a:")
			time.Sleep(10 * time.Second)
			require.Equal(t, tracking.Down, state(t, p))
			require.Empty(t, c.refused())
			f.set("CLIENT TRACKING", "+OK\r\n")
			time.Sleep(2 * time.Second)
			require.Equal(t, tracking.Standing, state(t, p))
		})
	}
}

// A user who may not ask for the role may be tracked all the same.
func TestWithoutRoleThereIsPing(t *testing.T) {
	bubble(t, func(t *testing.T, f *fake, c *cache) {
		f.set("ROLE", "-NOPERM this user has no permissions\r\n")
		p := c.add(t, "a:")
		time.Sleep(time.Minute)
		require.Equal(t, tracking.Standing, state(t, p))
		require.Empty(t, c.causes())
		require.Len(t, f.commands("ROLE"), 1)
		require.GreaterOrEqual(t, len(f.commands("PING")), 50)
		f.set("PING", "-NOPERM this user has no permissions\r\n")
		time.Sleep(time.Minute)
		require.Empty(t, c.causes(), "that is an answer, too")
		f.set("PING", "")
		time.Sleep(3 * time.Second)
		require.Equal(t, tracking.Down, state(t, p))
	})
}

func TestAServerThatCutsIsNotDialledWithoutPause(t *testing.T) {
	bubble(t, func(t *testing.T, f *fake, c *cache) {
		f.set("CLIENT TRACKING", "x\r\n")
		c.add(t, "a:")
		time.Sleep(time.Minute)
		require.Less(t, f.dialled(), 100)
		f.mu.Lock()
		f.down = true
		f.mu.Unlock()
		before := f.dialled()
		time.Sleep(time.Minute)
		require.Less(t, f.dialled()-before, 90)
		require.Greater(t, f.dialled()-before, 50)
	})
}

// Who is told of a gap finds nothing that stands, and another epoch: what was read
// in between cannot be taken for the new one's.
func TestNothingStandsWhenAGapIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		var p *tracking.Prefix
		var tr *tracking.Tracker
		var states []tracking.State
		var epochs []uint64
		tr, err := tracking.Open(foreign(t, f.client()), tracking.Config{Gap: func(error) {
			epoch, state := p.State(t.Context(), "a:1")
			states, epochs = append(states, state), append(epochs, epoch)
			_, err := tr.Add("b:", func([]string) {}) // is allowed
			require.NoError(t, err)
		}})
		require.NoError(t, err)
		t.Cleanup(f.serving.Wait)
		t.Cleanup(func() { require.NoError(t, tr.Close()) })
		p, err = tr.Add("a:", func([]string) {})
		require.NoError(t, err)
		synctest.Wait()
		f.cut()
		synctest.Wait()
		require.Equal(t, []tracking.State{tracking.Down}, states)
		require.Equal(t, []uint64{1}, epochs)
		require.Equal(t, tracking.Standing, state(t, p))
		require.Len(t, f.commands("CLIENT TRACKING ON BCAST PREFIX a: PREFIX b:"), 1)
	})
}

func TestAPrimaryThatBecomesAReplicaSaysSo(t *testing.T) {
	bubble(t, func(t *testing.T, f *fake, c *cache) {
		p := c.add(t, "a:")
		time.Sleep(5500 * time.Millisecond) // between two questions
		f.set("ROLE", "*5\r\n$5\r\nslave\r\n$9\r\n127.0.0.1\r\n:1\r\n$9\r\nconnected\r\n:0\r\n")
		time.Sleep(time.Second)
		require.Equal(t, tracking.Down, state(t, p))
		require.Len(t, c.causes(), 1)
		require.ErrorContains(t, c.causes()[0], `it says "slave"`)
	})
}

// A server that does not even read is one that does not answer.
func TestAServerThatDoesNotReadIsNoticedInTime(t *testing.T) {
	bubble(t, func(t *testing.T, f *fake, c *cache) {
		p := c.add(t, "a:")
		time.Sleep(5500 * time.Millisecond)
		deaf := make(chan struct{})
		defer close(deaf)
		f.mu.Lock()
		f.deaf = deaf
		f.mu.Unlock()
		time.Sleep(3500 * time.Millisecond) // the server reads one command before it is deaf
		require.Equal(t, tracking.Down, state(t, p))
		require.Len(t, c.causes(), 1)
	})
}

func TestCloseWaitsForNoServer(t *testing.T) {
	for name, begin := range map[string]func(f *fake, c *cache){
		"while logging in": func(f *fake, _ *cache) { f.hang() },
		"refused":          func(f *fake, _ *cache) { f.set("HELLO", "-ERR no\r\n") },
		"down":             func(f *fake, _ *cache) { f.down = true },
		"standing":         func(*fake, *cache) {},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, f *fake, c *cache) {
				begin(f, c)
				p := c.add(t, "a:")
				time.Sleep(100 * time.Millisecond)
				start, epoch := time.Now(), c.Epoch()
				require.NoError(t, c.Close())
				require.Zero(t, time.Since(start))
				require.Equal(t, tracking.Down, state(t, p))
				require.Empty(t, c.causes())
				require.Zero(t, c.Stats().Refused)
				require.NotEqual(t, epoch, c.Epoch(), "nobody tells any more")
			})
		})
	}
}

// A dial that does not look at its context is left behind.
func TestCloseDoesNotWaitForEverForADial(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		opt := newFake().client().Options()
		opt.Dialer = func(context.Context, string, string) (net.Conn, error) {
			time.Sleep(time.Minute)
			return nil, errors.New("down")
		}
		tr, err := tracking.Open(foreign(t, redis.NewClient(opt)), tracking.Config{})
		require.NoError(t, err)
		_, err = tr.Add("a:", func([]string) {})
		require.NoError(t, err)
		start := time.Now()
		err = tr.Close()
		require.ErrorContains(t, err, "has not ended within 5s")
		require.Equal(t, err, tr.Close())
		require.Equal(t, 5*time.Second, time.Since(start))
		time.Sleep(time.Minute)
	})
}

func TestMessagesToAClosedClientDoNoHarm(t *testing.T) {
	bubble(t, func(t *testing.T, f *fake, c *cache) {
		p := c.add(t, "a:")
		time.Sleep(1500 * time.Millisecond)
		require.NoError(t, c.cn.Close())
		f.mu.Lock()
		nc := f.conns[len(f.conns)-1]
		f.mu.Unlock()
		for range 1000 { // until the client is found closed
			_, _ = nc.Write([]byte(invalidation("a:1")))
			time.Sleep(time.Millisecond)
		}
		require.Equal(t, tracking.Down, state(t, p))
		causes := c.causes()
		require.ErrorIs(t, causes[len(causes)-1], redis.ErrClosed)
		require.Equal(t, 1, f.dialled())
	})
}
