package tracking

import (
	"strconv"
	"strings"
	"testing"
)

func BenchmarkState(b *testing.B) {
	l, _ := reading(b, "")
	p := l.n.t.prefixes.Load().added[0]
	b.ReportAllocs()
	for b.Loop() {
		if epoch, _ := p.State(b.Context(), "a:1"); epoch != l.n.t.Epoch() {
			b.Fatal(epoch)
		}
	}
}

// A message of 1,000 keys.
func BenchmarkInvalidation(b *testing.B) {
	keys := make([]string, 1000)
	for i := range keys {
		keys[i] = "a:" + strconv.Itoa(1_000_000+i)
	}
	message := string(appendCommand([]byte(">2\r\n+invalidate\r\n"), keys))
	l, _ := reading(b, "")
	for _, p := range l.n.t.prefixes.Load().added {
		p.invalidate = func([]string) {}
	}
	b.ReportAllocs()
	for b.Loop() {
		l.r.Reset(strings.NewReader(message))
		if err := l.frame(); err != nil {
			b.Fatal(err)
		}
	}
}
