package harness

import (
	"bufio"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/redistest"
)

const childVariable = "REDISHA_BENCH_TEST_CHILD"

func TestMain(m *testing.M) {
	if os.Getenv(childVariable) != "" {
		child()
	}
	redistest.Main(m)
}

func TestASignalEndsTheRunAndItsServers(t *testing.T) {
	redistest.Require(t)
	for _, sig := range []os.Signal{os.Interrupt, syscall.SIGTERM} {
		files := t.TempDir()
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), childVariable+"=1", "TMPDIR="+files)
		pipe, err := cmd.StdoutPipe()
		require.NoError(t, err)
		require.NoError(t, cmd.Start())
		t.Cleanup(func() { _ = cmd.Process.Kill() })
		stdout := bufio.NewReader(pipe)
		addr, err := stdout.ReadString('\n')
		require.NoError(t, err)
		addr = strings.TrimSpace(addr)
		nc, err := net.DialTimeout("tcp", addr, 5*time.Second)
		require.NoError(t, err, "the server serves while the run lasts")
		require.NoError(t, nc.Close())

		require.NoError(t, cmd.Process.Signal(sig))
		report, err := io.ReadAll(stdout)
		require.NoError(t, err)
		var exit *exec.ExitError
		require.ErrorAs(t, cmd.Wait(), &exit)
		require.Equal(t, exitFailed, exit.ExitCode())
		require.Regexp(t, `\*\*Not complete\*\*: GET: .*`+sig.String(), string(report))

		_, err = net.DialTimeout("tcp", addr, time.Second)
		require.ErrorContains(t, err, "refused")
		left, err := os.ReadDir(files)
		require.NoError(t, err)
		require.Empty(t, left, "the server was stopped, not left to die")
	}
}
