package broker

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/robfig/cron/v3"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func zone(t testing.TB, name string) *time.Location {
	t.Helper()
	l, err := time.LoadLocation(name)
	if os.Getenv("REDISHA_TEST_REQUIRE") == "1" {
		require.NoError(t, err)
	} else if err != nil {
		t.Skipf("no time zones here: %v", err)
	}
	return l
}

func ticks(t testing.TB, expression string, l *time.Location, from time.Time, n int) (got []string) {
	t.Helper()
	s, err := parseSchedule(expression, l)
	require.NoError(t, err)
	for range n {
		from = s.next(from)
		got = append(got, from.In(l).Format("02T15:04MST"))
	}
	return got
}

func TestTicksAcrossDaylightSaving(t *testing.T) {
	newYork := zone(t, "America/New_York")
	spring, autumn := time.Date(2026, 3, 7, 23, 50, 0, 0, newYork), time.Date(2026, 10, 31, 23, 50, 0, 0, newYork)
	for _, test := range []struct {
		expression string
		from       time.Time
		want       string
	}{
		{"30 2 * * *", spring, "08T03:00EDT 09T02:30EDT 10T02:30EDT"}, // 2:30 is left out
		{"*/20 2 * * *", spring, "08T03:00EDT 09T02:00EDT 09T02:20EDT"},
		{"0 2,3 * * *", spring, "08T03:00EDT 09T02:00EDT 09T03:00EDT"},
		{"30 1 * * *", autumn, "01T01:30EDT 02T01:30EST 03T01:30EST"}, // 1:30 comes twice
		{"0 1-3 * * *", autumn, "01T01:00EDT 01T02:00EST 01T03:00EST"},
		{"30 * * * *", spring, "08T00:30EST 08T01:30EST 08T03:30EDT"},
		{"30 * * * *", autumn, "01T00:30EDT 01T01:30EDT 01T01:30EST"}, // an hour apart, all of them
		{"30 */1 * * *", autumn, "01T00:30EDT 01T01:30EDT 01T01:30EST"},
		{"@daily", autumn, "01T00:00EDT 02T00:00EST 03T00:00EST"},
		{"@every 20m", autumn, "01T00:00EDT 01T00:20EDT 01T00:40EDT"},
	} {
		require.Equal(t, strings.Fields(test.want), ticks(t, test.expression, newYork, test.from, 3), test.expression)
	}
	// A day that begins at one, half an hour, and a day that was left out.
	require.Equal(t, []string{"03T00:00-03", "04T01:00-02", "05T00:00-02"}, ticks(t, "0 0 * * *", zone(t, "America/Sao_Paulo"), time.Date(2018, 11, 2, 12, 0, 0, 0, time.UTC), 3))
	require.Equal(t, []string{"05T01:45+11", "06T01:45+1030", "07T01:45+1030"}, ticks(t, "45 1 * * *", zone(t, "Australia/Lord_Howe"), time.Date(2026, 4, 4, 12, 0, 0, 0, time.UTC), 3))
	require.Equal(t, []string{"29T12:00-10", "31T00:00+14", "31T12:00+14"}, ticks(t, "0 12 * * *", zone(t, "Pacific/Apia"), time.Date(2011, 12, 29, 12, 0, 0, 0, time.UTC), 3))
}

// Each time that an expression with fixed hours names comes once, and at the first
// instant at which the clock shows it or is beyond; one with all hours comes
// whenever the clock shows it.
func TestTicksAreWhatTheClockOnTheWallShows(t *testing.T) {
	type window struct {
		zone string
		at   time.Time
	}
	windows := []window{
		{"UTC", time.Date(2026, 2, 28, 12, 0, 0, 0, time.UTC)},
		{"America/New_York", time.Date(2026, 3, 8, 7, 0, 0, 0, time.UTC)},
		{"America/New_York", time.Date(2026, 11, 1, 6, 0, 0, 0, time.UTC)},
		{"Europe/Berlin", time.Date(2026, 3, 29, 1, 0, 0, 0, time.UTC)},
		{"Europe/Berlin", time.Date(2026, 10, 25, 1, 0, 0, 0, time.UTC)},
		{"America/Sao_Paulo", time.Date(2018, 11, 4, 3, 0, 0, 0, time.UTC)},
		{"Australia/Lord_Howe", time.Date(2026, 4, 4, 15, 0, 0, 0, time.UTC)},
		{"Australia/Lord_Howe", time.Date(2026, 10, 3, 15, 30, 0, 0, time.UTC)},
		{"Asia/Kolkata", time.Date(2026, 6, 1, 0, 0, 0, 0, time.UTC)},
		{"Pacific/Apia", time.Date(2011, 12, 30, 10, 0, 0, 0, time.UTC)},
	}
	zone(t, "Pacific/Apia")
	rapid.Check(t, func(t *rapid.T) {
		w := rapid.SampledFrom(windows).Draw(t, "window")
		l, err := time.LoadLocation(w.zone)
		require.NoError(t, err)
		minute := rapid.SampledFrom([]string{"0", "30", "15,45", "*/10", "59", "*"}).Draw(t, "minute")
		hour := rapid.SampledFrom([]string{"*", "*/1", "0", "1", "2", "3", "0-3", "1,2", "*/2", "23", "0-22"}).Draw(t, "hour")
		day := rapid.SampledFrom([]string{"* * *", "1 * *", "* * SUN", "8 3 SUN", "* 3,10,11,12,4 *"}).Draw(t, "day")
		expression := fmt.Sprint(minute, " ", hour, " ", day)
		s, err := parseSchedule(expression, l)
		require.NoError(t, err)
		from, to := w.at.Add(-30*time.Hour), w.at.Add(40*time.Hour)

		// By trying each minute.
		parsed, err := cron.ParseStandard(expression)
		require.NoError(t, err)
		spec := parsed.(*cron.SpecSchedule)
		spec.Location = time.UTC
		matches := func(wall time.Time) bool { return spec.Next(wall.Add(-time.Second)).Equal(wall) }
		all := hour == "*" || hour == "*/1"
		var want []time.Time
		shown := s.wallClock(from) // the latest that the clock has shown
		for at := from.Add(time.Minute); !at.After(to); at = at.Add(time.Minute) {
			wall := s.wallClock(at)
			hit := all && matches(wall)
			if !all {
				for ; shown.Before(wall); shown = shown.Add(time.Minute) {
					hit = hit || matches(shown.Add(time.Minute))
				}
			}
			if hit {
				want = append(want, at)
			}
		}
		var got []time.Time
		for at := s.next(from); !at.IsZero() && !at.After(to); at = s.next(at) {
			got = append(got, at.UTC())
		}
		require.Equal(t, want, got, "%s in %s", expression, w.zone)
		// From anywhere, the next is the next.
		at := from.Add(time.Duration(rapid.IntRange(0, int(to.Sub(from)/time.Second)).Draw(t, "at")) * time.Second)
		next := s.next(at)
		for _, tick := range want {
			if tick.After(at) {
				require.True(t, tick.Equal(next), "after %s", at)
				break
			}
		}
	})
}

func TestIntervalsAreMultiplesSince1970(t *testing.T) {
	s, err := parseSchedule(" @every 90s ", time.UTC)
	require.NoError(t, err)
	at := time.Date(2026, 1, 1, 0, 0, 0, 1, time.UTC)
	next := s.next(at)
	require.Zero(t, next.Unix()%90)
	require.Less(t, next.Sub(at), 90*time.Second)
	require.Equal(t, 90*time.Second, s.next(next).Sub(next))
	require.Equal(t, int64(0), s.next(time.Unix(-1, 0)).Unix())
	require.Equal(t, int64(-90), s.next(time.Unix(-91, 0)).Unix())
}

func TestWrongExpressionsAreRefused(t *testing.T) {
	for expression, want := range map[string]string{
		"":                              "empty spec string",
		"* * * *":                       "expected exactly 5 fields, found 4",
		"60 * * * *":                    "above maximum (59)",
		"0 0 31 2 *":                    "there is no such day",
		"@every 1500ms":                 "1.5s is not a whole number of seconds",
		"@every 0s":                     "0s is not a whole number of seconds",
		"@every soon":                   "invalid duration",
		"TZ=0":                          "the time zone is SchedulerConfig.Location",
		"CRON_TZ=Asia/Tokyo 30 * * * *": "the time zone is SchedulerConfig.Location",
		"@noon":                         "unrecognized descriptor",
	} {
		_, err := parseSchedule(expression, time.UTC)
		require.ErrorContains(t, err, want, expression)
		require.ErrorContains(t, err, "want a cron expression such as")
	}
}

func FuzzSchedule(f *testing.F) {
	for _, s := range []string{"* * * * *", "@daily", "@every 1h", "0 0 29 2 *", "*/7 1-5 1,15 JAN-JUN MON", "TZ=UTC * * * * *"} {
		f.Add(s)
	}
	at := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	f.Fuzz(func(t *testing.T, expression string) {
		s, err := parseSchedule(expression, time.UTC)
		if err == nil {
			if next := s.next(at); !next.IsZero() {
				require.True(t, next.After(at))
			}
		}
	})
}
