package testserver

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/alicebob/miniredis/v2/server"
)

// A store is the data, which a server shares with its replicas.
type store struct {
	*miniredis.Miniredis

	srv     *server.Server // runs commands; as Miniredis.Server(), which is nil once closed
	started time.Time

	coarse  atomic.Bool               // the clock moves with commands, see tick
	stopped atomic.Pointer[time.Time] // where SetTime stopped the clock, or nil
	clockMu sync.Mutex                // around a change of the clock; held before miniredis' lock
	ticked  time.Time                 // what the coarse clock shows

	scriptMu sync.Mutex // around what may run a script; held before miniredis' lock
	script   scriptRun  // the script that runs

	mu       sync.Mutex
	lastID   int
	clients  map[*server.Peer]*client
	seen     map[consumerKey]time.Time
	commands map[string][]any // miniredis' own table, for COMMAND INFO
}

// A scriptRun is a script, or a transaction, which may hold scripts.
type scriptRun struct {
	on    *Server // that was asked to run it
	wrote bool    // it has written something
}

func newStore() (*store, error) {
	d := &store{
		Miniredis: miniredis.NewMiniRedis(),
		started:   time.Now(),
		clients:   make(map[*server.Peer]*client),
		seen:      make(map[consumerKey]time.Time),
	}
	d.ClockTTL(true)
	first, err := d.Miniredis.Dial() // starts it without a listener
	if err != nil {
		return nil, err
	}
	_ = first.Close()
	d.srv = d.Server()
	d.srv.SetPreHook(d.dispatch)
	return d, nil
}

// dispatch sees the commands that a server has let pass, those that it runs for
// itself, and the calls of scripts, which alone are still to be judged.
func (d *store) dispatch(c *server.Peer, cmd string, args ...string) bool {
	d.mu.Lock()
	_, ok := d.clients[c]
	d.mu.Unlock()
	if ok || d.script.on == nil {
		return false
	}
	return d.script.on.answer(c, &client{script: true}, cmd, args)
}
