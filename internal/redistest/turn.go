package redistest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Two fixtures of several processes run at a time on a machine, one in a process:
// beside more, under load, Sentinels take their nodes for down. Two are what go
// test needs for two packages at a time, which mostly wait for fixtures to notice
// something. Who wants one takes the turn of this process first, which one test has
// at a time, and then a lock of the machine. Nobody who has either waits for
// anything else: there is no dead-lock.

// turn is that of this process.
var turn = struct {
	free chan struct{} // has an element while nobody has it

	mu   sync.Mutex
	user string // name of the test that has it, "" while a fixture is only kept
}{free: make(chan struct{}, 1)}

func init() { turn.free <- struct{}{} }

// programName stands for a user that is no test. No test has this name.
const programName = "(program)"

const oneFixture = "Sentinels or a Cluster already: one such fixture runs at a time in a process; stop it before the next"

// takeTurnAsProgram fails if someone in this process has a fixture in use.
func takeTurnAsProgram(ctx context.Context) error {
	for {
		turn.mu.Lock()
		user := turn.user
		turn.mu.Unlock()
		if user != "" {
			return fmt.Errorf("%s has %s", user, oneFixture)
		}
		select {
		case <-turn.free:
			setUser(programName)
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// takeTurn waits until no other test has the turn.
func takeTurn(ctx context.Context, tb testing.TB) {
	tb.Helper()
	if hasTurn(tb.Name()) {
		tb.Fatalf("redistest: %s has %s, or split the test", tb.Name(), oneFixture)
	}
	select {
	case <-turn.free:
		setUser(tb.Name())
	case <-ctx.Done():
		tb.Fatalf("redistest: no turn for a fixture: %v", context.Cause(ctx))
	}
}

// hasTurn reports whether a test or its parent has the turn.
func hasTurn(name string) bool {
	turn.mu.Lock()
	defer turn.mu.Unlock()
	return turn.user != "" && strings.HasPrefix(name+"/", turn.user+"/")
}

func setUser(name string) {
	turn.mu.Lock()
	defer turn.mu.Unlock()
	turn.user = name
}

// endTurn gives the turn back, and a lock of the machine unless file is nil.
func endTurn(file *os.File) (err error) {
	if file != nil {
		err = unlockFixtures(file)
	}
	setUser("")
	turn.free <- struct{}{}
	return err
}

// untilNearDeadline returns a context that ends so long before the test binary
// would be killed that the reason is told.
func untilNearDeadline(tb testing.TB) (context.Context, context.CancelFunc) {
	if t, ok := tb.(interface{ Deadline() (time.Time, bool) }); ok {
		if deadline, ok := t.Deadline(); ok {
			return context.WithDeadline(context.Background(), deadline.Add(-10*time.Second))
		}
	}
	return context.WithCancel(context.Background())
}

// fixtureLockFiles are locked while a fixture exists, one of them for each. They
// are the same for all processes, whatever a test does to TMPDIR.
var fixtureLockFiles = [2]string{
	filepath.Join(os.TempDir(), "redisha-redistest.lock"),
	filepath.Join(os.TempDir(), "redisha-redistest.2.lock"),
}

// lockFixtures waits for a lock of the machine. The kernel opens it when this
// process ends.
func lockFixtures(ctx context.Context, user string, logf func(string, ...any)) (*os.File, error) {
	begin := time.Now()
	told := false
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		for _, path := range fixtureLockFiles {
			f, err := tryLock(path)
			switch {
			case err == nil:
				if told {
					logf("redistest: waited %s for a fixture lock", time.Since(begin).Round(time.Second))
				}
				text := fmt.Sprintf("process %d (%s), %s\n", os.Getpid(), filepath.Base(os.Args[0]), user)
				_, err := f.WriteAt([]byte(text), 0)
				return f, errors.Join(err, f.Truncate(int64(len(text))))
			case !errors.Is(err, syscall.EWOULDBLOCK):
				return nil, fmt.Errorf("lock %s: %w", path, err)
			}
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("no turn for a fixture after %s (%w): %s; %d fixtures run at a time on a machine",
				time.Since(begin).Round(time.Second), context.Cause(ctx), fixtureHolders(), len(fixtureLockFiles))
		case <-tick.C:
		}
		if !told && time.Since(begin) > 5*time.Second {
			logf("redistest: waiting for a fixture lock: %s", fixtureHolders())
			told = true
		}
	}
}

// tryLock locks the file that is at the path, which the holder removes.
func tryLock(path string) (*os.File, error) {
	for {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o666)
		if err != nil {
			return nil, err
		}
		if err := lock(f); err != nil {
			return nil, errors.Join(err, f.Close())
		}
		locked, err := f.Stat()
		if err != nil {
			return nil, errors.Join(err, f.Close())
		}
		if at, err := os.Stat(path); err == nil && os.SameFile(locked, at) {
			return f, nil
		}
		_ = f.Close() // it was removed between open and lock
	}
}

func unlockFixtures(f *os.File) error { return errors.Join(os.Remove(f.Name()), f.Close()) }

func fixtureHolders() string {
	var holders []string
	for _, path := range fixtureLockFiles {
		text, err := os.ReadFile(path)
		if err != nil || len(text) == 0 {
			text = []byte("an unknown process")
		}
		holders = append(holders, fmt.Sprintf("%s is held by %s", path, strings.TrimSpace(string(text))))
	}
	return strings.Join(holders, ", ")
}
