package broker

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/redistest"
)

// childEnv is the address of the server for a process that is a worker.
const childEnv = "REDISHA_TEST_BROKER_CHILD"

// TestChild is what startChild runs in a process of its own: a worker that prints
// what its handlers do.
func TestChild(t *testing.T) {
	addr := os.Getenv(childEnv)
	if addr == "" {
		t.Skip("not a test: see startChild")
	}
	rdb := redis.NewClient(&redis.Options{Addr: addr, MaxRetries: -1})
	defer rdb.Close()
	c, err := New(rdb, Config{})
	require.NoError(t, err)
	defer c.Close()
	w, err := NewWorker(c, WorkerConfig{Lease: time.Second, Concurrency: 4})
	require.NoError(t, err)
	NewTask[string]("a", TaskConfig{}).Handle(w, func(ctx context.Context, s string) error {
		fmt.Println("began", s)
		if s == "stay" && FromContext(ctx).Unfinished == 0 {
			<-ctx.Done()
			fmt.Println("ended", context.Cause(ctx))
			return ctx.Err()
		}
		return nil
	})
	require.NoError(t, w.Run(t.Context()))
}

// startChild starts a worker with a lease of a second in a process of its own.
func startChild(t *testing.T, s *redistest.Server) (p *os.Process, lines <-chan string) {
	cmd := exec.Command(os.Args[0], "-test.run=^TestChild$")
	cmd.Env = append(os.Environ(), childEnv+"="+s.Addr())
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	ch := make(chan string, 1000)
	read := make(chan struct{})
	go func() {
		defer close(read)
		for scan := bufio.NewScanner(out); scan.Scan(); {
			ch <- scan.Text()
		}
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-read
		_ = cmd.Wait()
	})
	return cmd.Process, ch
}

func expect(t *testing.T, lines <-chan string, want string) {
	t.Helper()
	for line := receive(t, lines); !strings.Contains(line, want); line = receive(t, lines) {
	}
}

// A worker that is stopped for two leases and goes on knows that its task is
// another one's: its handler's context ends, and its verdict changes nothing.
func TestAWorkerThatWasStoppedForTwoLeasesIsFenced(t *testing.T) {
	server := redistest.New(t, redistest.Config{})
	c, _ := newTestClient(t, server.Client(t), Config{})
	task := NewTask[string]("a", TaskConfig{})
	child, lines := startChild(t, server)
	publish(t, task, c, "stay")
	expect(t, lines, "began stay")
	require.NoError(t, child.Signal(syscall.SIGSTOP))
	stopped := time.Now()

	deliveries := make(chan Delivery, 9)
	startWorker(t, c, WorkerConfig{Lease: time.Second}, func(w *Worker) {
		task.Handle(w, func(ctx context.Context, _ string) error { deliveries <- *FromContext(ctx); return nil })
	})
	d := receive(t, deliveries)
	t.Logf("it runs again after %s", time.Since(stopped))
	require.Equal(t, []int{1, 1}, []int{d.Attempt, d.Unfinished})
	require.Less(t, time.Since(stopped), 20*time.Second, "two seconds, and a busy machine")
	awaitQueue(t, c, "default", QueueInfo{})
	if rest := 2*time.Second - time.Since(stopped); rest > 0 {
		time.Sleep(rest)
	}
	require.NoError(t, child.Signal(syscall.SIGCONT))
	expect(t, lines, "ended "+ErrLeaseLost.Error())
	publish(t, task, c, "next")
	select { // whoever takes it
	case <-deliveries:
	case line := <-lines:
		require.Contains(t, line, "next")
	case <-time.After(time.Minute):
		require.Fail(t, "nobody works")
	}
	awaitQueue(t, c, "default", QueueInfo{})
	require.Equal(t, "2", scripts{t, c.conn, newPartition("redisha", "default", 0, 1)}.counter(countAcked))
}

// The tasks of a killed worker run again soon, also before 20,000 others.
func TestTasksOfAKilledWorkerRunAgainBeforeABacklog(t *testing.T) {
	server := redistest.New(t, redistest.Config{})
	c, _ := newTestClient(t, server.Client(t), Config{})
	task := NewTask[string]("a", TaskConfig{})
	child, lines := startChild(t, server)
	publish(t, task, c, "stay")
	expect(t, lines, "began stay")
	require.NoError(t, child.Kill())
	killed := time.Now()
	args := make([]string, 20_000)
	_, err := task.PublishMany(t.Context(), c, args)
	require.NoError(t, err)
	again := make(chan time.Duration, 1)
	startWorker(t, c, WorkerConfig{Lease: time.Second, Concurrency: 2}, func(w *Worker) {
		task.Handle(w, func(ctx context.Context, s string) error {
			if s == "stay" {
				again <- time.Since(killed)
				return nil
			}
			time.Sleep(10 * time.Millisecond) // 100 seconds of work
			return nil
		})
	})
	took := receive(t, again)
	t.Logf("it runs again after %s", took)
	require.Less(t, took, 20*time.Second, "two seconds, and a busy machine")
}
