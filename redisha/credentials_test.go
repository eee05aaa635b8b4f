package redisha_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/redistest"
	"github.com/redisha/redisha/redisha"
)

// replace writes a file as container secrets are written: whole.
func replace(t *testing.T, path, content string) {
	t.Helper()
	require.NoError(t, os.WriteFile(path+".new", []byte(content), 0o600))
	require.NoError(t, os.Rename(path+".new", path))
}

// A turn sets the password of user app on its side.
type turn struct {
	name string
	cfg  func(t *testing.T, addr string) redisha.Config
	set  func(t *testing.T, password string)
}

// turns are the ways of a new password into a program.
func turns(addr string) []turn {
	var file string
	var given atomic.Pointer[string]
	url := func(password string) string { return "redis://app:" + password + "@" + addr + "/0\n" }
	return []turn{
		{"file", func(t *testing.T, _ string) redisha.Config {
			file = filepath.Join(t.TempDir(), "url")
			replace(t, file, url("first"))
			cfg, err := redisha.FromLookup(func(variable string) (string, bool) {
				if variable == "REDIS_URL_FILE" {
					return file, true
				}
				return "", false
			}, redisha.Broker, redisha.Results)
			require.NoError(t, err)
			cfg.Logger = slog.New(slog.DiscardHandler)
			return cfg
		}, func(t *testing.T, password string) { replace(t, file, url(password)) }},
		{"function", func(_ *testing.T, addr string) redisha.Config {
			first := "first"
			given.Store(&first)
			cfg := everywhere("redis://" + addr)
			cfg.Cache, cfg.Locks = redisha.CacheConfig{}, redisha.LocksConfig{}
			give := func(context.Context) (string, string, error) { return "app", *given.Load(), nil }
			cfg.Broker.Credentials, cfg.Results.Credentials = give, give
			return cfg
		}, func(_ *testing.T, password string) { given.Store(&password) }},
	}
}

func TestAPasswordChangesUnderLoad(t *testing.T) {
	srv := redistest.New(t, redistest.Config{})
	for _, turn := range turns(srv.Addr()) {
		t.Run(turn.name, func(t *testing.T) { testRotation(t, srv, turn) })
	}
}

func testRotation(t *testing.T, srv *redistest.Server, turn turn) {
	ctx, admin := t.Context(), srv.Client(t)
	setUser := func(rules ...any) {
		t.Helper()
		require.NoError(t, admin.Do(ctx, append([]any{"acl", "setuser", "app"}, rules...)...).Err())
	}
	setUser("reset", "on", ">first", "~*", "&*", "+@all")
	clients := open(t, turn.cfg(t, srv.Addr()))

	// Calls of both kinds, those that may be sent twice and those that may not.
	work, stop := context.WithCancel(ctx)
	defer stop()
	var working sync.WaitGroup
	var calls atomic.Int64
	failures := make(chan error, 100)
	start := func(n int) {
		for range n {
			working.Go(func() {
				for work.Err() == nil {
					_, published := echo.Publish(ctx, clients.Broker, "hello")
					_, got := clients.Results.Get(ctx, "absent")
					calls.Add(1)
					if err := errors.Join(published, got); err != nil {
						failures <- err
						return
					}
				}
			})
		}
	}
	more := func() {
		t.Helper()
		want := calls.Load() + 100
		require.Eventually(t, func() bool { return calls.Load() > want || len(failures) > 0 }, time.Minute, time.Millisecond)
	}
	start(2)
	more()
	old := connections(t, admin, "app")
	require.NotEmpty(t, old)

	setUser(">second")
	more()
	turn.set(t, "second")
	more()
	setUser("<first")
	start(10)
	more()
	var now []string
	require.Eventually(t, func() bool {
		now = connections(t, admin, "app")
		return len(now) > len(old)
	}, time.Minute, 10*time.Millisecond, "new ones come with the new password")
	require.Subset(t, now, old, "connections outlive the password that they came with")
	stop()
	working.Wait()
	close(failures)
	for err := range failures {
		require.NoError(t, err)
	}

	// Connections that are cut come back with the new password.
	require.NoError(t, admin.Do(ctx, "client", "kill", "user", "app").Err())
	_, err := clients.Results.Get(ctx, "absent")
	require.NoError(t, err)

	turn.set(t, "wr0ng")
	require.NoError(t, admin.Do(ctx, "client", "kill", "user", "app").Err())
	_, err = clients.Results.Get(ctx, "absent")
	require.True(t, redis.IsAuthError(err), "%v", err)
	require.ErrorContains(t, err, "WRONGPASS")
	require.NotContains(t, err.Error(), "wr0ng")
	health := clients.Health(ctx)
	require.ErrorContains(t, health[redisha.Results], "authentication failed: check user and password")

	turn.set(t, "second")
	_, err = clients.Results.Get(ctx, "absent")
	require.NoError(t, err, "the next connection heals it")
}

// connections lists the IDs of a user's connections.
func connections(t *testing.T, admin *redis.Client, user string) []string {
	t.Helper()
	list, err := admin.Do(t.Context(), "client", "list").Text()
	require.NoError(t, err)
	var ids []string
	for line := range strings.Lines(list) {
		if id, _, ok := strings.Cut(line, " "); ok && strings.Contains(line, " user="+user+" ") {
			ids = append(ids, id)
		}
	}
	return ids
}

func TestSentinelsAndDataNodesHaveLoginsAndCertificatesOfTheirOwn(t *testing.T) {
	f := redistest.NewSentinels(t, redistest.SentinelsConfig{
		Data:     redistest.Config{Password: "d4ta", TLS: &redistest.TLS{RequireClientCert: true}},
		Sentinel: redistest.Config{Password: "s3ntinel", TLS: &redistest.TLS{RequireClientCert: true}},
	})
	data, sentinels := f.Nodes[0].Certs(), f.Sentinels[0].Certs()
	url := func(user, sentinel string) redisha.URL {
		return redisha.URL(fmt.Sprintf("rediss+sentinel://%s%s/%s?sentinel_password=%s", user, strings.Join(f.Addrs(), ","), f.MasterName(), sentinel))
	}
	opened := func(change func(*redisha.ResultsConfig)) error {
		t.Helper()
		cfg := redisha.Config{Logger: slog.New(slog.DiscardHandler)}
		cfg.Results.Endpoint = redisha.Endpoint{
			URL: url(":d4ta@", "s3ntinel"), TLS: data.ClientConfig(), SentinelTLS: sentinels.ClientConfig(),
		}
		change(&cfg.Results)
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		clients, err := redisha.Open(ctx, cfg)
		if err != nil {
			for _, secret := range []string{"d4ta", "s3ntinel", "wr0ng"} {
				require.NotContains(t, err.Error(), secret)
			}
			return err
		}
		defer func() { require.NoError(t, clients.Close()) }()
		_, err = clients.Results.Get(ctx, "absent")
		require.NoError(t, err)
		return nil
	}
	require.NoError(t, opened(func(*redisha.ResultsConfig) {}))
	require.NoError(t, opened(func(c *redisha.ResultsConfig) {
		c.URL = url("", "")
		c.URL = redisha.URL(strings.TrimSuffix(string(c.URL), "?sentinel_password="))
		c.Credentials = func(context.Context) (string, string, error) { return "default", "d4ta", nil }
		c.SentinelCredentials = func(context.Context) (string, string, error) { return "default", "s3ntinel", nil }
	}))

	for _, c := range []struct {
		name   string
		want   string
		change func(*redisha.ResultsConfig)
	}{
		{"wrong password of the Sentinels", "a Sentinel refuses access", func(c *redisha.ResultsConfig) { c.URL = url(":d4ta@", "wr0ng") }},
		{"no password of the Sentinels", "a Sentinel refuses access", func(c *redisha.ResultsConfig) {
			c.URL = redisha.URL(strings.TrimSuffix(string(url(":d4ta@", "")), "?sentinel_password="))
		}},
		{"wrong password of the data nodes", "authentication failed: check user and password", func(c *redisha.ResultsConfig) { c.URL = url(":wr0ng@", "s3ntinel") }},
		{"no password of the data nodes", "authentication failed: check user and password", func(c *redisha.ResultsConfig) { c.URL = url("", "s3ntinel") }},
		{"unknown CA of the Sentinels", "unknown authority", func(c *redisha.ResultsConfig) { c.SentinelTLS = data.ClientConfig() }},
		{"unknown CA of the data nodes", "is of an unknown CA: name it with tls_ca", func(c *redisha.ResultsConfig) { c.TLS = sentinels.ClientConfig() }},
		{"wrong name of the Sentinels", "not elsewhere", func(c *redisha.ResultsConfig) { c.SentinelTLS.ServerName = "elsewhere" }},
		{"wrong name of the data nodes", "is for another name: set tls_server_name", func(c *redisha.ResultsConfig) { c.TLS.ServerName = "elsewhere" }},
		{"no certificate for the Sentinels", "", func(c *redisha.ResultsConfig) { c.SentinelTLS.Certificates = nil }},
		{"no certificate for the data nodes", "", func(c *redisha.ResultsConfig) { c.TLS.Certificates = nil }},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := opened(c.change)
			t.Log(err)
			require.ErrorContains(t, err, c.want)
			if c.want == "" { // the server hangs up, and its reason may be lost with the connection
				require.Regexp(t, "certificate required|connection reset|EOF|broken pipe", err.Error())
			}
			sentinelsFault := strings.Contains(c.name, "Sentinels")
			require.Equal(t, sentinelsFault, strings.Contains(err.Error(), "a Sentinel refuses") || strings.Contains(err.Error(), "no Sentinel answers"), "%v", err)
		})
	}
}
