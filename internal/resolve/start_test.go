package resolve

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/testserver"
)

func TestOneDeadSentinelDelaysNoStart(t *testing.T) {
	for name, kill := range map[string]func(*scene){
		"stopped":    func(s *scene) { s.sentinels[0].Stop() },
		"hung":       func(s *scene) { s.sentinels[0].Hang(true) },
		"black hole": func(s *scene) { s.net.Add(s.addrs[0], testserver.BlackHole) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newScene(t, 3)
				kill(s)
				r := s.open()
				require.LessOrEqual(t, await(t, r, time.Second, at(primaryA)), 10*time.Millisecond)
			})
		})
	}
}

func TestTwoSentinelsOfWhichOneIsDeadSuffice(t *testing.T) {
	for name, kill := range map[string]func(*scene){
		"stopped":    func(s *scene) { s.sentinels[0].Stop() },
		"hung":       func(s *scene) { s.sentinels[0].Hang(true) },
		"black hole": func(s *scene) { s.net.Add(s.addrs[0], testserver.BlackHole) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newScene(t, 2)
				kill(s)
				r := s.open()
				require.LessOrEqual(t, await(t, r, time.Second, at(primaryA)), 310*time.Millisecond)
				time.Sleep(time.Second)
				s.sentinels[1].Switch(group, primaryB, 2)
				require.LessOrEqual(t, await(t, r, time.Second, at(primaryB)), 50*time.Millisecond)
			})
		})
	}
}

func TestStartWaitsForAMajorityBeforeItBelievesOldNews(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, 3)
		for i, delay := range []time.Duration{0, 100 * time.Millisecond, 250 * time.Millisecond} {
			s.net.Add(s.addrs[i], func(ctx context.Context, network, addr string) (net.Conn, error) {
				time.Sleep(delay)
				return s.sentinels[i].Dial(ctx, network, addr)
			})
		}
		tell(primaryB, 2, s.sentinels[1:]...)
		r := s.open()
		await(t, r, time.Second, func(st *State) bool { return st.Epoch > 0 })
		require.Equal(t, primaryB, r.State().Primary)
	})
}

func TestASentinelThatDoesNotKnowYetHasNoVote(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, 3)
		s.sentinels[0].Forget(group)
		s.sentinels[1].Forget(group)
		r := s.open()
		await(t, r, 10*time.Millisecond, at(primaryA))
		s.sentinels[2].Forget(group)
		time.Sleep(30 * time.Second)
		require.Equal(t, State{Primary: primaryA, Epoch: 1}, *r.State())
	})
}

func TestFlagsOfThePrimaryAreNoReasonToReject(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, 1)
		s.sentinels[0].Monitor(testserver.Monitored{Name: group, Primary: primaryA, Flags: "s_down,o_down,master"})
		await(t, s.open(), 10*time.Millisecond, at(primaryA))
	})
}

func TestFallbackServesUntilASentinelAnswers(t *testing.T) {
	for name, test := range map[string]struct {
		fallback string
		epoch    uint64 // once a Sentinel has answered
	}{
		"the same address":  {primaryA, 1},
		"another address":   {primaryB, 2},
		"a name, unchecked": {"redis.example:6379", 2},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newScene(t, 2)
				s.sentinels[0].Hang(true)
				s.sentinels[1].Stop()
				r := s.open(func(c *SentinelConfig) { c.Fallback, c.Replicas = test.fallback, true })
				took := await(t, r, 2*time.Second, at(test.fallback))
				require.InDelta(t, askTimeout, took, float64(50*time.Millisecond), "the time that the hung one has")
				require.Equal(t, State{Primary: test.fallback, Epoch: 1, Fallback: true}, *r.State())
				require.NoError(t, r.Err())
				time.Sleep(time.Minute)
				require.Equal(t, 1, s.log.count("no usable answer from the Sentinels"))

				s.sentinels[1].Restart()
				await(t, r, 2*time.Second, func(st *State) bool { return !st.Fallback })
				require.Equal(t, State{Primary: primaryA, Epoch: test.epoch}, *r.State())
				require.Equal(t, 1, s.log.count("Sentinels answer again"))
			})
		})
	}
}

func TestFallbackIsTakenAtOnceWhereAllSentinelsRefuse(t *testing.T) {
	for name, refuse := range map[string]func(s *scene){
		"connections": func(s *scene) {
			for _, sentinel := range s.sentinels {
				sentinel.Stop()
			}
		},
		"access": func(s *scene) { s.requireAuth("", "pw") },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newScene(t, 3)
				refuse(s)
				r := s.open(func(c *SentinelConfig) { c.Fallback = primaryB })
				await(t, r, 10*time.Millisecond, at(primaryB))
				time.Sleep(time.Minute)
				require.Equal(t, 1, s.log.count("no usable answer from the Sentinels"))
				require.Equal(t, State{Primary: primaryB, Epoch: 1, Fallback: true}, *r.State())
			})
		})
	}
}

func TestFallbackWaitsASecondForASentinelThatHasNotFailedYet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, 2)
		s.sentinels[0].Stop()
		dial := func(ctx context.Context, network, addr string) (net.Conn, error) { // deaf to its context
			if addr == s.addrs[1] {
				time.Sleep(3 * time.Second)
			}
			return s.net.Dial(ctx, network, addr)
		}
		r := s.open(func(c *SentinelConfig) { c.Fallback, c.Dial = primaryB, dial })
		took := await(t, r, 2*time.Second, at(primaryB))
		require.InDelta(t, time.Second, took, float64(50*time.Millisecond))
	})
}

func TestAnAddressThatMapAddrSpoilsIsNamed(t *testing.T) {
	for _, spoiled := range []string{"nonsense", "", ":6379", "h:", "h:0", "h:port", "a:b:1"} {
		t.Run(spoiled, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newScene(t, 1)
				r := s.open(func(c *SentinelConfig) { c.MapAddr = func(string) string { return spoiled } })
				time.Sleep(2 * time.Second)
				require.Empty(t, r.State().Primary)
				require.EqualError(t, r.Err(), fmt.Sprintf("no primary for %q: MapAddr returns no host:port (%s: MapAddr returns no host:port: it returned %q for %q)", group, s.addrs[0], spoiled, primaryA))
				require.Equal(t, 1, s.log.count("MapAddr returns no host:port"))
			})
		})
	}
}

func TestAReplicaThatMapAddrSpoilsIsLeftOutAndLoggedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, 2)
		for _, sentinel := range s.sentinels {
			m, _ := sentinel.Monitored(group)
			m.Replicas = []testserver.MonitoredReplica{{Addr: primaryB}, {Addr: "10.0.0.9:6379"}}
			sentinel.Monitor(m)
		}
		r := s.open(func(c *SentinelConfig) {
			c.Replicas = true
			c.MapAddr = func(addr string) string {
				if addr == primaryB {
					return "nonsense"
				}
				return addr
			}
		})
		await(t, r, time.Second, func(st *State) bool { return len(st.Replicas) == 1 && st.Replicas[0] == "10.0.0.9:6379" })
		time.Sleep(time.Minute)
		require.Equal(t, 1, s.log.count(`MapAddr returns no host:port: it returned \"nonsense\" for \"`+primaryB))
	})
}

func TestFallbackIsNotForASentinelThatAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, 2)
		s.sentinels[0].Forget(group)
		s.sentinels[1].Stop()
		r := s.open(func(c *SentinelConfig) { c.Fallback = primaryB })
		time.Sleep(5 * time.Second)
		require.Empty(t, r.State().Primary)
		require.ErrorIs(t, r.Err(), ErrUnknownMaster)
	})
}

func TestErrSaysWhatEachSentinelSaid(t *testing.T) {
	const secret = "hunter2-secret"
	for name, test := range map[string]struct {
		set    func(*scene)
		config func(*SentinelConfig)
		kind   error
		says   []string
	}{
		"wrong master name": {
			set: func(s *scene) {
				s.sentinels[1].Monitor(testserver.Monitored{Name: "other", Primary: primaryA})
			},
			config: func(c *SentinelConfig) { c.MasterName = "mymastr" },
			kind:   ErrUnknownMaster,
			says:   []string{`no primary for "mymastr"`, `they know ["mymaster" "other"]`, "10.1.0.1:26379: it does not know the name"},
		},
		"Sentinels without configuration": {
			set: func(s *scene) {
				for _, sentinel := range s.sentinels {
					sentinel.Forget(group)
				}
			},
			kind: ErrUnknownMaster,
			says: []string{"they know none"},
		},
		"many names": {
			set: func(s *scene) {
				for i := range 15 {
					s.sentinels[0].Monitor(testserver.Monitored{Name: fmt.Sprintf("m%02d", i), Primary: primaryA})
				}
			},
			config: func(c *SentinelConfig) { c.MasterName = "x" },
			kind:   ErrUnknownMaster,
			says:   []string{`"m00"`, "and 6 more"},
		},
		"wrong password": {
			set:    func(s *scene) { s.requireAuth("", "right") },
			config: func(c *SentinelConfig) { c.Password = secret },
			kind:   ErrSentinelAuth,
			says:   []string{"sentinel_password", "WRONGPASS"},
		},
		"missing password": {
			set:  func(s *scene) { s.requireAuth("", "right") },
			kind: ErrSentinelAuth,
			says: []string{"sentinel_password", "NOAUTH"},
		},
		"forbidden": {
			set: func(s *scene) {
				for _, sentinel := range s.sentinels {
					sentinel.Refuse("SENTINEL GET-MASTER-ADDR-BY-NAME", "NOPERM this user has no permissions to run the 'sentinel|get-master-addr-by-name' command")
				}
			},
			kind: ErrSentinelAuth,
			says: []string{"NOPERM"},
		},
		"a server that quotes the password": {
			set: func(s *scene) {
				for _, sentinel := range s.sentinels {
					sentinel.Refuse("AUTH", "ERR unknown command 'AUTH', with args beginning with: '"+secret+"'")
				}
			},
			config: func(c *SentinelConfig) { c.Password = secret },
			kind:   ErrSentinelAuth,
			says:   []string{"not shown"},
		},
		"data nodes": {
			set: func(s *scene) {
				for _, addr := range s.addrs {
					s.net.Add(addr, testserver.New(s.t).Dial)
				}
			},
			kind: ErrNotSentinel,
			says: []string{"26379", "it is not a Sentinel", "unknown command"},
		},
		"nobody": {
			set: func(s *scene) {
				s.sentinels[0].Stop()
				s.sentinels[1].Hang(true)
				s.net.Add(s.addrs[2], testserver.BlackHole)
			},
			kind: ErrNoSentinel,
			says: []string{"10.1.0.1:26379: dial tcp 10.1.0.1:26379: connect: connection refused", "10.1.0.2:26379: read pipe pipe->pipe: i/o timeout", "10.1.0.3:26379: dial"},
		},
		"unknown authority": {
			set: func(s *scene) {},
			config: func(c *SentinelConfig) {
				c.Dial = func(context.Context, string, string) (net.Conn, error) {
					return nil, fmt.Errorf("tls handshake: %w", x509.UnknownAuthorityError{})
				}
			},
			kind: ErrNoSentinel,
			says: []string{"certificate signed by unknown authority"},
		},
		"TLS to a port without": {
			set: func(s *scene) {},
			config: func(c *SentinelConfig) {
				c.Dial = func(context.Context, string, string) (net.Conn, error) {
					return nil, tls.RecordHeaderError{Msg: "first record does not look like a TLS handshake"}
				}
			},
			kind: ErrNoSentinel,
			says: []string{"does it speak TLS at all?"},
		},
		"a port that wants TLS and says so": {
			set:    func(s *scene) {},
			config: func(c *SentinelConfig) { c.Dial = answering("\x15\x03\x01\x00\x02\x02\x28") },
			kind:   ErrNoSentinel,
			says:   []string{"the port wants TLS"},
		},
		"a port that wants TLS and hangs up": {
			set:    func(s *scene) {},
			config: func(c *SentinelConfig) { c.Dial = answering("") },
			kind:   ErrNoSentinel,
			says:   []string{"does it want TLS?"},
		},
		"a web server": {
			set:    func(s *scene) {},
			config: func(c *SentinelConfig) { c.Dial = answering("HTTP/1.1 400 Bad Request\r\n\r\n") },
			kind:   ErrNoSentinel,
			says:   []string{`not a Redis reply: it begins with "HTTP/1.1 400 Bad Req"`},
		},
		"nonsense for an address": {
			set: func(s *scene) {
				tell("10.0.0.1:99999", 1, s.sentinels...)
			},
			kind: ErrNoSentinel,
			says: []string{"an address of a primary that is none", "99999"},
		},
		"another error": {
			set: func(s *scene) {
				for _, sentinel := range s.sentinels {
					sentinel.Refuse("SENTINEL", "ERR busy")
				}
			},
			kind: ErrNoSentinel,
			says: []string{"ERR busy"},
		},
		"a number for an address": {
			set:    func(s *scene) {},
			config: func(c *SentinelConfig) { c.Name, c.Dial = "", answering(":1\r\n:1\r\n:1\r\n:1\r\n") },
			kind:   ErrNoSentinel,
			says:   []string{"not a Redis reply to GET-MASTER-ADDR-BY-NAME"},
		},
		"no credentials": {
			set: func(s *scene) {},
			config: func(c *SentinelConfig) {
				c.Credentials = func(context.Context) (string, string, error) { return "", "", errors.New("vault is sealed") }
			},
			kind: ErrNoSentinel,
			says: []string{"credentials: vault is sealed"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newScene(t, 3)
				test.set(s)
				r := s.open(func(c *SentinelConfig) {
					if test.config != nil {
						test.config(c)
					}
				})
				time.Sleep(3 * time.Second)
				err := r.Err()
				require.ErrorIs(t, err, test.kind)
				for _, kind := range []error{ErrUnknownMaster, ErrSentinelAuth, ErrNotSentinel, ErrNoSentinel} {
					require.Equal(t, kind == test.kind, errors.Is(err, kind), kind)
				}
				for _, text := range test.says {
					require.ErrorContains(t, err, text)
				}
				require.NotContains(t, err.Error(), secret)
				require.Zero(t, s.log.count(secret))
				require.Equal(t, State{}, *r.State())
				if test.kind != ErrUnknownMaster {
					require.Zero(t, r.Stats().SinceAnswer)
					require.NotZero(t, r.Stats().PollErrors)
				}
			})
		})
	}
}

// requireAuth lets all Sentinels ask for a password.
func (s *scene) requireAuth(user, password string) {
	for _, sentinel := range s.sentinels {
		sentinel.RequireAuth(user, password)
	}
}

// answering dials a server that answers whatever is said by the same words, and
// hangs up.
func answering(words string) testserver.DialFunc {
	return func(context.Context, string, string) (net.Conn, error) {
		near, far := net.Pipe()
		go func() {
			defer func() { _ = far.Close() }()
			_, _ = far.Read(make([]byte, 4096))
			_, _ = far.Write([]byte(words))
		}()
		return near, nil
	}
}

func TestErrKeepsItsCauses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, 1)
		r := s.open(func(c *SentinelConfig) {
			c.Dial = func(context.Context, string, string) (net.Conn, error) {
				return nil, fmt.Errorf("tls handshake: %w", x509.HostnameError{Certificate: &x509.Certificate{}, Host: "s1"})
			}
		})
		synctest.Wait()
		var wrong x509.HostnameError
		require.ErrorAs(t, r.Err(), &wrong)
	})
}

func TestCredentialsAreAskedAtEachConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, 1)
		s.requireAuth("app", "one")
		var asked atomic.Int64
		var password atomic.Value
		password.Store("one")
		r := s.open(func(c *SentinelConfig) {
			c.Username, c.Password = "wrong", "wrong"
			c.Credentials = func(context.Context) (string, string, error) {
				asked.Add(1)
				return "app", password.Load().(string), nil
			}
		})
		await(t, r, 10*time.Millisecond, at(primaryA))
		s.requireAuth("app", "two")
		synctest.Wait()
		password.Store("two")
		s.sentinels[0].Cut()
		time.Sleep(2 * time.Second)
		require.Equal(t, 1, r.Stats().Reachable)
		require.EqualValues(t, 4, asked.Load()) // two connections, twice
	})
}

func TestPasswordIsNoHarmWhereNoneIsWanted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, 3)
		s.sentinels[0].RequireAuth("", "secret")
		r := s.open(func(c *SentinelConfig) { c.Password = "secret" })
		time.Sleep(2 * time.Second)
		require.Equal(t, 3, r.Stats().Reachable)
	})
}

func TestARefusedNameIsTolerated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, 1)
		s.sentinels[0].Refuse("CLIENT SETNAME", "NOPERM no")
		await(t, s.open(), 10*time.Millisecond, at(primaryA))
	})
}

func TestBadConfigurationIsRefused(t *testing.T) {
	net := testserver.NewNet()
	for _, test := range []struct {
		cfg  SentinelConfig
		says string
	}{
		{SentinelConfig{MasterName: "m", Dial: net.Dial}, "Addrs is empty"},
		{SentinelConfig{Addrs: []string{"s1"}, MasterName: "m", Dial: net.Dial}, `Addrs[0] is "s1", want host:port`},
		{SentinelConfig{Addrs: []string{"s1:1", ":26379"}, MasterName: "m", Dial: net.Dial}, `Addrs[1] is ":26379", want host:port`},
		{SentinelConfig{Addrs: []string{"s1:26379"}, Dial: net.Dial}, "MasterName is empty"},
		{SentinelConfig{Addrs: []string{"s1:26379"}, MasterName: "m"}, "Dial is nil"},
		{SentinelConfig{Addrs: []string{"s1:26379"}, MasterName: "m", Dial: net.Dial, Fallback: "redis"}, `Fallback is "redis", want host:port`},
	} {
		_, err := NewSentinel(test.cfg)
		require.ErrorContains(t, err, test.says)
	}
	_, err := NewReplicated(ReplicatedConfig{Dial: net.Dial})
	require.ErrorContains(t, err, "Addrs is empty")
}

func TestStartWaitsForNoSlowSentinel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, 2)
		s.sentinels[1].Hang(true)
		s.net.Add(s.addrs[1], func(ctx context.Context, network, addr string) (net.Conn, error) {
			time.Sleep(200 * time.Millisecond) // and 300 more until it is given up
			return s.sentinels[1].Dial(ctx, network, addr)
		})
		require.LessOrEqual(t, await(t, s.open(), time.Second, at(primaryA)), 310*time.Millisecond)
	})
}
