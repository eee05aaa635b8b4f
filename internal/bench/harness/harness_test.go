package harness

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/redistest"
)

// topic compares two contenders, of which "ours" takes twice the time, with a
// target for the ratio.
func topic(atMost float64) Topic {
	return Topic{Name: "topic", About: "what it shows", Beside: []Quantity{P99, Allocs}, Run: func(ctx context.Context, s *Suite) error {
		s.Setting("peer: %d connections", 1)
		for _, work := range []string{"GET", "SET"} {
			c := Comparison{Work: work, Contenders: []Contender{recorder("peer", 1000), recorder("ours", 2000)}, Baseline: "peer"}
			if work == "GET" {
				c.Targets = []Target{{Contender: "ours", Limit: AtMost(atMost, Ratio)}}
			}
			if err := s.Compare(ctx, c); err != nil {
				return err
			}
		}
		return nil
	}}
}

// start runs a topic as its command would.
func start(t *testing.T, topic Topic, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, err bytes.Buffer
	code = Run(t.Context(), topic, args, &out, &err)
	return code, out.String(), err.String()
}

func TestExitCodeTellsWhetherTargetsWereMet(t *testing.T) {
	for _, test := range []struct {
		atMost  float64
		args    []string
		code    int
		verdict string
	}{
		{2, nil, 0, "Targets: 1 of 1 met.\n"},
		{1.99, nil, 1, "Targets: 0 of 1 met, 1 **missed**.\n"},
		{2, []string{"-quick"}, 0, "Targets: 1 of 1 met. A quick run"},
		{1.99, []string{"-quick"}, 0, "Targets: 0 of 1 met, 1 **missed**. A quick run"},
	} {
		code, stdout, _ := start(t, topic(test.atMost), test.args...)
		require.Equal(t, test.code, code, "%v %q", test.atMost, test.args)
		require.Contains(t, stdout, test.verdict)
	}
}

func TestTheReportIsMarkdownWithAllThatAReaderNeeds(t *testing.T) {
	code, stdout, stderr := start(t, topic(1.5), "-only", "GET|SET")
	require.Equal(t, exitMissed, code)
	lines := strings.Split(stdout, "\n")
	require.Equal(t, "## topic: what it shows", lines[0])
	require.Regexp(t, "^`go run ./topic -only GET\\|SET`, \\d{4}-\\d\\d-\\d\\d \\d\\d:\\d\\d UTC; \\d+ cores, .+; go1.+, go-redis [^;]+; 5 rounds with turns of 1s\\.$", lines[2])
	require.Equal(t, []string{
		"- peer: 1 connections",
		"",
		"| work | contender | measured | median | min – max   | ratio (95 %)                 | target   | verdict    | p99 | allocs/op |",
		"|------|-----------|----------|--------|-------------|------------------------------|----------|------------|-----|-----------|",
		"| GET  | peer      | time/op  | 1 µs   | 1 µs – 1 µs | baseline                     | –        | –          | –   | –         |",
		"| GET  | ours      | time/op  | 2 µs   | 2 µs – 2 µs | 2.000 (2.000 – 2.000) × peer | ≤ 1.50 × | **missed** | –   | –         |",
		"| SET  | peer      | time/op  | 1 µs   | 1 µs – 1 µs | baseline                     | –        | –          | –   | –         |",
		"| SET  | ours      | time/op  | 2 µs   | 2 µs – 2 µs | 2.000 (2.000 – 2.000) × peer | –        | –          | –   | –         |",
		"",
		"Targets: 0 of 1 met, 1 **missed**.",
		"",
	}, lines[4:])
	require.Contains(t, stderr, "topic: GET: round 0 of 5\n")
}

func TestABarInACellIsEscaped(t *testing.T) {
	require.Equal(t, "| a\\|b |\n|------|\n| c    |\n", markdown([][]string{{"a|b"}, {"c"}}))
}

func TestRatiosShowOneDecimalMoreThanTargets(t *testing.T) {
	for r, want := range map[float64]string{1: "1.000", 1.0512: "1.051", 0.3333: "0.333", 12.34: "12.3", 0.0123: "0.012", 1234: "1,234"} {
		require.Equal(t, want, formatRatio(r))
	}
}

func TestAFailedRunPrintsWhatIsThere(t *testing.T) {
	broken := topic(2)
	compared := broken.Run
	broken.Run = func(ctx context.Context, s *Suite) error {
		if err := compared(ctx, s); err != nil {
			return err
		}
		return errors.New("the server is gone")
	}
	for _, args := range [][]string{nil, {"-quick"}} {
		code, stdout, stderr := start(t, broken, args...)
		require.Equal(t, exitFailed, code)
		require.Contains(t, stdout, "| GET  | ours ")
		require.Contains(t, stdout, "**Not complete**: the server is gone")
		require.Contains(t, stderr, "topic: the server is gone\n")
	}
}

func TestARunThatCannotPrintFails(t *testing.T) {
	var stderr bytes.Buffer
	require.Equal(t, exitFailed, Run(t.Context(), topic(2), nil, brokenPipe{}, &stderr))
	require.Contains(t, stderr.String(), "broken pipe")
}

type brokenPipe struct{}

func (brokenPipe) Write([]byte) (int, error) { return 0, errors.New("broken pipe") }

func TestWhatIsDeferredIsCalledHoweverTheRunEnds(t *testing.T) {
	for _, fail := range []error{nil, errors.New("failed")} {
		var calls []int
		code, stdout, _ := start(t, Topic{Name: "topic", Run: func(_ context.Context, s *Suite) error {
			s.Defer(func() error { calls = append(calls, 1); return nil })
			s.Defer(func() error { calls = append(calls, 2); return nil })
			return fail
		}})
		require.Equal(t, []int{2, 1}, calls)
		require.Equal(t, map[bool]int{true: exitMet, false: exitFailed}[fail == nil], code)
		require.Contains(t, stdout, "No targets.")
	}

	code, _, stderr := start(t, Topic{Name: "topic", Run: func(_ context.Context, s *Suite) error {
		s.Defer(func() error { return errors.New("does not stop") })
		return nil
	}})
	require.Equal(t, exitFailed, code, "what stays behind is a failure")
	require.Contains(t, stderr, "does not stop")
}

func TestAQuickRunEndsAtItsLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		slow := Topic{Name: "topic", Run: func(ctx context.Context, s *Suite) error {
			return s.Compare(ctx, Comparison{Work: "GET", Slice: time.Hour, Contenders: []Contender{{
				Name: "a",
				Run: func(ctx context.Context, b *B) error {
					return b.Measure(ctx, Load{}, sleep(time.Millisecond))
				},
			}}})
		}}
		began := time.Now()
		code, stdout, _ := start(t, slow, "-quick")
		require.Equal(t, exitFailed, code)
		require.Contains(t, stdout, "a quick run takes at most 50s: give it less to do")
		require.InDelta(t, 50, time.Since(began).Seconds(), 0.1)
	})
}

func TestWrongFlagsFailAndHelpDoesNot(t *testing.T) {
	for _, test := range []struct {
		args []string
		code int
		says string
	}{
		{[]string{"-h"}, exitMet, "-quick"},
		{[]string{"-fast"}, exitFailed, "flag provided but not defined: -fast"},
		{[]string{"-only", "("}, exitFailed, "missing closing )"},
		{[]string{"quick"}, exitFailed, `topic takes flags alone, got ["quick"]`},
	} {
		code, stdout, stderr := start(t, topic(2), test.args...)
		require.Equal(t, test.code, code, "%q", test.args)
		require.Contains(t, stderr, test.says)
		require.Empty(t, stdout)
	}
	code, _, stderr := start(t, topic(2), "-only", "^X$")
	require.Equal(t, exitFailed, code)
	require.Contains(t, stderr, "-only ^X$ matches no work")
}

func TestAProfileIsWritten(t *testing.T) {
	path := filepath.Join(t.TempDir(), "cpu.pprof")
	code, _, _ := start(t, topic(2), "-cpuprofile", path)
	require.Equal(t, exitMet, code)
	profile, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, []byte{0x1f, 0x8b}, profile[:2], "gzip, as pprof writes it")

	code, _, stderr := start(t, topic(2), "-cpuprofile", filepath.Join(path, "x"))
	require.Equal(t, exitFailed, code)
	require.Contains(t, stderr, "not a directory")
}

func TestServersAreNamedOnceAndEndWithTheRun(t *testing.T) {
	redistest.Require(t)
	var addr string
	code, stdout, stderr := start(t, Topic{Name: "topic", Run: func(ctx context.Context, s *Suite) error {
		for range 2 {
			server, err := s.Server(ctx, redistest.Config{})
			if err != nil {
				return err
			}
			addr = server.Addr()
		}
		return nil
	}})
	require.Equal(t, exitMet, code, stderr)
	require.Equal(t, 1, strings.Count(stdout, ", Redis "), stdout)
	_, err := net.DialTimeout("tcp", addr, time.Second)
	require.ErrorContains(t, err, "refused")
}

func TestARunWithoutServerProgramSaysWhatToDo(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	t.Setenv("REDISHA_TEST_REDIS_SERVER", "")
	code, _, stderr := start(t, Topic{Name: "topic", Run: func(ctx context.Context, s *Suite) error {
		_, err := s.Server(ctx, redistest.Config{})
		return err
	}})
	require.Equal(t, exitFailed, code)
	require.Contains(t, stderr, "no redis-server on PATH: install Redis 7.0 or later")
}

func TestPeersAreNamedWithTheirVersions(t *testing.T) {
	peers := topic(2)
	peers.Peers = []string{"example.org/not/linked"}
	_, stdout, _ := start(t, peers)
	require.Contains(t, stdout, "example.org/not/linked unknown")
}

func TestTheCPUModelIsFoundOnLinux(t *testing.T) {
	require.Equal(t, "AMD EPYC", cpuModel("processor\t: 0\nmodel\t\t: 17\nmodel name\t: AMD EPYC \nprocessor\t: 1\nmodel name\t: other\n"))
	require.Equal(t, "CPU model not known", cpuModel("Hardware : x\n"))
	require.Empty(t, readFile(filepath.Join(t.TempDir(), "missing")))
}

// child is a topic that starts a server, says where, and then measures for an
// hour; the test binary runs it in place of the tests.
func child() {
	Main(Topic{Name: "child", Run: func(ctx context.Context, s *Suite) error {
		server, err := s.Server(ctx, redistest.Config{})
		if err != nil {
			return err
		}
		fmt.Println(server.Addr())
		return s.Compare(ctx, Comparison{Work: "GET", Slice: time.Hour, Contenders: []Contender{{
			Name: "a",
			Run:  func(ctx context.Context, b *B) error { return b.Measure(ctx, Load{}, sleep(time.Millisecond)) },
		}}})
	}})
}
