package compress

import "sync/atomic"

// A Trial remembers whether it pays to compress values of one kind, which are much
// alike: trying costs as much as succeeding. The zero Trial is ready to use, by any
// number of goroutines.
type Trial struct {
	vain atomic.Uint32 // values in a row of which too little was saved; beyond maxVain also those that were not tried
}

// After maxVain values in a row that did not pay, only each tryAgain-th is tried,
// until one does.
const (
	maxVain  = 16
	tryAgain = 8
)

func (t *Trial) due() bool {
	return t.vain.Load() < maxVain || t.vain.Add(1)%tryAgain == 0
}

func (t *Trial) note(paid bool) {
	switch {
	case paid:
		t.vain.Store(0)
	case t.vain.Load() < maxVain:
		t.vain.Add(1)
	}
}

// AppendTried is [Codec.AppendEncode] for a value of the kind that t stands for:
// while compression is in vain, most values are stored as they are without a try.
func (c *Codec) AppendTried(t *Trial, dst, plain []byte) []byte {
	if !c.compresses(plain) {
		return c.AppendEncode(dst, plain)
	}
	if !t.due() {
		return appendPlain(dst, plain)
	}
	n := len(dst)
	dst = c.AppendEncode(dst, plain)
	t.note(len(dst)-n < len(plain))
	return dst
}
