package testserver

import (
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func TestPipeCarriesBytesInOrder(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		chunks := rapid.SliceOf(rapid.SliceOf(rapid.Byte())).Draw(rt, "chunks")
		sizes := rapid.SliceOfN(rapid.IntRange(1, 64), 1, 10).Draw(rt, "sizes")
		client, server := newPipe()
		var want []byte
		for _, chunk := range chunks {
			want = append(want, chunk...)
		}
		var writing sync.WaitGroup
		writing.Go(func() {
			for _, chunk := range chunks {
				_, _ = client.Write(chunk) // a failure shows in what arrives
			}
			_ = client.Close()
		})
		var got []byte
		for i := 0; ; i++ {
			p := make([]byte, sizes[i%len(sizes)])
			n, err := server.Read(p)
			got = append(got, p[:n]...)
			if err != nil {
				require.ErrorIs(rt, err, io.EOF)
				break
			}
		}
		writing.Wait()
		require.Equal(rt, want, got)
	})
}

func TestPipeDeadlines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, server := newPipe()
		defer func() { _ = client.Close() }()
		p := make([]byte, 8)

		start := time.Now()
		require.NoError(t, client.SetReadDeadline(start.Add(time.Minute)))
		_, err := client.Read(p)
		require.ErrorIs(t, err, os.ErrDeadlineExceeded)
		require.Equal(t, time.Minute, time.Since(start))
		var timeout net.Error
		require.ErrorAs(t, err, &timeout)
		require.True(t, timeout.Timeout())

		// A new deadline takes effect on a read under way.
		require.NoError(t, client.SetReadDeadline(time.Time{}))
		time.AfterFunc(time.Second, func() { _ = client.SetDeadline(time.Now()) })
		_, err = client.Read(p)
		require.ErrorIs(t, err, os.ErrDeadlineExceeded)
		_, err = client.Write(p)
		require.ErrorIs(t, err, os.ErrDeadlineExceeded)

		require.NoError(t, client.SetDeadline(time.Time{}))
		require.NoError(t, client.SetWriteDeadline(time.Now().Add(time.Second)))
		_, err = client.Write([]byte("late?"))
		require.NoError(t, err)
		n, err := server.Read(p)
		require.NoError(t, err)
		require.Equal(t, "late?", string(p[:n]))
	})
}

func TestPipeCloseEndsBothSides(t *testing.T) {
	client, server := newPipe()
	require.Equal(t, "pipe", client.RemoteAddr().Network())
	require.Equal(t, client.LocalAddr().String(), server.RemoteAddr().String())
	var reading sync.WaitGroup
	var err error
	reading.Go(func() { _, err = client.Read(make([]byte, 1)) })
	require.NoError(t, client.Close())
	reading.Wait()
	require.ErrorIs(t, err, net.ErrClosed)
	_, err = client.Write([]byte("x"))
	require.ErrorIs(t, err, net.ErrClosed)
	_, err = server.Write([]byte("x"))
	require.ErrorIs(t, err, syscall.EPIPE)
	require.EqualError(t, err, "write pipe pipe->pipe: broken pipe") // as a socket's, with its own names
	_, err = server.Read(make([]byte, 1))
	require.Equal(t, io.EOF, err)
	require.NoError(t, client.SetReadDeadline(time.Now().Add(time.Hour))) // leaves no timer
	require.NoError(t, client.Close())
}
