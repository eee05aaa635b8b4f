package cache

import (
	"errors"
	"fmt"

	"github.com/redis/go-redis/v9"

	"github.com/redisha/redisha/internal/conn"
)

var (
	// ErrMiss is returned by Get for a key that the cache does not have.
	ErrMiss = errors.New("cache: miss")

	// ErrNotFound says that the source does not have the key. A loader returns
	// it, alone or wrapped, and the absence is cached for ViewConfig.AbsentTTL;
	// Get and Fetch return it.
	ErrNotFound = errors.New("cache: not found")

	// ErrLoadFailed is found by errors.Is in what Fetch returns where it did not load
	// itself, since another load of the key, perhaps in another process, has just
	// failed; see ViewConfig.ErrorTTL. The text is that of its error.
	ErrLoadFailed = errors.New("cache: the load has just failed")

	// ErrClosed is found by errors.Is in the error of every call after Close.
	// It is go-redis' own.
	ErrClosed = redis.ErrClosed
)

func nilContext(op string) error {
	return fmt.Errorf("cache: %s: nil context: pass context.Background() or the request's", op)
}

// isFinal reports whether err says that the client will never serve, which is
// the program's mistake and not an outage.
func isFinal(err error) bool {
	return errors.Is(err, conn.ErrNotConfigured) || errors.Is(err, ErrClosed)
}
