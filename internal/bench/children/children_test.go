package children

import (
	"context"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

// An order is one that these tests give.
type order struct{ Count int }

func TestMain(m *testing.M) {
	Obey(func(o order, say func(string)) error {
		for i := range o.Count {
			say(strconv.Itoa(i))
		}
		select {}
	})
	goleak.VerifyTestMain(m)
}

func TestAllThatAChildSaidIsHeardBeforeKillReturns(t *testing.T) {
	const count = 1000
	var lines []string
	all := make(chan struct{})
	p, err := Start(order{count}, func(line string) {
		if lines = append(lines, line); len(lines) == count {
			close(all)
		}
	})
	require.NoError(t, err)
	require.NoError(t, p.Await(t.Context(), all))
	p.Kill()
	require.Len(t, lines, count)
	require.Equal(t, "999", lines[count-1])
	require.ErrorContains(t, p.Await(t.Context(), nil), "ended by itself")
	require.ErrorIs(t, p.cmd.Process.Signal(os.Interrupt), os.ErrProcessDone)
}

func TestAStoppedChildSaysNothingUntilItGoesOn(t *testing.T) {
	heard := make(chan string, 1e6)
	p, err := Start(order{1e6}, func(line string) { heard <- line })
	require.NoError(t, err)
	defer p.Kill()
	<-heard
	require.NoError(t, p.Stop())
	time.Sleep(20 * time.Millisecond) // what is in the pipe
	n := len(heard)
	time.Sleep(50 * time.Millisecond)
	require.Len(t, heard, n)
	require.NoError(t, p.Continue())
	require.Eventually(t, func() bool { return len(heard) > n }, 10*time.Second, time.Millisecond)
}

func TestAWaitForAChildEndsWithItsContext(t *testing.T) {
	p, err := Start(order{}, func(string) {})
	require.NoError(t, err)
	defer p.Kill()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	require.ErrorIs(t, p.Await(ctx, nil), context.DeadlineExceeded)
}
