package resolve

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/redistest"
)

// dialer dials TCP, with TLS if secure is not nil.
func dialer(secure *tls.Config) func(ctx context.Context, network, addr string) (net.Conn, error) {
	if secure == nil {
		return new(net.Dialer).DialContext
	}
	return (&tls.Dialer{Config: secure}).DialContext
}

// following returns the configuration of a resolver that watches f.
func following(f *redistest.Sentinels, password string) SentinelConfig {
	var secure *tls.Config
	if certs := f.Sentinels[0].Certs(); certs != nil {
		secure = certs.ClientConfig()
	}
	return SentinelConfig{
		Addrs: f.Addrs(), MasterName: f.MasterName(), Password: password,
		Dial: dialer(secure), Name: "redisha:test", Replicas: true, Logger: (&logBook{}).logger(),
	}
}

func opened(t *testing.T, cfg SentinelConfig) Resolver {
	t.Helper()
	r, err := NewSentinel(cfg)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, r.Close()) })
	return r
}

func TestRealSentinelsWithPasswordAndTLSAreFollowed(t *testing.T) {
	f := redistest.NewSentinels(t, redistest.SentinelsConfig{
		Data:     redistest.Config{Password: "data-secret", TLS: &redistest.TLS{}},
		Sentinel: redistest.Config{Password: "sentinel-secret", TLS: &redistest.TLS{}},
	})
	cfg := following(f, "sentinel-secret")
	one := cfg
	one.Addrs = cfg.Addrs[:1]
	first := f.Primary().Addr()

	log := &logBook{}
	cfg.Logger = log.logger()
	resolvers := []Resolver{opened(t, cfg), opened(t, one)}
	for _, r := range resolvers {
		await(t, r, 20*time.Second, func(s *State) bool { return s.Primary == first && len(s.Replicas) == 2 })
	}
	require.Eventually(t, func() bool { return resolvers[1].Stats().Known == 3 && resolvers[1].Stats().Reachable == 3 }, 20*time.Second, 10*time.Millisecond, "discovered")
	t.Run("mistakes", func(t *testing.T) { mistakes(t, f, cfg) })
	t.Run("one Sentinel paused", func(t *testing.T) {
		require.NoError(t, f.Sentinels[0].Pause())
		defer func() { require.NoError(t, f.Sentinels[0].Continue()) }()
		t.Log("found within", await(t, opened(t, cfg), 20*time.Second, at(first)))
	})

	f.Primary().Kill()
	next, err := f.AwaitPrimary(t.Context(), first)
	require.NoError(t, err)
	known := time.Now()
	for _, r := range resolvers {
		await(t, r, 20*time.Second, at(next.Addr()))
		t.Log("followed", time.Since(known), "after the fixture knew it;", r.Stats().LastSwitch.Sub(known))
		require.EqualValues(t, 2, r.State().Epoch)
		require.EqualValues(t, 1, r.Stats().Switches)
		require.NotZero(t, r.Stats().ConfigEpoch)
	}
	require.Equal(t, 1, log.count("failover: new primary"))
}

// mistakes are told apart on real servers too.
func mistakes(t *testing.T, f *redistest.Sentinels, good SentinelConfig) {
	pem, err := os.ReadFile(f.Sentinels[0].Certs().OtherCAFile)
	require.NoError(t, err)
	pool := x509.NewCertPool()
	require.True(t, pool.AppendCertsFromPEM(pem))
	for name, test := range map[string]struct {
		change func(*SentinelConfig)
		kind   error
		says   string
	}{
		"wrong master name": {func(c *SentinelConfig) { c.MasterName = "mymastr" }, ErrUnknownMaster, `they know ["mymaster"]`},
		"wrong password":    {func(c *SentinelConfig) { c.Password = "data-secret" }, ErrSentinelAuth, "WRONGPASS"},
		"no password":       {func(c *SentinelConfig) { c.Password = "" }, ErrSentinelAuth, "NOAUTH"},
		"data nodes": {func(c *SentinelConfig) {
			c.Addrs, c.Password, c.Dial = []string{f.Primary().Addr()}, "data-secret", dialer(f.Primary().Certs().ClientConfig())
		}, ErrNotSentinel, "unknown command"},
		"unknown authority": {func(c *SentinelConfig) {
			c.Dial = dialer(&tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12})
		}, ErrNoSentinel, "unknown authority"},
		"wrong name": {func(c *SentinelConfig) {
			secure := f.Sentinels[0].Certs().ClientConfig()
			secure.ServerName = "elsewhere.example"
			c.Dial = dialer(secure)
		}, ErrNoSentinel, "elsewhere.example"},
		"no TLS": {func(c *SentinelConfig) { c.Dial = dialer(nil) }, ErrNoSentinel, "TLS?"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := good
			test.change(&cfg)
			r := opened(t, cfg)
			err := r.Err()
			for start := time.Now(); !errors.Is(err, test.kind) || !strings.Contains(err.Error(), test.says); err = r.Err() {
				require.Less(t, time.Since(start), 20*time.Second, "%v", err)
				time.Sleep(10 * time.Millisecond) // not asked yet, or not answered in time
			}
			t.Log(err)
			require.Equal(t, len(cfg.Addrs), r.Stats().Known)
			require.NotContains(t, err.Error(), "secret")
			require.Empty(t, r.State().Primary)
		})
	}
}

func TestRealSentinelsThatRefuseEpochsAreFollowed(t *testing.T) {
	f := redistest.NewSentinels(t, redistest.SentinelsConfig{
		Hostnames: true,
		Sentinel: redistest.Config{Users: []string{
			"app on >secret +@connection +subscribe allchannels +sentinel|get-master-addr-by-name",
		}},
	})
	cfg := following(f, "secret")
	all := cfg
	all.Password = ""
	cfg.Username = "app"
	r, knowing := opened(t, cfg), opened(t, all)
	host := func(s *redistest.Server) string {
		_, port, err := net.SplitHostPort(s.Addr())
		require.NoError(t, err)
		return net.JoinHostPort("localhost", port)
	}
	for _, r := range []Resolver{r, knowing} {
		await(t, r, 20*time.Second, at(host(f.Primary())))
	}
	require.Zero(t, r.Stats().ConfigEpoch)

	next, err := f.Failover(t.Context())
	require.NoError(t, err)
	for _, r := range []Resolver{r, knowing} {
		await(t, r, 20*time.Second, at(host(next)))
		require.EqualValues(t, 2, r.State().Epoch)
	}
	require.Zero(t, r.Stats().ConfigEpoch)
	require.NotZero(t, knowing.Stats().ConfigEpoch)
	require.NotZero(t, r.Stats().Announcements)
}

func TestRealReplicasAreToldFromTheirPrimary(t *testing.T) {
	users := []string{"blind on >secret +@connection -role -info"}
	primary := redistest.New(t, redistest.Config{Users: users})
	replica := redistest.NewReplica(t, primary, redistest.Config{Users: users})
	for name, user := range map[string][2]string{"by ROLE": {}, "by HELLO": {"blind", "secret"}} {
		t.Run(name, func(t *testing.T) {
			r, err := NewReplicated(ReplicatedConfig{
				Addrs:    []string{replica.Addr(), primary.Addr()},
				Username: user[0], Password: user[1],
				Dial: dialer(nil), Logger: (&logBook{}).logger(),
			})
			require.NoError(t, err)
			defer func() { require.NoError(t, r.Close()) }()
			await(t, r, 20*time.Second, func(s *State) bool {
				return s.Primary == primary.Addr() && len(s.Replicas) == 1 && s.Replicas[0] == replica.Addr()
			})
		})
	}
	r, err := NewReplicated(ReplicatedConfig{Addrs: []string{primary.Addr(), replica.Addr()}, Dial: dialer(nil), Logger: (&logBook{}).logger()})
	require.NoError(t, err)
	defer func() { require.NoError(t, r.Close()) }()
	await(t, r, 20*time.Second, at(primary.Addr()))
	primary.Kill()
	require.NoError(t, replica.Client(t).ReplicaOf(t.Context(), "NO", "ONE").Err())
	await(t, r, 20*time.Second, at(replica.Addr()))
	require.EqualValues(t, 2, r.State().Epoch)
}
