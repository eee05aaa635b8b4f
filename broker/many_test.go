package broker

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/redistest/both"
	"github.com/redisha/redisha/internal/testserver"
)

func TestManyArePublishedInBatchesWithAVerdictEach(t *testing.T) {
	each(t, func(t *testing.T, c *Client, _ *logs) {
		task := NewTask[int]("many", TaskConfig{})
		args := make([]int, 3000)
		published, err := task.PublishMany(t.Context(), c, args)
		require.NoError(t, err)
		require.Len(t, published, 3000)
		ids := map[string]bool{}
		for _, p := range published {
			require.NoError(t, p.Err)
			require.Len(t, p.ID, idLength)
			ids[p.ID] = true
		}
		require.Len(t, ids, 3000)
		require.Equal(t, uint64(12), c.Stats().Batches)
		require.Equal(t, QueueInfo{Ready: 3000}, queueInfo(t, c, "default"))

		published, err = task.PublishMany(t.Context(), c, nil)
		require.NoError(t, err)
		require.Empty(t, published)

		published, err = task.PublishMany(t.Context(), c, args[:3], Unique("one"))
		require.ErrorIs(t, err, ErrDuplicate)
		require.ErrorContains(t, err, `broker: publish "many": 2 of 3 tasks failed, the first: a task with the same unique key is there`)
		require.NoError(t, published[0].Err)
		var duplicate *DuplicateError
		require.ErrorAs(t, published[2].Err, &duplicate)
		require.Equal(t, published[0].ID, duplicate.ID)
		require.Empty(t, published[2].ID)
	})
}

func TestManyUnderAnIDMayBeRepeated(t *testing.T) {
	each(t, func(t *testing.T, other *Client, _ *logs) {
		c, _ := newTestClient(t, other.conn.Unwrap(), Config{Partitions: 7})
		task := NewTask[int]("import", TaskConfig{})
		args := make([]int, 500)
		for range 2 {
			published, err := task.PublishMany(t.Context(), c, args, ID("import:7"))
			require.NoError(t, err)
			for i, p := range published {
				require.Equal(t, fmt.Sprint("import:7:", i), p.ID)
			}
			require.Equal(t, QueueInfo{Ready: 500}, queueInfo(t, c, "default"))
		}
		require.Equal(t, uint64(500), c.Stats().Duplicates)
		_, err := task.PublishMany(t.Context(), c, args, ID(strings.Repeat("x", 253)))
		require.ErrorContains(t, err, "want 1 to 255")
	})
}

func TestOneThatCannotBeEncodedKeepsNoneOfTheOthersBack(t *testing.T) {
	s := testserver.New(t)
	c, _ := newTestClient(t, s.Client(t), Config{MaxPayloadBytes: 10})
	task := NewTask[string]("many", TaskConfig{})
	published, err := task.PublishMany(t.Context(), c, []string{"a", strings.Repeat("x", 20), "c"})
	require.ErrorContains(t, err, `1 of 3 tasks failed, the first: the argument has 22 bytes`)
	require.NoError(t, published[0].Err)
	require.Error(t, published[1].Err)
	require.NoError(t, published[2].Err)
	require.Equal(t, QueueInfo{Ready: 2}, queueInfo(t, c, "default"))
	require.Equal(t, uint64(1), c.Stats().PublishErrors)

	for want, try := range map[string]func() ([]Published, error){
		"nil client":        func() ([]Published, error) { return task.PublishMany(t.Context(), nil, []string{"a"}) },
		"nil context":       func() ([]Published, error) { return task.PublishMany(nilContext, c, []string{"a"}) },
		"not made by NewTa": func() ([]Published, error) { return (*Task[string])(nil).PublishMany(t.Context(), c, []string{"a"}) },
		"option is nil":     func() ([]Published, error) { return task.PublishMany(t.Context(), c, []string{"a"}, nil) },
	} {
		published, err := try()
		require.ErrorContains(t, err, want)
		require.Nil(t, published)
	}
}

func TestManyThatWereCutOffSayWhichWereSent(t *testing.T) {
	inBubble(t, func(t *testing.T, s *testserver.Server, c *Client, _ *logs) {
		task := NewTask[int]("many", TaskConfig{})
		publish(t, task, c, 0)
		s.SetError("LOADING Redis is loading the dataset in memory")
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		published, err := task.PublishMany(ctx, c, make([]int, 5000))
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.ErrorContains(t, err, "5000 of 5000 tasks failed, the first: not ")
		open := 0 // batches that are under way while the tasks are withdrawn one by one
		for _, p := range published {
			if errors.Is(p.Err, ErrUnconfirmed) {
				open++
				continue
			}
			require.ErrorContains(t, p.Err, "not sent: ")
			require.Empty(t, p.ID)
		}
		require.Less(t, open, len(published)/2)
		s.SetError("")
		synctest.Wait()
		time.Sleep(time.Second)
		require.Equal(t, QueueInfo{Ready: 1}, queueInfo(t, c, "default"))
		published, err = task.PublishMany(t.Context(), c, make([]int, 1000))
		require.NoError(t, err)
		require.Len(t, published, 1000)
	})
}

func TestRepliesDroppedDuringManyDoubleNothing(t *testing.T) {
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		client, net := throughNetwork(t, rdb)
		c, _ := newTestClient(t, client, Config{Partitions: 3})
		task := NewTask[int]("single", TaskConfig{})
		total := int64(0)
		for n := range 20 {
			net.drop(1 + n%3)
			published, err := task.PublishMany(t.Context(), c, make([]int, 100*n))
			require.NoError(t, err)
			total += int64(len(published))
		}
		require.Equal(t, QueueInfo{Ready: total}, queueInfo(t, c, "default"))
		require.NotZero(t, c.Stats().Resent)
	})
}

func TestManyWithoutConfirmationWaitForNothing(t *testing.T) {
	inBubble(t, func(t *testing.T, s *testserver.Server, c *Client, _ *logs) {
		task := NewTask[int]("many", TaskConfig{Confirm: ConfirmNone})
		publish(t, task, c, 0)
		s.SetError("LOADING Redis is loading the dataset in memory")
		published, err := task.PublishMany(t.Context(), c, make([]int, 1000))
		require.NoError(t, err)
		require.Len(t, published[999].ID, idLength)
		s.SetError("")
		time.Sleep(time.Second)
		require.Equal(t, QueueInfo{Ready: 1001}, queueInfo(t, c, "default"))
	})
}

// What was never written to a socket leaves a partition that fails.
func TestWhatWaitsUnsentPassesOverToAnotherPartition(t *testing.T) {
	inBubble(t, func(t *testing.T, s *testserver.Server, other *Client, _ *logs) {
		c, _ := newTestClient(t, other.conn.Unwrap(), Config{Partitions: 2})
		task := NewTask[int]("a", TaskConfig{})
		publish(t, task, c, 0)
		publish(t, task, c, 0)
		q, err := c.queue(t.Context(), "default")
		require.NoError(t, err)
		lanes := c.lanesOf(q, ConfirmPrimary)
		// Somebody sends in the first lane, and does not come back.
		stuck := lanes[0]
		stuck.mu.Lock()
		stuck.busy = true
		stuck.mu.Unlock()
		stuck.openSince.Store(time.Now().UnixNano())
		start := time.Now()
		results := make(chan error, 10)
		for i := range 10 {
			go func() {
				if i%2 == 0 {
					_, err := task.Publish(context.Background(), c, i)
					results <- err
				} else {
					_, err := task.PublishMany(context.Background(), c, []int{i, i})
					results <- err
				}
			}()
		}
		for range 10 {
			require.NoError(t, receive(t, results))
		}
		require.Less(t, time.Since(start), time.Second)
		require.Empty(t, stuck.waiting)
		require.Zero(t, stuck.bytes)
		require.Equal(t, QueueInfo{Ready: 17}, queueInfo(t, c, "default"))
		// A task that is bound to its partition waits.
		id := "x"
		for jumpHash(hashID(id), 2) != 0 {
			id += "x"
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err = task.Publish(ctx, c, 1, ID(id))
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.NotErrorIs(t, err, ErrUnconfirmed)
		require.False(t, errors.Is(err, ErrClosed))
		stuck.mu.Lock()
		stuck.busy = false
		stuck.mu.Unlock()
		stuck.openSince.Store(0)
	})
}
