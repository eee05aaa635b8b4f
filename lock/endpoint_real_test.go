package lock

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/conn"
	"github.com/redisha/redisha/internal/endpoint"
	"github.com/redisha/redisha/internal/redistest"
)

// ownOf returns a client as redisha.Open makes it.
func ownOf(t *testing.T, url string) *conn.Client {
	t.Helper()
	ep, err := endpoint.Parse(url)
	require.NoError(t, err)
	cn, err := conn.New(conn.Config{Role: "locks", Endpoint: ep, Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	t.Cleanup(func() { _ = cn.Close() })
	return cn
}

// eachClient runs test with the clients of a server: one of go-redis as it is by
// default, one that a program has wrapped, and redisha's own.
func eachClient(t *testing.T, srv *redistest.Server, test func(*testing.T, redis.UniversalClient)) {
	t.Helper()
	eachOf(t, map[string]func(*testing.T) redis.UniversalClient{
		"foreign": func(t *testing.T) redis.UniversalClient { return srv.Client(t) },
		"wrapped": func(t *testing.T) redis.UniversalClient { return wrapped{srv.Client(t)} },
		"own":     func(t *testing.T) redis.UniversalClient { return ownOf(t, srv.URL()) },
	}, test)
}

func eachOf(t *testing.T, clients map[string]func(*testing.T) redis.UniversalClient, test func(*testing.T, redis.UniversalClient)) {
	t.Helper()
	for name, client := range clients {
		t.Run(name, func(t *testing.T) { test(t, client(t)) })
	}
}

type wrapped struct{ redis.UniversalClient }

// requireTaken says that leases are handed out, what was found, and that there
// is so much of a warning.
func requireTaken(t *testing.T, rdb redis.UniversalClient, cfg Config, found, warning string) {
	t.Helper()
	var book logBook
	cfg.Logger = book.logger()
	c := open(t, rdb, cfg)
	require.NoError(t, acquire(t, c, "k").Release(t.Context()))
	require.NoError(t, acquire(t, c, "k").Release(t.Context()))
	require.NoError(t, c.Check(t.Context()))
	require.Equal(t, found, nodeStats(c).Endpoint)
	require.False(t, nodeStats(c).Refused)
	if warning == "" {
		require.Empty(t, book.String())
		return
	}
	require.Equal(t, 1, strings.Count(book.String(), "level="), book.String())
	require.Contains(t, book.String(), "level=WARN")
	require.Contains(t, book.String(), warning)
}

// requireRefused says that New, or else the first call, is refused. It returns
// the error.
func requireRefused(t *testing.T, rdb redis.UniversalClient, cfg Config, want error) error {
	t.Helper()
	cfg.Logger, cfg.CloseTimeout = slog.New(slog.DiscardHandler), -1
	c, err := New(rdb, cfg)
	if err != nil {
		require.ErrorIs(t, err, want)
		return err
	}
	defer func() { _ = c.Close() }()
	_, err = c.TryAcquire(t.Context(), "k")
	require.ErrorIs(t, err, want)
	require.ErrorContains(t, err, "REDISHA_LOCKS_URL", "what to do")
	_, err = c.Acquire(t.Context(), "k")
	require.ErrorIs(t, err, want)
	require.ErrorIs(t, c.Check(t.Context()), want)
	require.True(t, nodeStats(c).Refused)
	require.Zero(t, total(c).Acquired)
	return err
}

// startSentinel starts a Sentinel and waits until it watches the primary.
func startSentinel(t *testing.T, primary *redistest.Server) *redistest.Server {
	t.Helper()
	s := redistest.NewSentinel(t, "main", primary)
	awaitSentinels(t, primary)
	return s
}

func awaitSentinels(t *testing.T, primary *redistest.Server) {
	t.Helper()
	rdb := primary.Client(t)
	require.Eventually(t, func() bool {
		n, err := rdb.PubSubNumSub(t.Context(), helloChannel).Result()
		return err == nil && n[helloChannel] > 0
	}, time.Minute, 10*time.Millisecond)
}

func TestAStandaloneServerIsTaken(t *testing.T) {
	eachClient(t, redistest.Shared(t), func(t *testing.T, rdb redis.UniversalClient) {
		requireTaken(t, rdb, Config{}, "safe", "")
		requireTaken(t, rdb, Config{Strict: true}, "safe", "")
		requireTaken(t, rdb, Config{AllowFailoverManaged: true}, "safe", "")
	})
}

func TestAPrimaryWithReplicasIsTakenWithAWarning(t *testing.T) {
	primary := redistest.New(t, redistest.Config{})
	second := redistest.NewReplica(t, primary, redistest.Config{})
	eachClient(t, primary, func(t *testing.T, rdb redis.UniversalClient) {
		requireTaken(t, rdb, Config{}, "replicas", "it has 1 replica")
		requireRefused(t, rdb, Config{Strict: true}, ErrUnsafeEndpoint)
	})
	t.Run("named by the URL", func(t *testing.T) {
		cn := ownOf(t, fmt.Sprintf("redis+replica://%s,%s", primary.Addr(), second.Addr()))
		requireTaken(t, cn, Config{}, "replicas", "replica")
		_, err := New(cn, Config{Strict: true})
		require.ErrorIs(t, err, ErrUnsafeEndpoint, "without asking")
	})
	eachClient(t, second, func(t *testing.T, rdb redis.UniversalClient) {
		for _, cfg := range []Config{{}, {Strict: true}, {AllowFailoverManaged: true}} {
			err := requireRefused(t, rdb, cfg, ErrReplicaEndpoint)
			require.ErrorContains(t, err, primary.Addr(), "where to go instead")
		}
	})
}

func TestAPrimaryThatSentinelsWatchIsRefusedUnlessAllowed(t *testing.T) {
	primary := redistest.New(t, redistest.Config{})
	sentinel := startSentinel(t, primary)
	eachClient(t, primary, func(t *testing.T, rdb redis.UniversalClient) {
		err := requireRefused(t, rdb, Config{}, ErrFailoverManaged)
		require.ErrorContains(t, err, "AllowFailoverManaged")
		requireRefused(t, rdb, Config{Strict: true}, ErrFailoverManaged)
		requireTaken(t, rdb, Config{AllowFailoverManaged: true}, "failover_managed", "Sentinels watching it: 1")
	})
	t.Run("through a function for the slots", func(t *testing.T) {
		rdb := redis.NewClusterClient(&redis.ClusterOptions{ClusterSlots: func(context.Context) ([]redis.ClusterSlot, error) {
			return []redis.ClusterSlot{{Start: 0, End: 16383, Nodes: []redis.ClusterNode{{Addr: primary.Addr()}}}}, nil
		}})
		defer rdb.Close()
		requireRefused(t, rdb, Config{}, ErrFailoverManaged)
	})
	eachClient(t, sentinel, func(t *testing.T, rdb redis.UniversalClient) {
		requireRefused(t, rdb, Config{AllowFailoverManaged: true}, ErrSentinelEndpoint)
	})
	t.Run("a Sentinel with a database", func(t *testing.T) {
		opt := sentinel.Options()
		opt.DB = 1 // which it does not know, so that no connection comes about
		foreign := redis.NewClient(opt)
		defer foreign.Close()
		requireRefused(t, foreign, Config{}, ErrSentinelEndpoint)
		requireRefused(t, ownOf(t, sentinel.URL()[:len(sentinel.URL())-1]+"1"), Config{}, ErrSentinelEndpoint)
	})

	// All ways to follow it, none of which is asked.
	opt := &redis.FailoverOptions{MasterName: "main", SentinelAddrs: []string{sentinel.Addr()}}
	for name, client := range map[string]redis.UniversalClient{
		"FailoverClient":        redis.NewFailoverClient(opt),
		"FailoverClusterClient": redis.NewFailoverClusterClient(opt),
		"UniversalClient":       redis.NewUniversalClient(&redis.UniversalOptions{MasterName: "main", Addrs: []string{sentinel.Addr()}}),
		"wrapped":               wrapped{redis.NewFailoverClient(opt)},
		"wrapped twice":         &wrapped{wrapped{redis.NewFailoverClusterClient(opt)}},
		"with other fields":     &struct{ decorated }{decorated{name: "locks", Client: redis.NewFailoverClient(opt)}},
	} {
		t.Run(name, func(t *testing.T) {
			defer client.Close()
			_, err := New(client, Config{AllowFailoverManaged: true})
			require.ErrorIs(t, err, ErrSentinelEndpoint)
		})
	}
	t.Run("URL", func(t *testing.T) {
		_, err := New(ownOf(t, "redis+sentinel://"+sentinel.Addr()+"/main"), Config{AllowFailoverManaged: true})
		require.ErrorIs(t, err, ErrSentinelEndpoint)
	})
}

type decorated struct {
	name string
	*redis.Client
}

func TestAUserWhoMayNotAskIsTakenWithAWarning(t *testing.T) {
	commands := strings.ToLower(" +" + strings.ReplaceAll(neededCommands, " ", " +"))
	user := func(name, more string) string {
		return name + " on >secret ~redisha:lock:* &* -@all +hello +client +ping" + commands + more
	}
	srv := redistest.New(t, redistest.Config{Users: []string{
		user("nothing", ""), user("role", " +role"), user("all", " +role +pubsub|numsub +info"), user("noinfo", " +role +pubsub|numsub"),
		user("info", " +info +pubsub|numsub"), user("numsub", " +pubsub|numsub"),
	}})
	for name, want := range map[string]struct{ found, warning string }{
		"nothing": {"unprobed", "is refused: NOPERM"},
		"role":    {"unprobed", "PUBSUB is refused: NOPERM"},
		"numsub":  {"unprobed", "ROLE is refused: NOPERM"},
		"noinfo":  {"unprobed", "INFO is refused: NOPERM"},
		"info":    {"safe", ""},
		"all":     {"safe", ""},
	} {
		t.Run(name, func(t *testing.T) {
			eachOf(t, map[string]func(*testing.T) redis.UniversalClient{
				"foreign": func(t *testing.T) redis.UniversalClient {
					opt := srv.Options()
					opt.Username, opt.Password = name, "secret"
					rdb := redis.NewClient(opt)
					t.Cleanup(func() { _ = rdb.Close() })
					return rdb
				},
				"own": func(t *testing.T) redis.UniversalClient {
					return ownOf(t, "redis://"+name+":secret@"+srv.Addr())
				},
			}, func(t *testing.T, rdb redis.UniversalClient) {
				requireTaken(t, rdb, Config{}, want.found, want.warning)
				if want.warning == "" {
					requireTaken(t, rdb, Config{Strict: true}, want.found, "")
				} else {
					requireRefused(t, rdb, Config{Strict: true}, ErrUnsafeEndpoint)
				}
			})
		})
	}
}

func TestAClusterWithoutReplicasIsTaken(t *testing.T) {
	foreign := clusterOfOne(t)
	addr := foreign.Options().Addrs[0]
	eachOf(t, map[string]func(*testing.T) redis.UniversalClient{
		"foreign":   func(*testing.T) redis.UniversalClient { return foreign },
		"one node":  func(t *testing.T) redis.UniversalClient { return clientOf(t, &redis.Options{Addr: addr}) },
		"own":       func(t *testing.T) redis.UniversalClient { return ownOf(t, "redis+cluster://"+addr) },
		"RESP 2":    func(t *testing.T) redis.UniversalClient { return ownOf(t, "redis+cluster://"+addr+"?protocol=2") },
		"forbidden": func(t *testing.T) redis.UniversalClient { return withoutShards(t, foreign, addr) },
	}, func(t *testing.T, rdb redis.UniversalClient) {
		for _, cfg := range []Config{{}, {Strict: true}} {
			c := open(t, rdb, cfg)
			require.NoError(t, acquire(t, c, "k").Release(t.Context()))
			require.Equal(t, "safe", nodeStats(c).Endpoint)
		}
	})
}

func clientOf(t *testing.T, opt *redis.Options) *redis.Client {
	t.Helper()
	rdb := redis.NewClient(opt)
	t.Cleanup(func() { _ = rdb.Close() })
	return rdb
}

// withoutShards returns a client of a user who may not call CLUSTER SHARDS.
func withoutShards(t *testing.T, admin redis.UniversalClient, addr string) redis.UniversalClient {
	t.Helper()
	require.NoError(t, admin.Do(t.Context(), "acl", "setuser", "noshards", "on", ">secret", "~*", "&*", "+@all", "-cluster|shards").Err())
	rdb := redis.NewClusterClient(&redis.ClusterOptions{Addrs: []string{addr}, Username: "noshards", Password: "secret"})
	t.Cleanup(func() { _ = rdb.Close() })
	return rdb
}

// opaque does not show what is in it.
type opaque struct{ concealed }

type concealed struct{ redis.UniversalClient }

func TestAClusterInsideOfAnotherTypeIsRefused(t *testing.T) {
	foreign := clusterOfOne(t)
	for name, rdb := range map[string]redis.UniversalClient{
		"wrapped":           wrapped{foreign},
		"wrapped twice":     &wrapped{wrapped{foreign}},
		"with other fields": &struct{ clusterDecorated }{clusterDecorated{name: "locks", ClusterClient: foreign}},
		"opaque":            opaque{concealed{foreign}},
	} {
		t.Run(name, func(t *testing.T) {
			c := open(t, rdb, Config{})
			for way, call := range ways {
				err := call(t.Context(), c, "k")
				require.ErrorContains(t, err, "hides a client of several servers", way)
				require.ErrorContains(t, err, "pass the redis.ClusterClient itself", way)
			}
			require.ErrorContains(t, c.Check(t.Context()), "pass the redis.ClusterClient itself")
			require.Empty(t, foreign.Keys(t.Context(), "*").Val())
		})
	}
	t.Run("opaque, and followed by Sentinels", func(t *testing.T) {
		primary := redistest.New(t, redistest.Config{})
		sentinel := startSentinel(t, primary)
		rdb := redis.NewFailoverClient(&redis.FailoverOptions{MasterName: "main", SentinelAddrs: []string{sentinel.Addr()}})
		defer rdb.Close()
		requireRefused(t, opaque{concealed{rdb}}, Config{}, ErrFailoverManaged)
	})
	t.Run("opaque, and one server", func(t *testing.T) {
		requireTaken(t, opaque{concealed{redistest.Shared(t).Client(t)}}, Config{Strict: true}, "safe", "")
	})
	t.Run("a Ring", func(t *testing.T) {
		ring := redis.NewRing(&redis.RingOptions{Addrs: map[string]string{"a": redistest.Shared(t).Addr()}})
		defer ring.Close()
		_, err := open(t, wrapped{ring}, Config{}).TryAcquire(t.Context(), "k")
		require.ErrorContains(t, err, "a lock.wrapped hides a client of several servers")
	})
}

type clusterDecorated struct {
	name string
	*redis.ClusterClient
}

func TestAClusterWithReplicasIsTakenWithAWarning(t *testing.T) {
	fixture := redistest.SharedCluster(t)
	node, err := fixture.PrimaryOf(t.Context(), "redisha:lock:{k}")
	require.NoError(t, err)
	eachOf(t, map[string]func(*testing.T) redis.UniversalClient{
		"foreign":  func(t *testing.T) redis.UniversalClient { return fixture.Client(t) },
		"own":      func(t *testing.T) redis.UniversalClient { return ownOf(t, fixture.URL()) },
		"RESP 2":   func(t *testing.T) redis.UniversalClient { return ownOf(t, fixture.URL()+"?protocol=2") },
		"one node": func(t *testing.T) redis.UniversalClient { return node.Client(t) },
	}, func(t *testing.T, rdb redis.UniversalClient) {
		var book logBook
		c := open(t, rdb, Config{Logger: book.logger()})
		require.NoError(t, acquire(t, c, "k").Release(t.Context()))
		require.Equal(t, "replicas", nodeStats(c).Endpoint)
		require.Equal(t, 1, strings.Count(book.String(), "level=WARN"), book.String())
		_, err := open(t, rdb, Config{Strict: true}).TryAcquire(t.Context(), "k")
		require.ErrorIs(t, err, ErrUnsafeEndpoint)
	})
}

// refusal waits until a lease is refused.
func refusal(t *testing.T, c *Client, want error) {
	t.Helper()
	for start := time.Now(); time.Since(start) < time.Minute; time.Sleep(20 * time.Millisecond) {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		l, err := c.TryAcquire(ctx, "probe")
		cancel()
		if errors.Is(err, want) {
			return
		}
		if err == nil {
			_ = l.Release(t.Context())
		}
	}
	t.Fatalf("still no %v after a minute", want)
}

// Found at run time, on connections that stay.
func TestWhatAnEndpointBecomesIsFoundWhileItIsUsed(t *testing.T) {
	for name, test := range map[string]struct {
		cfg    Config
		change func(*testing.T, *redistest.Server) (undo func())
		want   error
		found  string
	}{
		"a Sentinel watches it": {
			change: func(t *testing.T, srv *redistest.Server) func() {
				s := startSentinel(t, srv)
				return func() { require.NoError(t, s.Stop()) }
			},
			want: ErrFailoverManaged, found: "failover_managed",
		},
		"a replica is attached": {
			cfg: Config{Strict: true},
			change: func(t *testing.T, srv *redistest.Server) func() {
				s := redistest.NewReplica(t, srv, redistest.Config{})
				return func() { require.NoError(t, s.Stop()) }
			},
			want: ErrUnsafeEndpoint, found: "replicas",
		},
		"the ACL forbids to ask": {
			cfg: Config{Strict: true},
			change: func(t *testing.T, srv *redistest.Server) func() {
				rdb := srv.Client(t)
				require.NoError(t, rdb.Do(t.Context(), "acl", "setuser", "default", "-pubsub").Err())
				return func() { require.NoError(t, rdb.Do(context.Background(), "acl", "setuser", "default", "+pubsub").Err()) }
			},
			want: ErrUnsafeEndpoint, found: "unprobed",
		},
		"it may evict leases": {
			cfg: Config{Strict: true},
			change: func(t *testing.T, srv *redistest.Server) func() {
				evict(t, srv, "volatile-ttl")
				return func() { require.NoError(t, srv.Client(t).ConfigSet(context.Background(), "maxmemory", "0").Err()) }
			},
			want: ErrUnsafeEndpoint, found: "evicting",
		},
		"REPLICAOF": {
			change: func(t *testing.T, srv *redistest.Server) func() {
				rdb := srv.Client(t)
				other := redistest.New(t, redistest.Config{})
				require.NoError(t, rdb.ReplicaOf(t.Context(), "127.0.0.1", fmt.Sprint(other.Port())).Err())
				return func() { require.NoError(t, rdb.ReplicaOf(context.Background(), "no", "one").Err()) }
			},
			want: ErrReplicaEndpoint, found: "replica",
		},
	} {
		t.Run(name, func(t *testing.T) {
			redistest.Require(t)
			t.Parallel() // each has servers of its own, and waits for looks and leases
			for _, kind := range []string{"foreign", "own"} {
				t.Run(kind, func(t *testing.T) {
					srv := redistest.New(t, redistest.Config{})
					var rdb redis.UniversalClient = srv.Client(t)
					if kind == "own" {
						rdb = ownOf(t, srv.URL())
					}
					var book logBook
					test.cfg.Logger, test.cfg.TTL = book.logger(), 2*time.Second
					c := open(t, rdb, test.cfg)
					w := watchOf(c)
					w.every, w.calm = 100*time.Millisecond, 500*time.Millisecond
					l := acquire(t, c, "held")
					require.NoError(t, acquire(t, c, "other").Release(t.Context()))
					undo := test.change(t, srv)
					if errors.Is(test.want, ErrReplicaEndpoint) { // an acquisition would try for as long as it may
						within(t, l.Context(), time.Minute, ErrLost)
					}
					refusal(t, c, test.want)
					_, err := c.TryAcquire(t.Context(), "probe")
					require.ErrorIs(t, err, test.want)
					require.ErrorContains(t, err, "(since ")
					require.Equal(t, test.found, nodeStats(c).Endpoint)
					require.True(t, nodeStats(c).Refused)
					within(t, l.Context(), time.Minute, ErrLost)
					ended := time.Now()
					l.mu.Lock()
					require.Equal(t, errors.Is(test.want, ErrReplicaEndpoint), ended.Before(l.deadline), "all others run out")
					l.mu.Unlock()
					require.Equal(t, LossCount{Cause: "endpoint", Count: 1}, total(c).Lost[unsafe])
					require.Equal(t, 1, strings.Count(book.String(), "level=ERROR"), book.String())

					undo()
					require.Eventually(t, func() bool {
						l, err := c.TryAcquire(t.Context(), "again")
						return err == nil && l.Release(t.Context()) == nil
					}, time.Minute, 50*time.Millisecond)
				})
			}
		})
	}
}

// evict lets a server evict keys, once it has 100 MB of them.
func evict(t *testing.T, srv *redistest.Server, policy string) {
	t.Helper()
	rdb := srv.Client(t)
	require.NoError(t, rdb.ConfigSet(t.Context(), "maxmemory-policy", policy).Err())
	require.NoError(t, rdb.ConfigSet(t.Context(), "maxmemory", "100mb").Err())
}

func TestAServerThatEvictsIsTakenWithAWarning(t *testing.T) {
	srv := redistest.New(t, redistest.Config{})
	admin := srv.Client(t)
	for _, policy := range []string{"allkeys-lru", "allkeys-lfu", "allkeys-random", "volatile-lru", "volatile-lfu", "volatile-random", "volatile-ttl"} {
		t.Run(policy, func(t *testing.T) {
			evict(t, srv, policy)
			eachClient(t, srv, func(t *testing.T, rdb redis.UniversalClient) {
				requireTaken(t, rdb, Config{}, "evicting", "set maxmemory-policy noeviction there")
				requireTaken(t, rdb, Config{AllowFailoverManaged: true}, "evicting", `detail="its maxmemory-policy is `+policy+`, and its maxmemory 104857600"`)
				err := requireRefused(t, rdb, Config{Strict: true}, ErrUnsafeEndpoint)
				require.ErrorContains(t, err, "set maxmemory-policy noeviction on it")
				require.ErrorContains(t, err, "(its maxmemory-policy is "+policy+", and its maxmemory 104857600)")
			})
		})
	}
	for policy, most := range map[string]string{"noeviction": "100mb", "allkeys-lru": "0"} {
		t.Run(policy+" and maxmemory "+most, func(t *testing.T) {
			require.NoError(t, admin.ConfigSet(t.Context(), "maxmemory-policy", policy).Err())
			require.NoError(t, admin.ConfigSet(t.Context(), "maxmemory", most).Err())
			eachClient(t, srv, func(t *testing.T, rdb redis.UniversalClient) {
				requireTaken(t, rdb, Config{}, "safe", "")
				requireTaken(t, rdb, Config{Strict: true}, "safe", "")
			})
		})
	}
}

// What is worse is told: a Sentinel that may promote another, and not that one may
// do so by hand.
func TestOfSeveralFindingsTheGravestIsTold(t *testing.T) {
	primary := redistest.New(t, redistest.Config{})
	redistest.NewReplica(t, primary, redistest.Config{})
	evict(t, primary, "allkeys-lru")
	requireTaken(t, primary.Client(t), Config{}, "evicting", "allkeys-lru")
	startSentinel(t, primary)
	requireRefused(t, primary.Client(t), Config{}, ErrFailoverManaged)
	requireTaken(t, primary.Client(t), Config{AllowFailoverManaged: true}, "failover_managed", "Sentinels watching it: 1")
}

// One primary is enough, whichever it is.
func TestAClusterThatEvictsIsTakenWithAWarning(t *testing.T) {
	foreign := clusterOfOne(t)
	addr := foreign.Options().Addrs[0]
	clients := map[string]func(*testing.T) redis.UniversalClient{
		"foreign":   func(*testing.T) redis.UniversalClient { return foreign },
		"own":       func(t *testing.T) redis.UniversalClient { return ownOf(t, "redis+cluster://"+addr) },
		"forbidden": func(t *testing.T) redis.UniversalClient { return withoutShards(t, foreign, addr) },
		"slots by a function": func(t *testing.T) redis.UniversalClient {
			rdb := redis.NewClusterClient(&redis.ClusterOptions{ClusterSlots: func(context.Context) ([]redis.ClusterSlot, error) {
				return []redis.ClusterSlot{{Start: 0, End: 16383, Nodes: []redis.ClusterNode{{Addr: addr}}}}, nil
			}})
			t.Cleanup(func() { _ = rdb.Close() })
			return rdb
		},
	}
	require.NoError(t, foreign.ConfigSet(t.Context(), "maxmemory-policy", "allkeys-lru").Err())
	require.NoError(t, foreign.ConfigSet(t.Context(), "maxmemory", "100mb").Err())
	eachOf(t, clients, func(t *testing.T, rdb redis.UniversalClient) {
		requireTaken(t, rdb, Config{}, "evicting", "its maxmemory-policy is allkeys-lru")
		requireRefused(t, rdb, Config{Strict: true}, ErrUnsafeEndpoint)
	})
	require.NoError(t, foreign.ConfigSet(t.Context(), "maxmemory", "0").Err())
	eachOf(t, clients, func(t *testing.T, rdb redis.UniversalClient) {
		requireTaken(t, rdb, Config{Strict: true}, "safe", "")
	})

	// Of three primaries one evicts.
	fixture := redistest.SharedCluster(t)
	node, err := fixture.PrimaryOf(t.Context(), "redisha:lock:{k}")
	require.NoError(t, err)
	evict(t, node, "allkeys-lru")
	defer func() {
		rdb := node.Client(t)
		require.NoError(t, rdb.ConfigSet(context.Background(), "maxmemory", "0").Err())
		require.NoError(t, rdb.ConfigSet(context.Background(), "maxmemory-policy", "noeviction").Err())
	}()
	for _, rdb := range []redis.UniversalClient{fixture.Client(t), ownOf(t, fixture.URL())} {
		requireTaken(t, rdb, Config{}, "evicting", "its maxmemory-policy is allkeys-lru")
	}
}

// Without Strict, a replica that is attached at run time is a warning.
func TestAReplicaThatIsAttachedAtRunTimeIsAWarning(t *testing.T) {
	srv := redistest.New(t, redistest.Config{})
	var book logBook
	c := open(t, srv.Client(t), Config{Logger: book.logger()})
	watchOf(c).every = 50 * time.Millisecond
	l := acquire(t, c, "k")
	require.Equal(t, "safe", nodeStats(c).Endpoint)
	redistest.NewReplica(t, srv, redistest.Config{})
	require.Eventually(t, func() bool { return nodeStats(c).Endpoint == "replicas" }, time.Minute, 10*time.Millisecond)
	require.NoError(t, l.Context().Err())
	require.NoError(t, l.Release(t.Context()))
	require.NoError(t, acquire(t, c, "k").Release(t.Context()))
	require.Equal(t, 1, strings.Count(book.String(), "level="), book.String())
	require.Contains(t, book.String(), "level=WARN")
}

// Found on new connections, which lead elsewhere, long before it is time to ask.
func TestWhatAnAddressLeadsToIsFoundOnNewConnections(t *testing.T) {
	redistest.Require(t)
	watched := redistest.New(t, redistest.Config{})
	sentinel := startSentinel(t, watched)
	second := redistest.NewReplica(t, redistest.New(t, redistest.Config{}), redistest.Config{})
	for name, test := range map[string]struct {
		to   *redistest.Server
		want error
	}{
		"a primary that Sentinels watch": {watched, ErrFailoverManaged},
		"a replica":                      {second, ErrReplicaEndpoint},
		"a Sentinel":                     {sentinel, ErrSentinelEndpoint},
	} {
		for _, kind := range []string{"foreign", "own"} {
			t.Run(name+"/"+kind, func(t *testing.T) {
				first := redistest.New(t, redistest.Config{})
				proxy := redistest.NewProxy(t, first.Addr())
				var rdb redis.UniversalClient
				if kind == "own" {
					rdb = ownOf(t, "redis://"+proxy.Addr())
				} else {
					rdb = clientOf(t, &redis.Options{Addr: proxy.Addr()})
				}
				c := open(t, rdb, Config{})
				watchOf(c).every = time.Hour
				require.NoError(t, acquire(t, c, "k").Release(t.Context()))
				proxy.SetTarget(test.to.Addr())
				proxy.Cut()
				refusal(t, c, test.want)
				require.True(t, nodeStats(c).Refused)
			})
		}
	}
}
