// Package both runs a role's tests on miniredis and on a real server from one
// table. It stands beside package redistest, which does not need miniredis.
package both

import (
	"testing"

	"github.com/redis/go-redis/v9"

	"github.com/redisha/redisha/internal/redistest"
	"github.com/redisha/redisha/internal/testserver"
)

// Each runs test as two subtests, "miniredis" and "redis", each with a client of
// an empty server that no other test uses meanwhile. The real server is that of
// redistest.Shared: skipped under -short, and the package's TestMain is
// redistest.Main. Time is the wall clock in both.
func Each(t *testing.T, test func(t *testing.T, rdb redis.UniversalClient)) {
	t.Helper()
	t.Run("miniredis", func(t *testing.T) {
		test(t, testserver.New(t).Client(t))
	})
	t.Run("redis", func(t *testing.T) {
		test(t, redistest.Shared(t).Client(t))
	})
}
