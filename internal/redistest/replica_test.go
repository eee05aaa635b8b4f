package redistest_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/redistest"
)

func TestReplicaFollowsItsPrimary(t *testing.T) {
	for name, cfg := range map[string]redistest.Config{
		"plain":               {},
		"password":            {Password: `p"w\d`},
		"TLS":                 {TLS: &redistest.TLS{}, Password: "secret"},
		"client certificates": {TLS: &redistest.TLS{RequireClientCert: true}},
	} {
		t.Run(name, func(t *testing.T) {
			primary := redistest.New(t, cfg)
			one := redistest.NewReplica(t, primary, redistest.Config{})
			two := redistest.NewReplica(t, one, redistest.Config{}) // of a replica
			require.NoError(t, primary.Client(t).Set(t.Context(), "k", "v", 0).Err())
			for _, replica := range []*redistest.Server{one, two} {
				rdb := replica.Client(t)
				require.Eventually(t, func() bool { return rdb.Get(t.Context(), "k").Val() == "v" }, 20*time.Second, 5*time.Millisecond)
				require.ErrorContains(t, rdb.Set(t.Context(), "k", "w", 0).Err(), "READONLY")
			}
			if cfg.TLS != nil {
				// One CA for all: a client of the one may connect to the other.
				opts := one.Options()
				opts.TLSConfig = primary.Options().TLSConfig
				require.NoError(t, ping(t, opts))
			}
			require.NoError(t, one.Restart(t.Context()))
			rdb := one.Client(t)
			require.Eventually(t, func() bool { return rdb.Get(t.Context(), "k").Val() == "v" }, 30*time.Second, 5*time.Millisecond)
		})
	}
}

func TestStartReplicaTellsWhatIsWrong(t *testing.T) {
	primary := redistest.New(t, redistest.Config{})
	_, err := redistest.StartReplica(t.Context(), nil, redistest.Config{})
	require.ErrorContains(t, err, "nil primary")
	//lint:ignore SA1012 the error for it is under test
	_, err = redistest.StartReplica(nil, primary, redistest.Config{}) //nolint:staticcheck // the error for it is under test
	require.ErrorContains(t, err, "nil context")
	sentinel := redistest.NewSentinel(t, "mymaster", primary)
	_, err = redistest.StartReplica(t.Context(), sentinel, redistest.Config{})
	require.ErrorContains(t, err, "the primary is a Sentinel")
	_, err = redistest.StartReplica(t.Context(), primary, redistest.Config{Lines: []string{"no-such-directive 1"}})
	require.ErrorContains(t, err, "no-such-directive")
}
