package broker

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/robfig/cron/v3"
)

// A schedule tells the ticks of a cron expression in a time zone.
//
// The expression is read by robfig/cron, and evaluated on the clock on the wall,
// without a zone; what a zone makes of it is decided here, as cron has it
// (https://manpages.debian.org/cron.8: "special considerations for DST"). With
// all hours an expression goes by the time that passes. With fixed hours each of
// its times comes once a day: in the first of two equal hours, and where the hour
// is left out, at the moment when the clock is set forward.
type schedule struct {
	wall  cron.Schedule // as if the clock on the wall showed UTC
	every time.Duration // instead of wall: the multiples of it since 1970
	all   bool          // all hours
	zone  *time.Location
}

const (
	minEvery = time.Second
	allHours = 1<<24 - 1
)

func parseSchedule(expression string, zone *time.Location) (schedule, error) {
	s := schedule{zone: zone}
	bad := func(err error) (schedule, error) {
		return s, fmt.Errorf("the schedule is %.100q, want a cron expression such as \"30 9 * * MON-FRI\", @hourly, @daily, @weekly, @monthly, @yearly, or @every 90s: %w", expression, err)
	}
	expression = strings.TrimSpace(expression)
	if rest, ok := strings.CutPrefix(expression, "@every "); ok {
		every, err := time.ParseDuration(strings.TrimSpace(rest))
		if err == nil && (every < minEvery || every%time.Second != 0) {
			err = fmt.Errorf("%s is not a whole number of seconds", every)
		}
		if err != nil {
			return bad(err)
		}
		s.every = every
		return s, nil
	}
	if strings.Contains(expression, "TZ=") {
		return bad(errors.New("the time zone is SchedulerConfig.Location"))
	}
	parsed, err := cron.ParseStandard(expression)
	if err != nil {
		return bad(err)
	}
	fields, ok := parsed.(*cron.SpecSchedule)
	if !ok {
		return bad(fmt.Errorf("a %T", parsed))
	}
	fields.Location = time.UTC
	s.wall, s.all = fields, fields.Hour&allHours == allHours
	if s.wall.Next(time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)).IsZero() {
		return bad(errors.New("there is no such day"))
	}
	return s, nil
}

// next returns the first tick after t; zero if there is none in the next five years.
func (s schedule) next(t time.Time) time.Time {
	switch {
	case s.every > 0:
		every := int64(s.every / time.Second)
		return time.Unix((floorDiv(t.Unix(), every)+1)*every, 0)
	case s.all:
		return s.passing(t)
	}
	for wall := s.wallClock(t); ; {
		if wall = s.wall.Next(wall); wall.IsZero() {
			return time.Time{}
		}
		if tick := s.instant(wall); tick.After(t) {
			return tick
		}
	}
}

func floorDiv(a, b int64) int64 {
	if a < 0 && a%b != 0 {
		return a/b - 1
	}
	return a / b
}

// offset is what the zone adds to UTC at t.
func (s schedule) offset(t time.Time) time.Duration {
	_, seconds := t.In(s.zone).Zone()
	return time.Duration(seconds) * time.Second
}

// wallClock is what the clock shows at t, as a time in UTC.
func (s schedule) wallClock(t time.Time) time.Time { return t.UTC().Add(s.offset(t)) }

// passing is next for an expression with all hours: both of two equal hours count.
func (s schedule) passing(t time.Time) time.Time {
	for from := s.wallClock(t); ; {
		offset := s.offset(t)
		wall := s.wall.Next(from)
		if wall.IsZero() {
			return time.Time{}
		}
		tick := wall.Add(-offset)
		change := s.change(t, tick)
		if tick.Before(change) {
			return tick
		}
		// The clock is set before that: on from there, by the new offset.
		t = change
		from = s.wallClock(change).Add(-time.Second)
	}
}

// change is the first instant behind from with another offset than from; behind
// to, if there is none until then.
func (s schedule) change(from, to time.Time) time.Time {
	offset := s.offset(from)
	const step = 24 * time.Hour // a zone changes less often
	for from.Before(to) {
		end := from.Add(min(step, to.Sub(from)))
		if s.offset(end) != offset {
			return s.first(from, end, func(t time.Time) bool { return s.offset(t) != offset })
		}
		from = end
	}
	return to.Add(time.Second)
}

// first returns the first second in (from, to] for which is is true, from which on
// it stays true.
func (s schedule) first(from, to time.Time, is func(time.Time) bool) time.Time {
	low, high := from.Unix(), to.Unix()
	for high-low > 1 {
		middle := low + (high-low)/2
		if is(time.Unix(middle, 0)) {
			high = middle
		} else {
			low = middle
		}
	}
	return time.Unix(high, 0)
}

// instant is the first one at which the clock shows wall, or more where it never
// shows that.
func (s schedule) instant(wall time.Time) time.Time {
	const around = 26 * time.Hour // further than any offset, and a day left out
	var earliest time.Time
	for _, near := range []time.Time{wall.Add(-around), wall.Add(around)} {
		t := wall.Add(-s.offset(near))
		if s.wallClock(t).Equal(wall) && (earliest.IsZero() || t.Before(earliest)) {
			earliest = t
		}
	}
	if !earliest.IsZero() {
		return earliest
	}
	return s.first(wall.Add(-around), wall.Add(around), func(t time.Time) bool { return !s.wallClock(t).Before(wall) })
}
