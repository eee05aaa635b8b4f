package redisha_test

import (
	"context"
	"fmt"

	"github.com/redisha/redisha/redisha"
)

// The variables may be a map, as in a test; redisha.FromEnv reads the environment.
func ExampleFromLookup() {
	variables := map[string]string{
		"CACHE_DEFAULT":                "redis:6379/0",
		"CELERY_BROKER_URL":            "sentinel://:secret@s1:26379/2;sentinel://s2:26379",
		"REDIS_BROKER_SENTINEL_MASTER": "brokermaster",
	}
	lookup := func(name string) (string, bool) { value, ok := variables[name]; return value, ok }

	cfg, err := redisha.FromLookup(lookup)
	fmt.Println(cfg.Cache.URL, cfg.Broker.URL, err)

	_, err = redisha.FromLookup(lookup, redisha.Results)
	fmt.Println(err)
	// Output:
	// redis:6379/0 sentinel://:xxxxx@s1:26379/2;sentinel://s2:26379 <nil>
	// redisha: role not configured: results: set REDISHA_RESULTS_URL
}

// A role without endpoint has a client whose calls say what to do.
func ExampleOpen() {
	clients, err := redisha.Open(context.Background(), redisha.Config{})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer clients.Close()
	_, err = clients.Locks.TryAcquire(context.Background(), "report")
	fmt.Println(err)
	// Output: lock: acquire "report": redisha: role not configured: locks: set REDISHA_LOCKS_URL
}
