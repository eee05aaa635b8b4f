package resolve

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"time"
)

// A wire is one connection on which commands are asked in RESP 2. It is used
// instead of a go-redis client, whose pool dials on in the background after
// Close, writes each failed dial to stderr, and whose subscriptions panic on
// replies that are not as expected. One goroutine at a time may use it.
type wire struct {
	nc   net.Conn
	r    *bufio.Reader
	stop func() bool   // ends the watch on the context that closes nc
	cut  chan struct{} // closed once that has closed nc
}

// newWire returns a wire over nc that is cut when ctx is done.
func newWire(ctx context.Context, nc net.Conn) *wire {
	w := &wire{nc: nc, r: bufio.NewReader(nc), cut: make(chan struct{})}
	w.stop = context.AfterFunc(ctx, func() {
		defer close(w.cut)
		_ = nc.Close()
	})
	return w
}

func (w *wire) close() {
	if !w.stop() {
		<-w.cut
	}
	_ = w.nc.Close()
}

// ask sends the commands in one write and returns their replies: a string, an
// int64, nil, a []any of these, or a replyError. Its error is one of the
// connection, which is of no use then.
func (w *wire) ask(timeout time.Duration, commands ...[]string) ([]any, error) {
	if err := w.nc.SetDeadline(time.Now().Add(timeout)); err != nil {
		return nil, err
	}
	if err := w.send(commands...); err != nil {
		return nil, err
	}
	replies := make([]any, len(commands))
	for i := range commands {
		var err error
		if replies[i], err = w.receive(); err != nil {
			return nil, err
		}
	}
	return replies, nil
}

func (w *wire) send(commands ...[]string) error {
	var b []byte
	for _, args := range commands {
		b = fmt.Appendf(b, "*%d\r\n", len(args))
		for _, arg := range args {
			b = fmt.Appendf(b, "$%d\r\n%s\r\n", len(arg), arg)
		}
	}
	_, err := w.nc.Write(b)
	return err
}

// Bounds of a reply, far above what Sentinels send.
const (
	maxReply  = 4 << 20 // bytes
	maxDepth  = 8
	valueCost = 16 // bytes that a value counts for besides its own
)

var (
	errProtocol = errors.New("not a Redis reply")
	errTooLarge = fmt.Errorf("%w: too large", errProtocol)
)

func (w *wire) receive() (any, error) {
	left := maxReply
	return w.value(maxDepth, &left)
}

// value reads one value of at most left bytes, and counts them.
func (w *wire) value(depth int, left *int) (any, error) {
	if *left -= valueCost; depth == 0 || *left < 0 {
		return nil, errTooLarge
	}
	line, err := w.line()
	if err != nil {
		return nil, err
	}
	switch kind, rest := line[0], line[1:]; kind {
	case '+':
		return rest, nil
	case '-':
		return replyError(rest), nil
	case ':':
		n, err := strconv.ParseInt(rest, 10, 64)
		if err != nil {
			return nil, fmt.Errorf("%w: integer %.20q", errProtocol, rest)
		}
		return n, nil
	case '$':
		return w.bulk(rest, left)
	case '*':
		return w.array(rest, depth, left)
	case 0x15: // the type of a TLS alert record
		return nil, fmt.Errorf("%w but one of TLS: the port wants TLS", errProtocol)
	default:
		return nil, fmt.Errorf("%w: it begins with %.20q", errProtocol, line)
	}
}

// line reads up to the next CRLF, which the result lacks; it is never empty.
func (w *wire) line() (string, error) {
	b, err := w.r.ReadSlice('\n') // at most the buffer's 4096 bytes
	switch {
	case len(b) > 0 && b[0] == 0x15:
		return string(b), nil
	case errors.Is(err, bufio.ErrBufferFull):
		return "", fmt.Errorf("%w: a line is too long", errProtocol)
	case err != nil:
		return "", err
	case len(b) < 3 || b[len(b)-2] != '\r':
		return "", fmt.Errorf("%w: %.20q", errProtocol, b)
	}
	return string(b[:len(b)-2]), nil
}

func (w *wire) bulk(length string, left *int) (any, error) {
	n, err := strconv.Atoi(length)
	switch {
	case err == nil && n == -1:
		return nil, nil
	case err != nil || n < 0:
		return nil, fmt.Errorf("%w: string of length %.20q", errProtocol, length)
	case n > *left:
		return nil, errTooLarge
	}
	*left -= n
	b := make([]byte, n+2)
	if _, err := io.ReadFull(w.r, b); err != nil {
		return nil, err
	}
	if string(b[n:]) != "\r\n" {
		return nil, fmt.Errorf("%w: a string has no end", errProtocol)
	}
	return string(b[:n]), nil
}

func (w *wire) array(length string, depth int, left *int) (any, error) {
	n, err := strconv.Atoi(length)
	switch {
	case err == nil && n == -1:
		return nil, nil
	case err != nil || n < 0:
		return nil, fmt.Errorf("%w: array of length %.20q", errProtocol, length)
	case n > *left/valueCost:
		return nil, errTooLarge
	}
	list := make([]any, 0, min(n, 64)) // n is what the server says, not what it has sent
	for range n {
		v, err := w.value(depth-1, left)
		if err != nil {
			return nil, err
		}
		list = append(list, v)
	}
	return list, nil
}

// fields turns a flat list of names and values into a map; nil if v is none.
func fields(v any) map[string]string {
	list, ok := v.([]any)
	if !ok || len(list)%2 != 0 {
		return nil
	}
	m := make(map[string]string, len(list)/2)
	for i := 0; i < len(list); i += 2 {
		name, ok := list[i].(string)
		value, isString := list[i+1].(string)
		if ok && isString {
			m[name] = value
		}
	}
	return m
}
