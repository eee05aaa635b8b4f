//go:build unix

package lock

import (
	"os"
	"testing"
	"time"
)

// TestAHundredThousandLeasesUnderFaults runs by hand, for some ten minutes.
func TestAHundredThousandLeasesUnderFaults(t *testing.T) {
	if os.Getenv("REDISHA_TEST_SOAK") != "1" {
		t.Skip("REDISHA_TEST_SOAK=1 runs it")
	}
	for name, keeps := range map[string]bool{"the server keeps its data": keepsData, "the server loses its data": losesData} {
		t.Run(name, func(t *testing.T) {
			newScene(t, keeps).run(60_000, time.Minute)
		})
	}
}
