// Package harness runs side-by-side benchmarks on real servers. Each topic is a
// command of this module, go run ./<topic>, that prints one table.
//
// What all topics share:
//
//   - They start their own servers, on free ports of 127.0.0.1, and end them: also
//     on failure, on SIGINT and on SIGTERM. A second signal kills the program.
//   - The contenders take turns in many rounds, five at least. A ratio is made
//     within each round and reported as the median of all, with the bounds between
//     which it lies with a probability of 95 %: what slows the machine down for a
//     while slows down both sides.
//   - The table goes to standard output as Markdown, with the machine, the
//     versions, the command and all sides' settings; progress to standard error.
//   - -quick is a smoke run: a tenth of the rounds, 50 s at most. It prints verdicts
//     and does not fail because of them, since a short run on a busy machine
//     proves nothing. -only, -contender, -rounds and -cpuprofile help to look into
//     one row: the profile is labelled, as in go tool pprof -tagfocus=contender=cache.
//   - The exit code is 0 if all targets were met, 1 if one was missed, 2 if the run
//     itself failed; then the rows that were complete are printed all the same.
package harness

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"regexp"
	"runtime"
	"runtime/pprof"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redisha/redisha/internal/redistest"
)

// The exit codes.
const (
	exitMet    = 0
	exitMissed = 1
	exitFailed = 2
)

// quickLimit is how long a quick run may take.
const quickLimit = 50 * time.Second

// A Topic is a set of comparisons that one command runs.
type Topic struct {
	Name   string // of the command's directory: "overhead"
	About  string // what it shows, as a heading
	Beside []Quantity

	// Peers are modules whose versions the report names beside go-redis'.
	Peers []string

	// QuickLimit is how long a quick run may take. Defaults to 50s.
	QuickLimit time.Duration

	// Flags adds flags of the topic's own. Optional.
	Flags func(*flag.FlagSet)

	// Run starts the servers and compares.
	Run func(ctx context.Context, s *Suite) error
}

// Main runs a topic as a program, and exits.
func Main(t Topic) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // the next signal kills
	code := Run(ctx, t, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// A Suite is one run of a topic. It is not safe for concurrent use.
type Suite struct {
	// Quick is set in a smoke run, for topics that then leave out what takes
	// long whatever the rounds.
	Quick bool

	only    *regexp.Regexp
	who     *regexp.Regexp
	rounds  int // instead of the comparisons' own; 0: those
	report  report
	cleanup []func() error

	stderr io.Writer
	told   time.Time // when progress was shown last
}

// Run is [Main] without the process around it, for the tests of topics: it
// returns the exit code.
func Run(ctx context.Context, t Topic, args []string, stdout, stderr io.Writer) (code int) {
	s, profile, err := parse(t, args, stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return exitMet
	case err != nil:
		return exitFailed // parse has printed it
	}
	if s.Quick {
		limit := cmp.Or(t.QuickLimit, quickLimit)
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, limit, fmt.Errorf("a quick run takes at most %s: give it less to do", limit))
		defer cancel()
	}
	err = profiled(profile, func() error { return s.run(ctx) })
	s.report.failure = err
	if _, printErr := io.WriteString(stdout, s.report.String()); printErr != nil {
		err = errors.Join(err, printErr)
	}
	switch {
	case err != nil:
		fmt.Fprintf(stderr, "%s: %v\n", t.Name, err)
		return exitFailed
	case s.report.missed() > 0 && !s.report.quick:
		return exitMissed
	}
	return exitMet
}

func parse(t Topic, args []string, stderr io.Writer) (s *Suite, profile string, err error) {
	s = &Suite{stderr: stderr}
	flags := flag.NewFlagSet(t.Name, flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.BoolVar(&s.Quick, "quick", false, fmt.Sprintf("smoke run of at most %s; missed targets do not fail it", cmp.Or(t.QuickLimit, quickLimit)))
	flags.Func("only", "run only the work that matches this regular `expression`", func(v string) error {
		s.only, err = regexp.Compile(v)
		return err
	})
	flags.Func("contender", "run only the contenders that match this regular `expression`", func(v string) error {
		s.who, err = regexp.Compile(v)
		return err
	})
	flags.IntVar(&s.rounds, "rounds", 0, fmt.Sprintf("take this `number` of rounds for all work; below %d, missed targets do not fail the run", minRounds))
	flags.StringVar(&profile, "cpuprofile", "", "write a CPU profile to this `file`, labelled with work and contender")
	if t.Flags != nil {
		t.Flags(flags)
	}
	if err := flags.Parse(args); err != nil {
		return nil, "", err
	}
	if flags.NArg() > 0 {
		err := fmt.Errorf("%s takes flags alone, got %q", t.Name, flags.Args())
		fmt.Fprintln(stderr, err)
		return nil, "", err
	}
	s.report = report{
		topic:    t,
		command:  strings.Join(append([]string{"go run ./" + t.Name}, args...), " "),
		machine:  machine(),
		versions: []string{runtime.Version(), "go-redis " + moduleVersion("github.com/redis/go-redis/v9")},
		began:    time.Now(),
		quick:    s.Quick || s.rounds > 0 && s.rounds < minRounds || s.who != nil,
	}
	for _, peer := range t.Peers {
		s.report.versions = append(s.report.versions, peer+" "+moduleVersion(peer))
	}
	return s, profile, nil
}

// run runs the topic, and then what Defer was given.
func (s *Suite) run(ctx context.Context) (err error) {
	defer func() {
		for _, f := range slices.Backward(s.cleanup) {
			err = errors.Join(err, f())
		}
	}()
	if err := s.report.topic.Run(ctx, s); err != nil {
		return err
	}
	if len(s.report.rows) == 0 && s.only != nil {
		return fmt.Errorf("-only %s matches no work", s.only)
	}
	return nil
}

// Defer has f called when the run ends, however it does; the last one first.
func (s *Suite) Defer(f func() error) { s.cleanup = append(s.cleanup, f) }

// Server starts a server, which is stopped when the run ends, and names its
// version in the report.
func (s *Suite) Server(ctx context.Context, cfg redistest.Config) (*redistest.Server, error) {
	server, err := redistest.Start(ctx, cfg)
	if err != nil {
		return nil, err
	}
	s.Defer(server.Stop)
	s.Uses(server)
	return server, nil
}

// Monitored is Server with a client of it that no contender uses, and that is
// closed when the run ends.
func (s *Suite) Monitored(ctx context.Context, cfg redistest.Config) (*redistest.Server, *redis.Client, error) {
	server, err := s.Server(ctx, cfg)
	if err != nil {
		return nil, nil, err
	}
	monitor := redis.NewClient(server.Options())
	s.Defer(monitor.Close)
	return server, monitor, nil
}

// Uses names the version of a server in the report.
func (s *Suite) Uses(server *redistest.Server) {
	if v := "Redis " + server.Version(); !slices.Contains(s.report.versions, v) {
		s.report.versions = append(s.report.versions, v)
	}
}

// Slice is how long a turn takes: in a quick run, which has one, a quarter of the
// full time.
func (s *Suite) Slice(full time.Duration) time.Duration {
	if s.Quick {
		return full / 4
	}
	return full
}

// Count is how much there is to do: in a quick run a tenth of the full number.
func (s *Suite) Count(full int) int {
	if s.Quick {
		return full / 10
	}
	return full
}

// InTurn calls the parts of a topic one after the other, until one fails.
func InTurn(ctx context.Context, parts ...func(context.Context) error) error {
	for _, part := range parts {
		if err := part(ctx); err != nil {
			return err
		}
	}
	return nil
}

// Wants reports whether the flag -only leaves any of these works, so that a topic
// need not set up what nobody uses.
func (s *Suite) Wants(works ...string) bool {
	return s.only == nil || slices.ContainsFunc(works, s.only.MatchString)
}

// Note prints a line to standard error, for who looks into a run.
func (s *Suite) Note(format string, args ...any) {
	fmt.Fprintf(s.stderr, "%s: %s\n", s.report.topic.Name, fmt.Sprintf(format, args...))
}

// Setting adds a line to the report: how a side was set up, or what else a
// reader must know.
func (s *Suite) Setting(format string, args ...any) {
	s.report.settings = append(s.report.settings, fmt.Sprintf(format, args...))
}

// progress shows how far the run is, at most every five seconds.
func (s *Suite) progress(format string, args ...any) {
	if time.Since(s.told) < 5*time.Second {
		return
	}
	s.told = time.Now()
	fmt.Fprintf(s.stderr, "%s: %s\n", s.report.topic.Name, fmt.Sprintf(format, args...))
}

// profiled calls f, and writes a CPU profile of it unless path is empty.
func profiled(path string, f func() error) (err error) {
	if path == "" {
		return f()
	}
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	if err := pprof.StartCPUProfile(file); err != nil {
		return err
	}
	defer pprof.StopCPUProfile()
	return f()
}
