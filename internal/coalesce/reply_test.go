package coalesce

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"testing"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
)

// feed writes a reply from rd as go-redis 9.23 does (proto.Reader.ReadRawReplyWriteTo).
func feed(rd *bufio.Reader, w io.Writer, depth int) error {
	if depth > 1000 {
		return errors.New("too deep")
	}
	line, err := rd.ReadBytes('\n')
	if err != nil {
		return err
	}
	if len(line) <= 2 || line[len(line)-2] != '\r' {
		return errors.New("redis: invalid reply")
	}
	line = line[:len(line)-2]
	if _, err := w.Write(line); err != nil {
		return err
	}
	if _, err := w.Write([]byte("\r\n")); err != nil {
		return err
	}
	count, ok := 0, true
	if strings.IndexByte("$=!*~>%|", line[0]) >= 0 {
		if string(line[1:]) == "-1" {
			return nil
		}
		n, err := strconv.Atoi(string(line[1:]))
		count, ok = n, err == nil && n >= -1
	}
	switch line[0] {
	case '+', '-', ':', '_', ',', '#', '(':
		return nil
	case '$', '=', '!':
		if !ok {
			return errors.New("redis: invalid reply")
		}
		_, err := io.CopyN(w, rd, int64(count)+2)
		return err
	case '%', '|':
		count *= 2
		fallthrough
	case '*', '~', '>':
		if !ok {
			return errors.New("redis: invalid reply")
		}
		for range count {
			if err := feed(rd, w, depth+1); err != nil {
				return err
			}
		}
		if line[0] == '|' {
			return feed(rd, w, depth+1)
		}
		return nil
	}
	return errors.New("redis: can't read raw reply")
}

func parse(reply *reply, text string) error {
	err := feed(bufio.NewReader(strings.NewReader(text)), reply, 0)
	if err == nil && !reply.finish() {
		err = io.ErrUnexpectedEOF
	}
	return err
}

func TestARepliesValuesAreTold(t *testing.T) {
	var r reply
	for i := range 4 { // it can be used again, for another reply or the same one
		if i%2 == 0 {
			r.begin(6)
		}
		require.NoError(t, parse(&r, "*6\r\n$3\r\none\r\n$-1\r\n_\r\n$0\r\n\r\n-ERR no luck\r\n$5\r\n\r\n*1\r\r\n"))
		require.Equal(t, "one", string(r.answers[0].value))
		require.Equal(t, absent, r.answers[1].state)
		require.Equal(t, absent, r.answers[2].state)
		require.Equal(t, present, r.answers[3].state)
		require.NotNil(t, r.answers[3].value)
		require.Empty(t, r.answers[3].value)
		require.EqualError(t, r.answers[4].err, "ERR no luck")
		require.Equal(t, "\r\n*1\r", string(r.answers[5].value))
		require.Equal(t, 3, cap(r.answers[0].value), "what is appended to a value spoils no other")
	}
	r.begin(2)
	require.NoError(t, parse(&r, "*2\r\n!6\r\nERR no\r\n$1\r\nx\r\n"))
	require.EqualError(t, r.answers[0].err, "ERR no")
	require.Equal(t, "x", string(r.answers[1].value))
}

func TestAnErrorReplyIsTheServersError(t *testing.T) {
	for text, want := range map[string]string{
		"-LOADING Redis is loading\r\n": "LOADING Redis is loading",
		"-MOVED 1 127.0.0.1:1\r\n":      "MOVED 1 127.0.0.1:1",
		"!9\r\nNOPERM no\r\n":           "NOPERM no",
	} {
		var r reply
		r.begin(2)
		err := parse(&r, text)
		require.EqualError(t, err, want)
		var reply redis.Error
		require.ErrorAs(t, err, &reply)
	}
}

func TestWhatIsNoReplyToAnMGetIsAnError(t *testing.T) {
	for _, text := range []string{
		"+OK\r\n", ":1\r\n", "$1\r\nx\r\n", "_\r\n", "$-1\r\n", "*-1\r\n", "*0\r\n", "*1\r\n$1\r\nx\r\n", "*3\r\n$1\r\nx\r\n$1\r\nx\r\n$1\r\nx\r\n",
		"*2\r\n*1\r\n$1\r\nx\r\n$1\r\nx\r\n", "*2\r\n:1\r\n$1\r\nx\r\n", "*2\r\n$1\r\nxyz$1\r\nx\r\n", "%1\r\n$1\r\nx\r\n$1\r\nx\r\n",
		"*2\r\n$-2\r\n$1\r\nx\r\n", "*99999999999999999999\r\n", "*2\r\n$99999999999999999999\r\n", "*2\r\n$\r\n\r\n", "~2\r\n$1\r\nx\r\n$1\r\nx\r\n",
		"|1\r\n+a\r\n+b\r\n*2\r\n$1\r\nx\r\n$1\r\nx\r\n", "*2\r\n=7\r\ntxt:abc\r\n$1\r\nx\r\n", "*2\r\n!99999999\r\n", "",
	} {
		var r reply
		r.begin(2)
		err := parse(&r, text)
		require.Error(t, err, "%q", text)
		var reply redis.Error
		require.NotErrorAs(t, err, &reply, "%q", text)
	}
}

func TestAReplyThatEndsTooEarlyIsNotComplete(t *testing.T) {
	text := "*4\r\n$3\r\none\r\n$-1\r\n-ERR no luck\r\n$3\r\ntwo\r\n"
	for end := range len(text) {
		var r reply
		r.begin(4)
		require.Error(t, parse(&r, text[:end]), "%q", text[:end])
		require.False(t, r.finish())
		// The next attempt is as if there had been none before.
		cmd := newMGet(t.Context(), &r, []any{"mget"})
		require.Equal(t, []any{"mget"}, cmd.Args())
		require.EqualError(t, parse(&r, "-LOADING wait\r\n"), "LOADING wait")
		require.NoError(t, parse(&r, text))
		require.Equal(t, "one two", string(r.answers[0].value)+" "+string(r.answers[3].value))
		cmd.Args() // also of those who look at the command afterwards
		require.Equal(t, "one two", string(r.answers[0].value)+" "+string(r.answers[3].value))
		require.Equal(t, 4, r.n)
		cmd.over()
		r.begin(4) // for another command
		require.Error(t, parse(&r, text[:end]))
		n := r.n
		cmd.Args()
		require.Equal(t, n, r.n)
	}
}

func TestAValueThatIsTooLongIsPassedOver(t *testing.T) {
	long := fmt.Sprintf("$%d\r\n%s\r\n", maxReply, strings.Repeat("x", maxReply))
	var r reply
	r.begin(3)
	require.NoError(t, parse(&r, "*3\r\n$3\r\none\r\n"+long+"$3\r\ntwo\r\n"))
	require.Equal(t, tooLong, r.answers[1].state)
	require.Equal(t, "onetwo", string(r.answers[0].value)+string(r.answers[2].value))
	require.Less(t, cap(r.bytes), 1<<10)
}

// modelled parses a reply in the simplest way: nil for what is not one of n values.
func modelled(text []byte, n int) []answer {
	line := func() (string, bool) {
		l, rest, ok := bytes.Cut(text, []byte("\n"))
		text = rest
		if !ok || len(l) < 2 || l[len(l)-1] != '\r' {
			return "", false
		}
		return string(l[:len(l)-1]), true
	}
	data := func(digits string) (string, bool) {
		size, err := strconv.Atoi(digits)
		if err != nil || strings.Trim(digits, "0123456789") != "" || size > len(text)-2 || string(text[size:size+2]) != "\r\n" {
			return "", false
		}
		s := string(text[:size])
		text = text[size+2:]
		return s, true
	}
	head, ok := line()
	if !ok || head[0] != '*' || strings.Trim(head[1:], "0123456789") != "" {
		return nil
	}
	if count, err := strconv.Atoi(head[1:]); err != nil || count != n {
		return nil
	}
	answers := make([]answer, n)
	for i := range answers {
		l, ok := line()
		if !ok {
			return nil
		}
		switch {
		case l == "$-1", l[0] == '_':
			answers[i].state = absent
		case l[0] == '-':
			answers[i] = answer{state: failed, err: errors.New(l[1:])}
		case l[0] == '$', l[0] == '!':
			s, ok := data(l[1:])
			if !ok {
				return nil
			}
			if answers[i] = (answer{state: present, value: []byte(s)}); l[0] == '!' {
				answers[i] = answer{state: failed, err: errors.New(s)}
			}
		default:
			return nil
		}
	}
	return answers
}

func FuzzReply(f *testing.F) {
	for _, text := range []string{
		"*2\r\n$3\r\none\r\n$-1\r\n", "*2\r\n_\r\n$0\r\n\r\n", "*3\r\n-ERR no\r\n!2\r\nno\r\n$2\r\n\r\n\r\n", "-LOADING wait\r\n", "!2\r\nno\r\n",
		"*1\r\n$4294967296\r\n", "*1\r\n$-2\r\n", "*-1\r\n", "*1000000000\r\n", "*2\r\n*2\r\n$1\r\nx\r\n", "|1\r\n+a\r\n+b\r\n*1\r\n_\r\n", "*1\r\n$5\r\nx\r\n",
		"%1\r\n$1\r\nx\r\n$1\r\ny\r\n", "*2\r\n$1\r\nx\r\n*2\r\n_\r\n_\r\n", "*1\r\n$03\r\none\r\n", "+\r\r\n", "*2\r\n_\r\n*2\r\n$1\r\nx\r\n$1\r\ny\r\n",
	} {
		f.Add([]byte(text), uint8(2))
		f.Add([]byte(text), uint8(1))
		f.Add([]byte(text+text), uint8(3))
	}
	f.Fuzz(func(t *testing.T, text []byte, keys uint8) {
		n := int(keys) + 1
		var r reply
		r.begin(n)
		err := feed(bufio.NewReader(bytes.NewReader(text)), &r, 0)
		require.LessOrEqual(t, len(r.bytes), len(text), "memory is taken for what has come")
		want := modelled(text, n)
		if err != nil || !r.finish() {
			require.Nil(t, want, "%v", err)
			return
		}
		if want == nil { // an array in the array begins the reply anew
			require.Greater(t, bytes.Count(text, []byte("*")), 1)
			return
		}
		for i, a := range r.answers {
			require.Equal(t, want[i].state, a.state)
			require.Equal(t, string(want[i].value), string(a.value))
			if want[i].err != nil {
				require.EqualError(t, a.err, want[i].err.Error())
			}
		}
	})
}

// What go-redis does with each reply: the server's errors leave the connection in
// use, what is no reply does not, and nothing is read as the reply to what follows.
func TestAConnectionIsUsedAgainAfterAnErrorAndGivenUpAfterNonsense(t *testing.T) {
	for text, keep := range map[string]bool{
		"*2\r\n$1\r\nx\r\n$-1\r\n":          true,
		"-LOADING wait\r\n":                 true,
		"!4\r\nERR \r\n":                    true,
		"*2\r\n$1\r\nx\r\n-ERR no\r\n":      true,
		"*3\r\n$1\r\nx\r\n$-1\r\n$-1\r\n":   false,
		"*2\r\n$1\r\nx\r\n:1\r\n":           false,
		"+OK\r\n":                           false,
		"*2\r\n*1\r\n$1\r\ny\r\n$-1\r\n":    false,
		"*2\r\n$1\r\nxyz$-1\r\n+PONG\r\n":   false,
		"%1\r\n$1\r\nx\r\n$1\r\ny\r\n":      false,
		"*2\r\n$999999999999\r\nx\r\n_\r\n": false,
	} {
		dials := 0
		rdb := redis.NewClient(&redis.Options{Addr: "127.0.0.1:1", MaxRetries: -1, Protocol: 2, DisableIdentity: true,
			Dialer: func(context.Context, string, string) (net.Conn, error) {
				dials++
				client, server := net.Pipe()
				go answerWith(server, text)
				return client, nil
			}})
		var r reply
		r.begin(2)
		err := rdb.Process(t.Context(), newMGet(t.Context(), &r, []any{"mget", "a", "b"}))
		require.Equal(t, err == nil, r.finish(), "%q: %v", text, err)
		pong, failure := rdb.Ping(t.Context()).Result()
		require.NoError(t, failure, "%q", text)
		require.Equal(t, "PONG", pong, "%q", text)
		require.Equal(t, keep, dials == 1, "%q: %v", text, err)
		require.NoError(t, rdb.Close())
	}
}

// answerWith answers MGET with text.
func answerWith(nc net.Conn, text string) {
	defer nc.Close()
	buf := make([]byte, 1<<10)
	for {
		n, err := nc.Read(buf)
		if err != nil {
			return
		}
		switch request := strings.ToLower(string(buf[:n])); {
		case strings.Contains(request, "mget"):
			_, _ = io.WriteString(nc, text)
		case strings.Contains(request, "ping"):
			_, _ = io.WriteString(nc, "+PONG\r\n")
		default:
			_, _ = io.WriteString(nc, "-ERR unknown command\r\n") // HELLO
		}
	}
}
