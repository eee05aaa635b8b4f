package tracking_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/tracking"
)

// A fake is a server that answers as it is told, in a bubble.
type fake struct {
	mu     sync.Mutex
	answer map[string]string // by the first words of a command; "" is no answer
	seen   []string
	dials  []time.Time
	down   bool
	deaf   chan struct{} // nothing is read until it is closed
	conns  []net.Conn

	serving sync.WaitGroup
}

func newFake() *fake {
	return &fake{answer: map[string]string{
		"HELLO":           "%1\r\n$5\r\nproto\r\n:3\r\n",
		"PING":            "+PONG\r\n",
		"ROLE":            "*3\r\n$6\r\nmaster\r\n:0\r\n*0\r\n",
		"CLIENT TRACKING": "+OK\r\n",
		"CLIENT SETINFO":  "+OK\r\n",
	}}
}

// bubble runs test with a cache of a client of a fake server.
func bubble(t *testing.T, test func(t *testing.T, f *fake, c *cache)) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		t.Cleanup(f.serving.Wait)
		test(t, f, open(t, foreign(t, f.client()), tracking.Config{}))
	})
}

func (f *fake) client() *redis.Client {
	return redis.NewClient(&redis.Options{
		Addr: "127.0.0.1:1", Dialer: f.dial,
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
	})
}

func (f *fake) dial(context.Context, string, string) (net.Conn, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.dials = append(f.dials, time.Now())
	if f.down {
		return nil, errors.New("down")
	}
	client, server := net.Pipe()
	f.conns = append(f.conns, server)
	f.serving.Go(func() {
		defer func() { _ = server.Close() }()
		r := bufio.NewReader(server)
		for {
			f.mu.Lock()
			deaf := f.deaf
			f.mu.Unlock()
			if deaf != nil {
				<-deaf
			}
			words, err := readCommand(r)
			if err != nil {
				return
			}
			if _, err := io.WriteString(server, f.answerTo(words)); err != nil {
				return
			}
		}
	})
	return client, nil
}

func readCommand(r *bufio.Reader) ([]string, error) {
	number := func() (int, error) {
		line, err := r.ReadString('\n')
		if err != nil {
			return 0, err
		}
		return strconv.Atoi(strings.TrimSpace(line[1:]))
	}
	n, err := number()
	if err != nil {
		return nil, err
	}
	words := make([]string, n)
	for i := range words {
		size, err := number()
		if err != nil {
			return nil, err
		}
		b := make([]byte, size+2)
		if _, err := io.ReadFull(r, b); err != nil {
			return nil, err
		}
		words[i] = string(b[:size])
	}
	return words, nil
}

func (f *fake) answerTo(words []string) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	command := strings.ToUpper(strings.Join(words, " "))
	f.seen = append(f.seen, strings.Join(words, " "))
	for prefix, answer := range f.answer {
		if strings.HasPrefix(command, prefix) {
			return answer
		}
	}
	return "-ERR unknown command\r\n"
}

// set changes an answer.
func (f *fake) set(command, answer string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.answer[command] = answer
}

// hang lets nothing be answered.
func (f *fake) hang() {
	for _, command := range []string{"HELLO", "PING", "ROLE", "CLIENT TRACKING", "CLIENT SETINFO"} {
		f.set(command, "")
	}
}

// push sends bytes on the newest connection.
func (f *fake) push(t *testing.T, s string) {
	t.Helper()
	f.mu.Lock()
	nc := f.conns[len(f.conns)-1]
	f.mu.Unlock()
	_, err := io.WriteString(nc, s)
	require.NoError(t, err)
	synctest.Wait()
}

// cut ends the newest connection.
func (f *fake) cut() {
	f.mu.Lock()
	nc := f.conns[len(f.conns)-1]
	f.mu.Unlock()
	_ = nc.Close()
	synctest.Wait()
}

func (f *fake) commands(prefix string) (seen []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, command := range f.seen {
		if strings.HasPrefix(command, prefix) {
			seen = append(seen, command)
		}
	}
	return seen
}

func (f *fake) dialled() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.dials)
}

func state(t *testing.T, p *tracking.Prefix) tracking.State {
	t.Helper()
	_, state := p.State(t.Context(), "a:1")
	return state
}

// invalidation is a message as servers send it.
func invalidation(keys ...string) string {
	var b strings.Builder
	fmt.Fprintf(&b, ">2\r\n$10\r\ninvalidate\r\n*%d\r\n", len(keys))
	for _, key := range keys {
		fmt.Fprintf(&b, "$%d\r\n%s\r\n", len(key), key)
	}
	return b.String()
}
