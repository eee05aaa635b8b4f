package result

import (
	"testing"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/redistest"
)

func TestForgettingAndStoringSaysThatThePasswordIsWrong(t *testing.T) {
	srv := redistest.New(t, redistest.Config{Password: "right"})
	opt := srv.Options()
	opt.Password = "wrong"
	rdb := redis.NewClient(opt)
	defer rdb.Close()
	c, err := New(rdb, Config{})
	require.NoError(t, err)
	defer func() { require.NoError(t, c.Close()) }()
	require.ErrorContains(t, c.Forget(t.Context(), "x"), "WRONGPASS")
	_, err = c.StoreMany(t.Context(), []Record{{ID: "x", State: Success, Attempt: 1}})
	require.ErrorContains(t, err, "WRONGPASS")
}

type nilError struct{ text string }

func (e *nilError) Error() string { return e.text }
func (e *nilError) Unwrap() error { return e }

// The classic mistake: a nil pointer returned as an error.
func TestTheCauseOfANilPointerIsDescribed(t *testing.T) {
	var none *nilError
	cause := CauseOf(none)
	require.Equal(t, "*result.nilError", cause.Type)
	require.NotEmpty(t, cause.Message)
}
