package redisha_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/testserver"
	"github.com/redisha/redisha/redisha"
)

func TestAnErrorOfCredentialsSaysWhereItComesFrom(t *testing.T) {
	srv := testserver.New(t)
	sealed := errors.New("vault is sealed")
	cfg := everywhere("redis://redis:6379/0")
	fail := func(context.Context) (string, string, error) { return "", "", sealed }
	for _, ep := range []*redisha.Endpoint{&cfg.Cache.Endpoint, &cfg.Broker.Endpoint, &cfg.Results.Endpoint, &cfg.Locks.Endpoint} {
		ep.Dialer, ep.Credentials = srv.Dial, fail
	}
	cfg.Lazy = true
	clients := open(t, cfg)
	for r, err := range clients.Health(t.Context()) {
		require.ErrorIs(t, err, sealed, "%s", r)
		require.ErrorContains(t, err, "credentials: vault is sealed", "%s", r)
		require.Equal(t, 1, strings.Count(err.Error(), "credentials: "), "%s", r)
	}
	_, err := clients.Results.Get(t.Context(), "absent")
	require.ErrorIs(t, err, sealed)
	require.ErrorContains(t, err, "credentials: vault is sealed")
}

func TestAnErrorOfSentinelCredentialsSaysSoOnce(t *testing.T) {
	srv := testserver.New(t)
	sealed := errors.New("vault is sealed")
	cfg := redisha.Config{}
	cfg.Results.Endpoint = redisha.Endpoint{
		URL: "redis+sentinel://s:26379/m", Dialer: srv.Dial,
		SentinelCredentials: func(context.Context) (string, string, error) { return "", "", sealed },
	}
	_, err := redisha.Open(t.Context(), cfg)
	require.ErrorIs(t, err, sealed)
	require.ErrorContains(t, err, "s:26379: credentials: vault is sealed")
	require.Equal(t, 1, strings.Count(err.Error(), "credentials: "))
}
