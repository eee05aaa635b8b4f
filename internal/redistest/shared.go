package redistest

import (
	"context"
	"errors"
	"os"
	"testing"
	"time"
)

const (
	// keepWithin is how long an unused shared fixture is kept for the next test,
	// while other test processes wait for theirs.
	keepWithin = 3 * time.Second

	// resetWithin is how long a shared fixture may take to be as new. Else a new
	// one is started.
	resetWithin = 5 * time.Second
)

// A keeper has the shared fixture. Who has the turn of this process, and nobody
// else, uses it.
type keeper struct {
	fixture fixture // nil while there is none
	file    *os.File
	idle    *time.Timer
}

var kept keeper

// SharedSentinels returns Sentinels with the zero SentinelsConfig for this test
// alone until it ends, with no data, settled, as new: subtests get the same ones
// as they are. Tests that follow each other share the processes where they do not
// kill, pause or fail over; 3 s after the last of them, or by [Main], they are
// stopped. Other fixtures wait meanwhile; a test that has one cannot have
// another: it fails.
func SharedSentinels(tb testing.TB) *Sentinels {
	tb.Helper()
	return sharedFixture(tb, newSentinels(SentinelsConfig{}))
}

// SharedCluster is SharedSentinels for a Cluster with the zero ClusterConfig.
func SharedCluster(tb testing.TB) *Cluster {
	tb.Helper()
	return sharedFixture(tb, newCluster(ClusterConfig{}))
}

func sharedFixture[F fixture](tb testing.TB, create func() (F, error)) F {
	tb.Helper()
	Require(tb)
	if hasTurn(tb.Name()) {
		if f, ok := kept.fixture.(F); ok {
			return f
		}
	}
	ctx, cancel := untilNearDeadline(tb)
	defer cancel()
	takeTurn(ctx, tb)
	f, err := keep(ctx, &kept, tb, create)
	if err != nil {
		tb.Fatal(errors.Join(err, kept.end(), endTurn(nil)))
	}
	tb.Cleanup(func() {
		if tb.Failed() {
			tb.Log(logs(f.servers()))
		}
		kept.idle = time.AfterFunc(keepWithin, kept.endIdle)
		_ = endTurn(nil) // keeps the lock, so there is no error
	})
	return f
}

// keep returns the fixture that is kept, reset, or a new one. Where it returns an
// error, the keeper may hold the lock.
func keep[F fixture](ctx context.Context, k *keeper, tb testing.TB, create func() (F, error)) (none F, err error) {
	tb.Helper()
	if k.idle != nil {
		k.idle.Stop()
	}
	if f, ok := k.fixture.(F); ok {
		ctx, cancel := context.WithTimeout(ctx, resetWithin)
		defer cancel()
		err := f.reset(ctx)
		if err == nil {
			return f, nil
		}
		tb.Logf("redistest: a new fixture instead of the shared one: %v", err)
	}
	if err := k.end(); err != nil {
		return none, err
	}
	if k.file, err = lockFixtures(ctx, tb.Name(), tb.Logf); err != nil {
		return none, err
	}
	f, err := bringUp(ctx, create)
	if err != nil {
		return none, err
	}
	k.fixture = f
	return f, nil
}

// end stops the fixture that is kept, if any. The caller has the turn.
func (k *keeper) end() (err error) {
	if k.idle != nil {
		k.idle.Stop()
	}
	if k.fixture != nil {
		err = k.fixture.Stop()
	}
	if k.file != nil {
		err = errors.Join(err, unlockFixtures(k.file))
	}
	*k = keeper{}
	return err
}

// endIdle stops the fixture unless a test has it again.
func (k *keeper) endIdle() {
	select {
	case <-turn.free:
	default:
		return
	}
	if err := errors.Join(k.end(), endTurn(nil)); err != nil {
		os.Stderr.WriteString(err.Error() + "\n")
	}
}

// stopKept ends what is kept when all tests have ended.
func stopKept() error {
	select {
	case <-turn.free:
		return errors.Join(kept.end(), endTurn(nil))
	case <-time.After(10 * time.Second):
		return errors.New("redistest: Sentinels or a Cluster were started and not stopped")
	}
}
