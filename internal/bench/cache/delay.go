package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/redisha/redisha/internal/bench/children"
)

// An order makes a child a proxy in front of a server, which holds back all that
// clients send. (That of internal/redistest looks into what passes, and is in the
// process whose CPU time is measured.)
type order struct {
	Target string
	Delay  time.Duration
}

// startDelay starts a proxy in a process of its own, and returns its address.
func (b *bench) startDelay(ctx context.Context, target string, delay time.Duration) (addr string, err error) {
	listening := make(chan struct{})
	p, err := children.Start(order{target, delay}, func(line string) {
		addr = line // it says nothing else
		close(listening)
	})
	if err != nil {
		return "", err
	}
	b.Defer(func() error { p.Kill(); return nil })
	if err := p.Await(ctx, listening); err != nil {
		return "", err
	}
	return addr, nil
}

// obey serves until the process is killed.
func (o order) obey(say func(line string)) error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	say(l.Addr().String())
	return o.serve(l)
}

func (o order) serve(l net.Listener) error {
	for {
		client, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return err
		}
		server, err := net.Dial("tcp", o.Target)
		if err != nil {
			return errors.Join(fmt.Errorf("the server of a delayed connection: %w", err), client.Close())
		}
		go o.forward(server, client, o.Delay)
		go o.forward(client, server, 0)
	}
}

// A chunk is what one read gave.
type chunk struct {
	data *[]byte
	n    int
	due  time.Time // when to forward it
}

const chunkBytes = 64 << 10

var chunks = sync.Pool{New: func() any { b := make([]byte, chunkBytes); return &b }}

// forward passes on what comes, each read as one write, so long after it came. What
// came meanwhile waits beside it, not behind it.
func (o order) forward(to, from net.Conn, delay time.Duration) {
	defer to.Close()
	defer from.Close()
	if delay == 0 {
		buffer := make([]byte, chunkBytes)
		for {
			n, err := from.Read(buffer)
			if err != nil {
				return
			}
			if _, err := to.Write(buffer[:n]); err != nil {
				return
			}
		}
	}
	queue := make(chan chunk, 1024)
	go func() {
		defer close(queue)
		for {
			data := chunks.Get().(*[]byte) //nolint:errcheck // nothing else is in there
			n, err := from.Read(*data)
			if err != nil {
				return
			}
			queue <- chunk{data, n, time.Now().Add(delay)}
		}
	}()
	for c := range queue {
		time.Sleep(time.Until(c.due))
		if _, err := to.Write((*c.data)[:c.n]); err != nil {
			from.Close() // ends the reader
			for range queue {
			}
			return
		}
		chunks.Put(c.data)
	}
}
