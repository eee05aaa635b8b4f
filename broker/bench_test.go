package broker

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/redistest"
)

func BenchmarkPublish(b *testing.B) {
	c, _ := newTestClient(b, redistest.Shared(b).Client(b), Config{})
	task := NewTask[[]byte]("bench", TaskConfig{Codec: Raw})
	payload := make([]byte, 100)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := task.Publish(context.Background(), c, payload); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkPublish64(b *testing.B) {
	c, _ := newTestClient(b, redistest.Shared(b).Client(b), Config{})
	task := NewTask[[]byte]("bench", TaskConfig{Codec: Raw})
	payload := make([]byte, 100)
	b.ReportAllocs()
	b.SetParallelism(32) // of two cores
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := task.Publish(context.Background(), c, payload); err != nil {
				b.Error(err)
				return
			}
		}
	})
	b.ReportMetric(float64(c.Stats().Published)/float64(c.Stats().Batches), "tasks/batch")
}

func BenchmarkDrain(b *testing.B) {
	c, _ := newTestClient(b, redistest.Shared(b).Client(b), Config{})
	task := NewTask[[]byte]("bench", TaskConfig{Codec: Raw})
	const n = 20_000
	payload := make([]byte, 100)
	b.ReportAllocs()
	for b.Loop() {
		b.StopTimer()
		var publishers sync.WaitGroup
		for range 64 {
			publishers.Go(func() {
				for range n / 64 {
					_, err := task.Publish(context.Background(), c, payload)
					require.NoError(b, err)
				}
			})
		}
		publishers.Wait()
		var left atomic.Int64
		left.Store(n / 64 * 64)
		done := make(chan struct{})
		b.StartTimer()
		stop := startWorker(b, c, WorkerConfig{Concurrency: 64, Lease: 15 * time.Second}, func(w *Worker) {
			task.Handle(w, func(context.Context, []byte) error {
				if left.Add(-1) == 0 {
					close(done)
				}
				return nil
			})
		})
		<-done
		require.NoError(b, stop())
	}
	b.ReportMetric(float64(b.N)*n/b.Elapsed().Seconds(), "tasks/s")
}

func BenchmarkPublishMany100(b *testing.B) {
	c, _ := newTestClient(b, redistest.Shared(b).Client(b), Config{})
	task := NewTask[[]byte]("bench", TaskConfig{Codec: Raw})
	args := make([][]byte, 100)
	for i := range args {
		args[i] = make([]byte, 100)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := task.PublishMany(context.Background(), c, args); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.N)*100/b.Elapsed().Seconds(), "tasks/s")
}
