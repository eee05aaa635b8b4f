package redisha_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/redisha"
)

// fromMap is the environment of a test.
func fromMap(vars map[string]string) func(string) (string, bool) {
	return func(name string) (string, bool) { v, ok := vars[name]; return v, ok }
}

func TestWhatCannotBeAQuorumIsRefused(t *testing.T) {
	for _, c := range []struct {
		name, url string
		says      []string
	}{
		{"two", "redis://a;redis://b", []string{"a quorum of 2 servers, which survives no more losses than one of 1: add one, or leave one out"}},
		{"four", "redis://a;redis://b;redis://c;redis://d", []string{"a quorum of 4 servers, which survives no more losses than one of 3"}},
		{"the same twice", "redis://a;redis://b;redis://A:6379/1", []string{"part 3 of 3: it has the same address as part 1: a quorum is made of independent servers"}},
		{"Sentinels", "redis://a;redis://b;redis+sentinel://c/main", []string{"part 3 of 3: it is a sentinel endpoint: a quorum is made of independent single servers (redis://, rediss://, unix://)"}},
		{"a Cluster", "redis://a;redis+cluster://b;redis://c", []string{"part 2 of 3: it is a cluster endpoint"}},
		{"replicas", "redis+replica://a,b;redis://c;redis://d", []string{"part 1 of 3: it is a replicated endpoint"}},
		{"a proxy", "redis://a;redis://b?proxy=envoy;redis://c", []string{"part 2 of 3: proxy=envoy: a quorum must know its servers"}},
		{"namespaces", "redis://a?namespace=x;redis://b;redis://c?namespace=y", []string{"part 3 of 3: namespace=y, where another part has x: all servers have the same keys, write it once"}},
		{"TTLs", "redis://a;redis://b?ttl=10s;redis://c?ttl=20s", []string{"part 3 of 3: ttl=20s, where another part has 10s"}},
		{"no scheme", "redis://a;b;redis://c", []string{"part 2 of 3: it has no scheme: write redis:// in front of every part, and a ; in a password as %3B"}},
		{"several mistakes", "redis://a?ttl=10s;redis://b?proxy=envoy&ttl=20s", []string{"a quorum of 2 servers", "part 2 of 2: proxy=envoy", "part 2 of 2: ttl=20s"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, fromEnv := redisha.FromLookup(fromMap(map[string]string{"REDISHA_LOCKS_URL": c.url}), redisha.Locks)
			_, opened := redisha.Open(t.Context(), redisha.Config{Locks: redisha.LocksConfig{Endpoint: at(c.url)}})
			for _, says := range c.says {
				require.ErrorContains(t, fromEnv, says)
				require.ErrorContains(t, opened, says)
			}
			require.ErrorContains(t, fromEnv, "redisha: REDISHA_LOCKS_URL=")
		})
	}
}

// In a variable of Celery's, such a list is one of brokers to fail over to.
func TestOnlyTheVariableOfLocksHoldsAQuorum(t *testing.T) {
	const list = "redis://:hunter2@a;redis://:hunter2@b;redis://:hunter2@c"
	for _, variable := range []string{"CELERY_BROKER_URL", "CELERY_ONCE_REDIS_URL", "REDISHA_BROKER_URL", "REDIS_URL"} {
		_, err := redisha.FromLookup(fromMap(map[string]string{variable: list}), redisha.Locks)
		require.ErrorContains(t, err, "redisha: "+variable+"=redis://:xxxxx@a;redis://:xxxxx@b;redis://:xxxxx@c: several endpoints separated by semicolons: only REDISHA_LOCKS_URL takes them, as a quorum")
		require.NotContains(t, err.Error(), "hunter2")
	}
	_, err := redisha.Open(t.Context(), redisha.Config{Broker: redisha.BrokerConfig{Endpoint: at(list)}})
	require.ErrorContains(t, err, "several endpoints separated by semicolons")
}

func TestMistakesOfAPartNameIt(t *testing.T) {
	_, err := redisha.Open(t.Context(), redisha.Config{Locks: redisha.LocksConfig{Endpoint: at("redis://:hunter2@a;rediss://:hunter2@b?tls_ca=/nowhere;rediss://:hunter2@c?tls_ca=/nowhere")}})
	require.Error(t, err)
	t.Log("\n" + err.Error())
	require.NotContains(t, err.Error(), "hunter2")
	for _, says := range []string{"redisha: open locks: part 2 of 3: ", "redisha: open locks: part 3 of 3: "} {
		require.ErrorContains(t, err, says)
	}
}

func TestParametersThatLocksHaveNoUseForAreToldOfAQuorumToo(t *testing.T) {
	_, err := redisha.Open(t.Context(), redisha.Config{Locks: redisha.LocksConfig{Endpoint: at("redis://a;redis://b?compression=none;redis://c")}})
	require.ErrorContains(t, err, "compression: locks compresses nothing")
}
