package broker

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/redistest"
)

// benchTask is as programs have it: JSON, a timeout, 100 bytes.
type benchArg struct {
	ID   int    `json:"id"`
	Text string `json:"text"`
}

// BenchmarkWorker drains waiting tasks, and tells what a task costs.
func BenchmarkWorker(b *testing.B) {
	for _, concurrency := range []int{10, 64} {
		b.Run(fmt.Sprintf("concurrency=%d", concurrency), func(b *testing.B) {
			benchmarkWorker(b, concurrency)
		})
	}
}

func benchmarkWorker(b *testing.B, concurrency int) {
	rdb := redistest.Shared(b).Client(b)
	c, _ := newTestClient(b, rdb, Config{})
	task := NewTask[benchArg]("bench", TaskConfig{Timeout: time.Minute})
	fill(b, c, task, b.N)
	var left atomic.Int64
	left.Store(int64(b.N))
	done := make(chan struct{})
	b.ReportAllocs()
	client, server := clientCPU(), serverCPU(b, rdb)
	b.ResetTimer()
	stop := startWorker(b, c, WorkerConfig{Concurrency: concurrency, Lease: 15 * time.Second}, func(w *Worker) {
		task.Handle(w, func(context.Context, benchArg) error {
			if left.Add(-1) == 0 {
				close(done)
			}
			return nil
		})
	})
	<-done
	b.StopTimer()
	b.ReportMetric(float64((clientCPU()-client).Nanoseconds())/float64(b.N), "client-ns/op")
	b.ReportMetric(float64((serverCPU(b, rdb)-server).Nanoseconds())/float64(b.N), "server-ns/op")
	require.NoError(b, stop())
}

// fill publishes n tasks, many at a time.
func fill(b *testing.B, c *Client, task *Task[benchArg], n int) {
	arg := benchArg{Text: strings.Repeat("x", 80)}
	var next atomic.Int64
	failed := make(chan error, 256)
	for range 256 {
		go func() {
			var err error
			for i := next.Add(1); err == nil && i <= int64(n); i = next.Add(1) {
				_, err = task.Publish(context.Background(), c, arg)
			}
			failed <- err
		}()
	}
	for range 256 {
		require.NoError(b, <-failed)
	}
}

func clientCPU() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func serverCPU(b *testing.B, rdb redis.UniversalClient) (used time.Duration) {
	info, err := rdb.Info(context.Background(), "cpu").Result()
	require.NoError(b, err)
	for line := range strings.Lines(info) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		if name == "used_cpu_user" || name == "used_cpu_sys" {
			s, err := strconv.ParseFloat(value, 64)
			require.NoError(b, err)
			used += time.Duration(s * float64(time.Second))
		}
	}
	return used
}
