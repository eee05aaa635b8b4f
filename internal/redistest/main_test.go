package redistest_test

import (
	"context"
	"fmt"
	"os"
	"testing"

	"github.com/redisha/redisha/internal/redistest"
)

// childVariable makes the test binary start a server, tell where it is, and end
// in the way that the variable names.
const childVariable = "REDISTEST_CHILD"

func TestMain(m *testing.M) {
	if how := os.Getenv(childVariable); how != "" {
		child(how)
		return
	}
	redistest.Main(m)
}

func child(how string) {
	s, err := redistest.Start(context.Background(), redistest.Config{})
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	if how == "paused" {
		_ = s.Pause()
	}
	fmt.Println(s.Addr())
	_, _ = os.Stdin.Read(make([]byte, 1)) // until the parent says so
	if how == "panic" {
		panic("as a test may")
	}
	select {} // until killed
}
