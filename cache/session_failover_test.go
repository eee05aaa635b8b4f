package cache

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/redistest"
)

// Invariant 13, across a failover: of what a replica has, and of what it has not.
func TestNoSessionComesBackByAFailover(t *testing.T) {
	primary := redistest.New(t, redistest.Config{})
	replica := redistest.NewReplica(t, primary, redistest.Config{})
	onPrimary, onReplica := primary.Client(t), replica.Client(t)
	cn := connectTo(t, fmt.Sprintf("redis+replica://%s,%s", primary.Addr(), replica.Addr()))
	c := newClient(t, cn, Config{})
	s := NewSessionStore(c, "web")
	held := func(token string) string { return onReplica.Get(t.Context(), s.prefix+token).Val() }
	expiry := time.Now().Add(3 * time.Hour)
	unconfirmed := func() uint64 { return c.Stats().SessionDestroysUnconfirmed }

	// Delete returns when a replica has it, unless the machine is too slow for that.
	tries := 0
	require.Eventually(t, func() bool {
		tries++
		token, before := fmt.Sprint("confirmed ", tries), unconfirmed()
		require.NoError(t, s.Commit(token, []byte("data"), expiry))
		require.NoError(t, s.Delete(token))
		if unconfirmed() > before {
			return false
		}
		require.Equal(t, tombstone, held(token))
		return true
	}, time.Minute, time.Millisecond)
	require.Contains(t, onPrimary.Info(t.Context(), "commandstats").Val(), "cmdstat_wait:")

	// A replica that hangs is waited for only so long.
	require.NoError(t, s.Commit("hung", []byte("data"), expiry))
	require.NoError(t, s.Commit("lost", []byte("data"), expiry))
	require.Eventually(t, func() bool { return held("lost") == "data" }, time.Minute, time.Millisecond)
	before := unconfirmed()
	require.NoError(t, replica.Pause())
	require.NoError(t, s.Delete("hung"))
	require.NoError(t, replica.Continue())
	require.Equal(t, before+1, unconfirmed())

	// One that is not connected is not waited for, and does not know.
	require.NoError(t, onReplica.Do(t.Context(), "REPLICAOF", "127.0.0.1", "1").Err())
	require.Eventually(t, func() bool {
		role := onPrimary.Do(t.Context(), "ROLE").Val()
		return strings.HasSuffix(fmt.Sprint(role), "[]]")
	}, time.Minute, time.Millisecond)
	require.NoError(t, s.Delete("lost"))
	require.Equal(t, before+2, unconfirmed())
	primary.Kill()
	require.Equal(t, "data", held("lost"))
	require.NoError(t, onReplica.Do(t.Context(), "REPLICAOF", "NO", "ONE").Err())

	require.Eventually(t, func() bool { return held("lost") == tombstone }, time.Minute, 10*time.Millisecond, "it is destroyed once more")
	require.Greater(t, onReplica.PTTL(t.Context(), s.prefix+"lost").Val(), 2*time.Hour, "for the rest of its life")
	for _, token := range []string{fmt.Sprint("confirmed ", tries), "hung", "lost"} {
		require.Eventually(t, func() bool {
			_, found, err := s.Find(token)
			require.False(t, found)
			return err == nil
		}, time.Minute, 10*time.Millisecond)
		require.ErrorIs(t, s.Commit(token, []byte("data"), expiry), ErrSessionDestroyed)
	}
}
