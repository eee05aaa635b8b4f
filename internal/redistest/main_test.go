package redistest_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/redistest"
)

// childVariable makes the test binary start servers, tell where they are, and
// end in the way that the variable names.
const childVariable = "REDISTEST_CHILD"

func TestMain(m *testing.M) {
	if how := os.Getenv(childVariable); how != "" {
		child(how)
		return
	}
	redistest.Main(m)
}

func child(how string) {
	addrs, err := childServers(how)
	if err != nil {
		fmt.Println(strings.ReplaceAll(err.Error(), "\n", " "))
	} else {
		fmt.Println(strings.Join(addrs, " "))
	}
	_, _ = os.Stdin.Read(make([]byte, 1)) // until the parent says so
	if how == "panic" {
		panic("as a test may")
	}
	os.Exit(1) // the parent is gone
}

func childServers(how string) (addrs []string, err error) {
	ctx := context.Background()
	switch how {
	case "impatient":
		ctx, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		_, err := redistest.StartCluster(ctx, redistest.ClusterConfig{})
		return nil, err
	case "sentinels":
		f, err := redistest.StartSentinels(ctx, redistest.SentinelsConfig{})
		if err != nil {
			return nil, err
		}
		for _, s := range f.Nodes {
			addrs = append(addrs, s.Addr())
		}
		return append(addrs, f.Addrs()...), nil
	case "cluster":
		c, err := redistest.StartCluster(ctx, redistest.ClusterConfig{})
		if err != nil {
			return nil, err
		}
		return c.Addrs(), nil
	}
	s, err := redistest.Start(ctx, redistest.Config{})
	if err != nil {
		return nil, err
	}
	if how == "paused" {
		err = s.Pause()
	}
	return []string{s.Addr()}, err
}

// A childProcess is this binary once more, with servers.
type childProcess struct {
	cmd    *exec.Cmd
	stdin  io.WriteCloser
	stdout *bufio.Reader
	line   string // what it said: addresses, or an error
}

// startChild starts a child and waits for its line.
func startChild(t *testing.T, how, temp string) *childProcess {
	c := launchChild(t, how, temp)
	c.awaitLine(t)
	return c
}

// launchChild starts a child with a directory of its own for temporary files. It
// is killed when the test ends.
func launchChild(t *testing.T, how, temp string) *childProcess {
	binary, err := os.Executable()
	require.NoError(t, err)
	c := &childProcess{cmd: exec.Command(binary)}
	c.cmd.Env = append(os.Environ(), childVariable+"="+how, "TMPDIR="+temp)
	c.stdin, err = c.cmd.StdinPipe()
	require.NoError(t, err)
	stdout, err := c.cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, c.cmd.Start())
	t.Cleanup(func() {
		if c.cmd.ProcessState == nil {
			c.kill(t)
		}
	})
	c.stdout = bufio.NewReader(stdout)
	return c
}

func (c *childProcess) awaitLine(t *testing.T) {
	var err error
	c.line, err = c.stdout.ReadString('\n')
	require.NoError(t, err)
}

func (c *childProcess) kill(t *testing.T) {
	require.NoError(t, c.cmd.Process.Kill())
	require.Error(t, c.cmd.Wait())
}

// end lets it end by itself.
func (c *childProcess) end(t *testing.T) {
	_, err := c.stdin.Write([]byte("\n"))
	require.NoError(t, err)
	require.Error(t, c.cmd.Wait())
}
