package result

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/conn"
	"github.com/redisha/redisha/internal/endpoint"
	"github.com/redisha/redisha/internal/redistest"
	"github.com/redisha/redisha/internal/redistest/both"
)

func TestGetManyReturnsTheRecordsInTheOrderOfTheIDs(t *testing.T) {
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		c := newClient(t, rdb, Config{})
		finishAll(t, c, 2*maxRead)
		var ids []string
		for i := range 2*maxRead + 1 { // the last was never stored
			ids = append(ids, fmt.Sprint(i))
		}
		slices.Reverse(ids)
		records, err := c.GetMany(t.Context(), ids...)
		require.NoError(t, err)
		require.Len(t, records, len(ids))
		require.Equal(t, Record{ID: ids[0]}, records[0])
		for i, r := range records[1:] {
			require.Equal(t, Record{ID: ids[i+1], State: Success, Value: []byte(ids[i+1])}, r)
		}
		none, err := c.GetMany(t.Context())
		require.NoError(t, err)
		require.Empty(t, none)
	})
}

func TestARecordThatCannotBeReadHidesNoOther(t *testing.T) {
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		c := newClient(t, rdb, Config{})
		finishAll(t, c, 2)
		require.NoError(t, rdb.Set(t.Context(), key+"bad", "text", 0).Err())
		require.NoError(t, rdb.LPush(t.Context(), key+"list", "text").Err())
		records, err := c.GetMany(t.Context(), "0", "bad", "list", "1")
		require.ErrorIs(t, err, ErrCorrupt)
		require.ErrorContains(t, err, `result: get "bad": corrupt record`)
		require.ErrorContains(t, err, `result: get "list": WRONGTYPE`)
		require.Equal(t, []State{Success, Pending, Pending, Success}, states(records))

		_, err = c.WaitAll(t.Context(), "0", "bad")
		require.ErrorIs(t, err, ErrCorrupt)
		require.ErrorContains(t, err, `result: wait for 2: "bad": corrupt record`)
	})
}

func states(records []Record) (all []State) {
	for _, r := range records {
		all = append(all, r.State)
	}
	return all
}

// A group is what WaitAll or WaitAny returned, and when.
type group struct {
	records []Record
	err     error
	at      time.Time
}

func (b *bubble) waitAll(ctx context.Context, ids ...string) <-chan group {
	out := make(chan group, 1)
	go func() {
		records, err := b.WaitAll(ctx, ids...)
		out <- group{records, err, time.Now()}
	}()
	synctest.Wait()
	return out
}

func (b *bubble) waitAny(ctx context.Context, ids ...string) <-chan waited {
	out := make(chan waited, 1)
	go func() {
		r, err := b.WaitAny(ctx, ids...)
		out <- waited{r, err, time.Now()}
	}()
	synctest.Wait()
	return out
}

func TestWaitAllReturnsWhenTheLastIsFinal(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bubble) {
		b.finish("a")
		out := b.waitAll(t.Context(), "a", "b", "c", "b")
		require.EqualValues(t, 1, b.Stats().Waiters)
		require.EqualValues(t, 2, b.Stats().Subscriptions, "of what is not final yet")
		time.Sleep(1234 * time.Millisecond)
		_, err := b.Store(t.Context(), Record{ID: "c", State: Failure, Attempt: 3})
		require.NoError(t, err)
		synctest.Wait()
		require.Empty(t, out, "a failure ends nothing")
		require.EqualValues(t, 1, b.Stats().Subscriptions, "of what is not final yet")
		time.Sleep(time.Second)
		b.finish("b")
		done := time.Now()
		all := <-out
		require.NoError(t, all.err)
		require.Equal(t, done, all.at, "woken")
		require.Equal(t, []State{Success, Success, Failure, Success}, states(all.records))
		require.Equal(t, []string{"a", "b", "c", "b"}, []string{all.records[0].ID, all.records[1].ID, all.records[2].ID, all.records[3].ID})
		require.Zero(t, b.Stats().Healed)
		require.EqualValues(t, 1, b.Stats().Waits.Count)
	})
}

func TestWaitAnyReturnsTheFirstThatIsFinal(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bubble) {
		out := b.waitAny(t.Context(), "a", "b", "c")
		start := time.Now()
		time.Sleep(1234 * time.Millisecond)
		b.finish("b")
		b.succeeded(out, start, 1234*time.Millisecond)
		synctest.Wait()
		require.Zero(t, b.Stats().Subscriptions, "the others are not waited for any more")

		b.finish("c")
		out = b.waitAny(t.Context(), "a", "c", "b")
		require.Equal(t, "c", (<-out).record.ID, "the first of those that are final already")
	})
}

func TestManyRecordsAreWaitedForByFewReads(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bubble) {
		var ids []string
		for i := range 1000 {
			ids = append(ids, fmt.Sprint(i))
		}
		out := b.waitAll(t.Context(), ids...)
		require.EqualValues(t, 1000, b.Stats().Subscriptions)
		require.EqualValues(t, 1, b.subscribed.Load(), "one connection")
		time.Sleep(time.Second)
		reads := b.calls.of("GET")
		require.LessOrEqual(t, reads, 3000, "at first, once subscribed, and once more")
		finishAll(t, b.Client, 1000)
		all := <-out
		require.NoError(t, all.err)
		require.Equal(t, slices.Repeat([]State{Success}, 1000), states(all.records))
		require.Equal(t, 1000, b.calls.of("GET")-reads, "each only when its message came")
	})
}

// Messages of others do not put off the look after a message that was lost.
func TestALostWakeUpAmongManyIsHealed(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bubble) {
		ids := []string{"lost"}
		for i := range 20 {
			ids = append(ids, fmt.Sprint(i))
		}
		out := b.waitAll(t.Context(), ids...)
		time.Sleep(100 * time.Millisecond)
		start := time.Now()
		record := appendRecord(nil, Record{State: Success, Attempt: 1}, newCodec(t))
		require.NoError(t, b.rdb.Set(t.Context(), key+"lost", record, time.Hour).Err()) // without a message
		for i := range 20 {
			b.finish(fmt.Sprint(i))
			time.Sleep(500 * time.Millisecond)
		}
		all := <-out
		require.NoError(t, all.err)
		require.LessOrEqual(t, all.at.Sub(start), 20*500*time.Millisecond)
		require.EqualValues(t, 1, b.Stats().Healed)
	})
}

func TestWaitsForManyPollWithoutSubscriptions(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bubble) {
		b.refuse("SUBSCRIBE")
		out := b.waitAll(t.Context(), "a", "b")
		b.finish("a")
		b.finish("b")
		all := <-out
		require.NoError(t, all.err)
		require.EqualValues(t, 2, b.Stats().Healed)
	})
}

func TestAWaitForManyEndsWithItsContext(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bubble) {
		b.finish("a")
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		records, err := b.WaitAll(ctx, "a", "b", "c")
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.EqualError(t, err, "result: wait for 3: context deadline exceeded; 2 of the tasks have not ended")
		require.Equal(t, []State{Success, Pending, Pending}, states(records), "what was read last")

		_, err = b.WaitAny(ctx, "b", "c")
		require.ErrorIs(t, err, context.DeadlineExceeded)
		_, err = b.WaitAny(t.Context())
		require.EqualError(t, err, "result: wait for any of 0: no IDs: pass those that Publish returned")
		_, err = b.WaitAll(t.Context(), "a", "{")
		require.ErrorContains(t, err, `result: wait for 2: "{": the ID has '{' at byte 0`)
	})
}

// On Cluster each message goes to the nodes of its slot alone.
func TestOnAClusterWakeUpsAreSharded(t *testing.T) {
	const n = 60
	cluster := redistest.NewCluster(t, redistest.ClusterConfig{Replicas: -1})
	ep, err := endpoint.Parse(cluster.URL())
	require.NoError(t, err)
	rdb, err := conn.New(conn.Config{Role: "results", Endpoint: ep, Logger: quiet})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, rdb.Close()) })
	c := newClient(t, rdb, Config{})
	outcome := waitAll(t.Context(), c, n)
	subscribed(t, c, n)
	for _, node := range cluster.Nodes {
		client := node.Client(t)
		sharded, err := client.Do(t.Context(), "pubsub", "shardchannels").StringSlice()
		require.NoError(t, err)
		require.NotEmpty(t, sharded, "each node has some")
		plain, err := client.PubSubChannels(t.Context(), key+"*").Result()
		require.NoError(t, err)
		require.Empty(t, plain)
	}
	other := newClient(t, cluster.Client(t), Config{}) // made by the program
	finishAll(t, other, n)
	require.Empty(t, outcome())
	require.Zero(t, other.Stats().Unannounced)
	require.Less(t, c.Stats().Healed, uint64(n/4), "nearly each was woken, however slow the machine")

	// A record whose slot moves meanwhile.
	one := make(chan error, 1)
	go func() {
		_, err := c.Wait(t.Context(), "moves")
		one <- err
	}()
	subscribed(t, c, 1)
	slot, err := cluster.Slot(t.Context(), key+"moves")
	require.NoError(t, err)
	from, err := cluster.PrimaryOf(t.Context(), key+"moves")
	require.NoError(t, err)
	to := cluster.Nodes[0]
	if to == from {
		to = cluster.Nodes[1]
	}
	require.NoError(t, cluster.MigrateSlot(t.Context(), slot, to))
	_, err = other.Store(t.Context(), Record{ID: "moves", State: Success})
	require.NoError(t, err)
	require.NoError(t, <-one)
}
