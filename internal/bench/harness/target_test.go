package harness

import (
	"math"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestLimitsJudgeTheFigureTheyName(t *testing.T) {
	nan := math.NaN()
	values := []float64{50e6, nan, 40e6, 300e6}
	pairs := []float64{1.2, 1.04, 1.05}
	for _, test := range []struct {
		limit  Limit
		figure float64
		met    bool
		shown  string
	}{
		{AtMost(1.05, Ratio), 1.05, true, "≤ 1.05 ×"},
		{AtMost(1.04, Ratio), 1.05, false, "≤ 1.04 ×"},
		{AtLeast(1.05, Ratio), 1.05, true, "≥ 1.05 ×"},
		{AtLeast(8, Ratio), 1.05, false, "≥ 8 ×"},
		{AtMost(float64(50*time.Millisecond), Median), 50e6, true, "≤ 50 ms"},
		{AtMost(49e6, Median), 50e6, false, "≤ 49 ms"},
		{AtMost(200e6, Worst), 300e6, false, "worst ≤ 200 ms"},
		{AtLeast(40e6, Worst), 40e6, true, "worst ≥ 40 ms"},
		{AtLeast(41e6, Worst), 40e6, false, "worst ≥ 41 ms"},
	} {
		figure := test.limit.figure(values, pairs)
		require.Equal(t, test.figure, figure, test.shown)
		require.Equal(t, test.met, test.limit.met(figure), test.shown)
		require.Equal(t, test.shown, test.limit.format(Duration))
	}
}

func TestLimitsAreMissedWhereNothingWasMeasured(t *testing.T) {
	nothing := []float64{math.NaN()}
	for _, of := range []Of{Ratio, Median, Worst} {
		require.False(t, AtMost(1, of).met(AtMost(1, of).figure(nothing, nil)))
		require.False(t, AtLeast(0, of).met(AtLeast(0, of).figure(nothing, nil)))
	}
}
