package compress

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func newCodec(t testing.TB, cfg Config) *Codec {
	t.Helper()
	c, err := New(cfg)
	require.NoError(t, err)
	return c
}

// jsonText returns size bytes of JSON as a service stores it: repeated field
// names, and values that differ.
func jsonText(size int) []byte {
	r := rand.New(rand.NewPCG(1, uint64(size)))
	b := []byte("[")
	for len(b) < size {
		b = fmt.Appendf(b, `{"id":%d,"name":"user-%06x","email":"u%d@example.com","active":%t,"score":%.3f,"tags":["t%d","t%d"]},`,
			r.IntN(1e6), r.IntN(1<<24), r.IntN(1e5), r.IntN(2) == 0, r.Float64()*100, r.IntN(50), r.IntN(50))
	}
	return b[:size]
}

// noise returns size bytes that do not compress and do not begin with 0xC1.
func noise(size int) []byte {
	r := rand.New(rand.NewPCG(2, uint64(size)))
	b := make([]byte, size)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	if size > 0 {
		b[0] = 'n'
	}
	return b
}
