package main

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/redistest"
	"github.com/redisha/redisha/redisha/redishatest"
)

func TestMain(m *testing.M) { redistest.Main(m) }

func TestTheTourShowsWhatItSays(t *testing.T) {
	for _, name := range []string{"REDIS_URL", "CACHE_DEFAULT", "REDISHA_CACHE_URL"} {
		t.Setenv(name, "")
	}
	var out strings.Builder
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	require.NoError(t, run(ctx, "", &out))
	require.Contains(t, out.String(), `{"id":1,"name":"Ada"}`)
	require.Contains(t, out.String(), `{"id":1,"name":"Grace"}`)
	require.Contains(t, out.String(), "404 no such user")
	require.Contains(t, out.String(), "3 loads of the source, 5 reads found in a request's scope\n")
}

func TestAnOldUserServesWhileTheSourceFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		clients := redishatest.New(t).Open(t)
		src := new(source)
		h := newHandler(clients.Cache, src)
		get := func() *httptest.ResponseRecorder {
			w := httptest.NewRecorder()
			h.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/users/1", nil))
			synctest.Wait()
			return w
		}
		require.Equal(t, http.StatusOK, get().Code)
		time.Sleep(2 * time.Minute) // longer than the TTL
		src.fails.Store(true)
		for range 2 {
			w := get()
			require.Equal(t, http.StatusOK, w.Code)
			require.Contains(t, w.Body.String(), "Ada")
			time.Sleep(time.Second)
		}
		require.EqualValues(t, 2, src.loads.Load())

		src.fails.Store(false)
		src.rename(1, "Grace")
		time.Sleep(31 * time.Second)
		get()
		time.Sleep(time.Second) // the refresh
		require.Contains(t, get().Body.String(), "Grace")
	})
}
