package resolve

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// reading returns a wire on which data has come in.
func reading(data string) *wire { return &wire{r: bufio.NewReader(strings.NewReader(data))} }

func TestRepliesAreRead(t *testing.T) {
	for data, want := range map[string]any{
		"+OK\r\n":                 "OK",
		"+\r\n":                   "",
		"-ERR no\r\n":             replyError("ERR no"),
		":-7\r\n":                 int64(-7),
		"$3\r\na\r\n\r\n":         "a\r\n",
		"$0\r\n\r\n":              "",
		"$-1\r\n":                 nil,
		"*-1\r\n":                 nil,
		"*0\r\n":                  []any{},
		"*2\r\n$1\r\na\r\n:1\r\n": []any{"a", int64(1)},
		"*1\r\n*1\r\n$-1\r\n":     []any{[]any{nil}},
	} {
		got, err := reading(data).receive()
		require.NoError(t, err, "%q", data)
		require.Equal(t, want, got, "%q", data)
	}
}

func TestWhatIsNoReplyIsAnError(t *testing.T) {
	for _, data := range []string{
		"\r\n", "\n", "OK\r\n", ":x\r\n", "$x\r\n", "$-2\r\n", "$3\r\nabcde\r\n", "*x\r\n", "*-2\r\n", "+OK\n",
		"$99999999999\r\n", "$4194304\r\n", "*4194304\r\n", "*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n:1\r\n",
		"+" + strings.Repeat("x", 5000) + "\r\n", "\x15\x03\x01\x00\x02",
		strings.Repeat("*100\r\n", 6) + strings.Repeat("*500\r\n"+strings.Repeat(":1\r\n", 500), 600),
	} {
		_, err := reading(data).receive()
		require.ErrorIs(t, err, errProtocol, "%.40q", data)
	}
	for _, data := range []string{"", "+OK", "$3\r\nab", "*2\r\n:1\r\n"} {
		_, err := reading(data).receive()
		require.ErrorContains(t, err, "EOF", "%q", data)
	}
}

func FuzzReply(f *testing.F) {
	for _, seed := range []string{"+OK\r\n", "*2\r\n$1\r\na\r\n:1\r\n", "-NOPERM x\r\n", "*-1\r\n", "$-1\r\n", "\x15\x03"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		w := &wire{r: bufio.NewReader(bytes.NewReader(data))}
		var replies []any
		for {
			v, err := w.receive()
			if err != nil {
				break
			}
			replies = append(replies, v)
		}
		q := &inquiry{master: group, replicas: true}
		for i, v := range replies {
			_ = fields(v)
			a, err := q.primary(v, replies[len(replies)-1-i])
			require.False(t, err != nil && a.HasEpoch)
			_, _ = q.online(v, "")
			_, _ = q.peers(v)
			if list, ok := v.([]any); ok {
				_, _ = readRole(list)
			}
		}
		l := &listener{master: group}
		near, far := net.Pipe()
		defer func() { _ = near.Close() }()
		go func() {
			_, _ = far.Write(data)
			_ = far.Close()
		}()
		events := &wire{nc: near, r: bufio.NewReader(near)}
		for {
			if _, err := l.next(events); err != nil {
				break
			}
		}
	})
}

func TestAWireIsCutWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := net.Pipe()
		go func() { _, _ = io.Copy(io.Discard, far) }()
		ctx, cancel := context.WithCancel(t.Context())
		w := newWire(ctx, near)
		time.AfterFunc(time.Second, cancel)
		start := time.Now()
		_, err := w.ask(time.Hour, []string{"PING"})
		require.Error(t, err)
		require.Equal(t, time.Second, time.Since(start))
		w.close()
	})
}
