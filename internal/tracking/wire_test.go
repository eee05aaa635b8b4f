package tracking

import (
	"bufio"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/conn"
)

// reading returns a link that reads input, and what is told by it.
func reading(tb testing.TB, input string) (l *link, keys *[]string) {
	tb.Helper()
	t, err := Open(conn.Closed("cache", errors.New("not configured")), Config{})
	require.NoError(tb, err)
	tb.Cleanup(func() {
		require.NoError(tb, t.Close())
		require.NoError(tb, t.cn.Close())
	})
	keys = new([]string)
	for _, prefix := range []string{"a:", "b:"} {
		p := &Prefix{t: t, text: prefix, invalidate: func(told []string) {
			require.LessOrEqual(tb, len(told), batch)
			for _, key := range told {
				require.True(tb, strings.HasPrefix(key, prefix))
			}
			*keys = append(*keys, told...)
		}}
		with, err := t.prefixes.Load().with(p)
		require.NoError(tb, err)
		t.prefixes.Store(with)
	}
	return &link{n: t.only, r: bufio.NewReaderSize(strings.NewReader(input), 64)}, keys
}

func TestLongKeysAreRead(t *testing.T) {
	for _, n := range []int{0, 1, 61, 62, 63, 64, 65, 1000, 100_000} {
		key := "a:" + strings.Repeat("x", n)
		l, keys := reading(t, string(appendCommand([]byte(">2\r\n+invalidate\r\n"), []string{"b:1", key, "c:1", "b:2"})))
		require.NoError(t, l.frame())
		require.Equal(t, []string{"b:1", key, "b:2"}, *keys)
		require.ErrorIs(t, l.frame(), io.EOF)
	}
}

func TestReplies(t *testing.T) {
	for input, want := range map[string]any{
		"+OK\r\n":                          "OK",
		"-ERR x\r\n":                       replyError("ERR x"),
		"!5\r\nERR y\r\n":                  replyError("ERR y"),
		":-7\r\n":                          int64(-7),
		"_\r\n":                            nil,
		"$-1\r\n":                          nil,
		"*-1\r\n":                          nil,
		"$0\r\n\r\n":                       "",
		"=7\r\ntxt:abc\r\n":                "txt:abc",
		"#t\r\n":                           "t",
		",1.5\r\n":                         "1.5",
		"~1\r\n:1\r\n":                     []any{int64(1)},
		"%1\r\n+proto\r\n:3\r\n":           []any{"proto", int64(3)},
		"*2\r\n$1\r\na\r\n*1\r\n(99\r\n":   []any{"a", []any{"99"}},
		"*2\r\n$6\r\nmaster\r\n-ERR x\r\n": []any{"master", replyError("ERR x")},
	} {
		l, _ := reading(t, input)
		left := maxReply
		got, err := l.value(maxDepth, &left)
		require.NoError(t, err, input)
		require.Equal(t, want, got, input)
	}
}

// Whatever a server sends: no panic, no memory without bytes that have arrived,
// and keys of the prefixes alone.
func FuzzFrames(f *testing.F) {
	for _, seed := range []string{
		">2\r\n$10\r\ninvalidate\r\n*2\r\n$3\r\na:1\r\n$3\r\nb:2\r\n",
		">2\r\n$10\r\ninvalidate\r\n_\r\n",
		">3\r\n$7\r\nmessage\r\n$1\r\nc\r\n%1\r\n+x\r\n_\r\n",
		"%1\r\n$5\r\nproto\r\n:3\r\n+OK\r\n*3\r\n$6\r\nmaster\r\n:0\r\n*0\r\n",
		"|1\r\n+ttl\r\n:1\r\n-ERR no\r\n",
		">2\r\n$10\r\ninvalidate\r\n*1\r\n$536870912\r\na:",
		"*1000000000\r\n", "%4611686018427387904\r\n", "$999999999999999999999\r\n",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, input string) {
		l, _ := reading(t, input)
		for range 3 {
			l.ask(nil, question{command: role}, role)
		}
		err := error(nil)
		for err == nil {
			err = l.frame()
		}
	})
}
