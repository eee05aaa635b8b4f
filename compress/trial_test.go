package compress

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestATrialGivesUpOnWhatDoesNotShrinkAndComesBack(t *testing.T) {
	c, err := New(Config{})
	require.NoError(t, err)
	var kind Trial
	text := bytes.Repeat([]byte("shrinks "), 100)
	smaller := func(plain []byte) bool {
		stored := c.AppendTried(&kind, []byte("before"), plain)
		require.Equal(t, "before", string(stored[:6]))
		back, err := c.Decode(stored[6:])
		require.NoError(t, err)
		require.Equal(t, plain, back)
		return len(stored)-6 < len(plain)
	}
	for range maxVain - 1 {
		require.False(t, smaller(noise(800)))
	}
	require.True(t, smaller(text), "not given up yet")
	for range maxVain {
		require.False(t, smaller(noise(800)))
	}
	tries := 0
	for !smaller(text) {
		tries++
	}
	require.Less(t, tries, tryAgain)
	require.Positive(t, tries, "it had been given up")
	for range 2 * tryAgain {
		require.True(t, smaller(text), "one that pays ends it")
	}
}

func TestATrialLeavesOutWhatIsTooShortAndEscapesMarks(t *testing.T) {
	c, err := New(Config{})
	require.NoError(t, err)
	var kind Trial
	for range 5 * maxVain {
		require.Len(t, c.AppendTried(&kind, nil, []byte("short")), 5)
	}
	require.Zero(t, kind.vain.Load())
	marked := append([]byte{mark}, noise(800)...)
	for range 5 * maxVain { // tried or not
		back, err := c.Decode(c.AppendTried(&kind, nil, marked))
		require.NoError(t, err)
		require.Equal(t, marked, back)
	}
}
