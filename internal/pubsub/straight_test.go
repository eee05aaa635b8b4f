package pubsub_test

import (
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/conn"
	"github.com/redisha/redisha/internal/pubsub"
)

// Messages that their link hands over itself come in order, one at a time, and
// behind what came before them, also where a function takes its time and the
// session has something to do meanwhile.
func TestMessagesThatGoStraightKeepTheirOrder(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		cn, err := conn.Of(w.rdb)
		require.NoError(t, err)
		var busy atomic.Int32
		var got []string
		note := func(what string, takes time.Duration) {
			require.EqualValues(t, 1, busy.Add(1), "one at a time")
			time.Sleep(takes)
			got = append(got, what)
			busy.Add(-1)
		}
		c, err := pubsub.Open(cn, pubsub.ChannelsConfig{
			Message: func(_, payload string) {
				takes := time.Duration(0)
				if len(payload) == 1 {
					takes = 300 * time.Millisecond
				}
				note(payload, takes)
			},
			Subscribed: func(channel string) { note("+"+channel, 100*time.Millisecond) },
			Lost:       func(channels []string, _ error) { note(fmt.Sprint("-", channels), 0) },
		})
		require.NoError(t, err)
		c.Add("a")
		synctest.Wait()
		time.Sleep(time.Second)
		want := []string{"+a"}
		for i := range 20 {
			w.srv.Publish("a", fmt.Sprint(i))
			want = append(want, fmt.Sprint(i))
			if i == 5 {
				c.Add("b") // is confirmed amid the messages
			}
		}
		time.Sleep(10 * time.Second)
		synctest.Wait()
		require.Contains(t, got, "+b")
		got = without(got, "+b")
		require.Equal(t, want, got)

		got = nil
		w.srv.Publish("a", "7")
		time.Sleep(10 * time.Millisecond)
		w.srv.Close() // while the message is being handled
		time.Sleep(time.Second)
		synctest.Wait()
		require.Equal(t, "7", got[0])
		require.Len(t, got, 2)
		require.Contains(t, got[1], "-")
		require.NoError(t, c.Close())
		require.Zero(t, busy.Load())
	})
}

func without(all []string, one string) (rest []string) {
	for _, s := range all {
		if s != one {
			rest = append(rest, s)
		}
	}
	return rest
}
