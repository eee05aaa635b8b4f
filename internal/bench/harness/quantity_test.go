package harness

import (
	"math"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func timeNs(n int) time.Duration { return time.Duration(n) }

func TestValuesShowThreeDigitsAndTheirUnit(t *testing.T) {
	for _, test := range []struct {
		unit Unit
		v    float64
		want string
	}{
		{Duration, 0, "0"},
		{Duration, 0.5, "0.500 ns"},
		{Duration, 31.26, "31.3 ns"},
		{Duration, 999.4, "999 ns"},
		{Duration, 999.6, "1 µs"},
		{Duration, 24_512, "24.5 µs"},
		{Duration, 50e6, "50 ms"},
		{Duration, 3.456e9, "3.46 s"},
		{Duration, 4321e9, "4,321 s"},
		{Duration, -2e3, "-2 µs"},
		{Rate, 32_123.4, "32,123/s"},
		{Rate, 1_234_567, "1,234,567/s"},
		{Count, 7, "7"},
		{Count, 7.004, "7"},
		{Count, 0.0004, "0.0004"},
		{Count, 9.996, "10"},
		{Bytes, 880, "880 B"},
		{Bytes, math.NaN(), "–"},
		{Rate, math.Inf(1), "–"},
	} {
		require.Equal(t, test.want, test.unit.format(test.v), "%v %v", test.unit, test.v)
	}
}
