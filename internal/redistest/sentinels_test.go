package redistest_test

import (
	"crypto/x509"
	"net"
	"net/url"
	"os"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/redistest"
)

// sentinelSetups are ways to set up Sentinels and data nodes.
var sentinelSetups = map[string]redistest.SentinelsConfig{
	"one without replicas": {Sentinels: 1, Replicas: -1, MasterName: "main"},
	"passwords": {
		Data:     redistest.Config{Password: `data "w\d`, Users: []string{"alice on >secret ~* +@all"}},
		Sentinel: redistest.Config{Password: "sentinel"},
	},
	"TLS with two CAs": {
		Data:     redistest.Config{TLS: &redistest.TLS{RequireClientCert: true}, Password: "data"},
		Sentinel: redistest.Config{TLS: &redistest.TLS{RequireClientCert: true}},
	},
	"TLS of the data nodes alone": {Data: redistest.Config{TLS: &redistest.TLS{}}},
	"TLS of the Sentinels alone":  {Sentinel: redistest.Config{TLS: &redistest.TLS{}}},
	"host names":                  {Hostnames: true, Data: redistest.Config{Lines: []string{"min-replicas-to-write 1"}}},
}

func TestSentinelsStartSettled(t *testing.T) {
	for name, cfg := range sentinelSetups {
		t.Run(name, func(t *testing.T) {
			begin := time.Now()
			f := redistest.NewSentinels(t, cfg)
			t.Log("settled in", time.Since(begin))
			require.NoError(t, f.Settled(t.Context()))
			require.Same(t, f.Nodes[0], f.Primary())
			require.Equal(t, f.Nodes[1:], f.Replicas())

			u, err := url.Parse(f.URL())
			require.NoError(t, err)
			require.Equal(t, "/"+f.MasterName()+"/0", u.Path)
			require.Equal(t, map[bool]string{true: "rediss+sentinel", false: "redis+sentinel"}[cfg.Data.TLS != nil], u.Scheme)
			require.Equal(t, cfg.Sentinel.Password, u.Query().Get("sentinel_password"))
			password, _ := u.User.Password()
			require.Equal(t, cfg.Data.Password, password)

			// Who trusts the file gets everywhere.
			pem, err := os.ReadFile(f.CAFile())
			require.NoError(t, err)
			pool := x509.NewCertPool()
			require.True(t, pool.AppendCertsFromPEM(pem))
			trusting := func(s *redistest.Server) *redis.Options {
				opts := s.Options()
				if opts.TLSConfig != nil {
					opts.TLSConfig.RootCAs = pool
				}
				return opts
			}
			for i, s := range f.Sentinels {
				require.Equal(t, s.Addr(), f.Addrs()[i])
				rdb := redis.NewSentinelClient(trusting(s))
				addr, err := rdb.GetMasterAddrByName(t.Context(), f.MasterName()).Result()
				require.NoError(t, err)
				require.NoError(t, rdb.Close())
				_, port, _ := net.SplitHostPort(f.Nodes[0].Addr())
				require.Equal(t, []string{map[bool]string{true: "localhost", false: "127.0.0.1"}[cfg.Hostnames], port}, addr)
			}
			for _, s := range f.Nodes {
				require.NoError(t, ping(t, trusting(s)))
			}
			if cfg.Data.TLS != nil && cfg.Sentinel.TLS != nil {
				opts := f.Sentinels[0].Options()
				opts.TLSConfig = f.Nodes[0].Options().TLSConfig
				var unknown x509.UnknownAuthorityError
				require.ErrorAs(t, ping(t, opts), &unknown)
			}
			if cfg.Replicas >= 0 {
				primary, err := f.Failover(t.Context())
				require.NoError(t, err)
				require.NotSame(t, f.Nodes[0], primary)
			}
		})
	}
}

// ping pings once.
func ping(t *testing.T, opts *redis.Options) error {
	opts.MaxRetries, opts.DialerRetries = -1, 1
	rdb := redis.NewClient(opts)
	defer func() { _ = rdb.Close() }()
	return rdb.Ping(t.Context()).Err()
}
