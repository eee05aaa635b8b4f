package resolve

import (
	"cmp"
	"context"
	"log/slog"
	"slices"
	"time"
)

// NewSentinel begins to watch Sentinels and returns at once.
func NewSentinel(cfg SentinelConfig) (Resolver, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	cfg.Logger = cmp.Or(cfg.Logger, slog.Default())
	b, ctx := newBoard()
	s := &sentinels{
		board:    b,
		cfg:      cfg,
		started:  time.Now(),
		reports:  make(chan sentinelReport),
		heard:    make(chan event),
		watchers: make([]*watcher, 0, len(cfg.Addrs)),
	}
	for _, addr := range cfg.Addrs {
		if !slices.ContainsFunc(s.watchers, func(w *watcher) bool { return w.addr == addr }) {
			s.watch(ctx, &watcher{addr: addr, configured: true})
		}
	}
	s.configured = len(s.watchers)
	s.publish(State{}, s.reason())
	s.tally()
	s.running.Go(func() { s.run(ctx) })
	return s, nil
}

// sentinels is a [Resolver]. All fields below the board belong to its run.
type sentinels struct {
	*board
	cfg        SentinelConfig
	started    time.Time
	configured int
	reports    chan sentinelReport
	heard      chan event

	watchers []*watcher // configured ones first
	pace     pace
	verdict  verdict
	lost     bool // no Sentinel gives a usable answer
	warned   bool // of the disagreement
	badMap   bool // warned of MapAddr
	overdue  bool // fallbackAfter is over, or all configured Sentinels have failed
}

// A watcher is one Sentinel.
type watcher struct {
	addr       string
	configured bool
	cancel     context.CancelFunc
	probe      *probe[sentinelAnswer]

	nudged time.Time       // when it was last asked
	asked  bool            // it has answered, or failed to
	answer *sentinelAnswer // the last one; nil if it failed
	err    error

	id     string    // its run ID, once known
	lists  bool      // it has told of other Sentinels
	others []peer    // whom it listed last
	listed time.Time // when another one last listed it, or could not say
}

// A sentinelReport is what became of a question to a Sentinel.
type sentinelReport struct {
	from   *watcher
	answer sentinelAnswer
	err    error
}

// watch starts what belongs to one Sentinel: who asks it, and who listens.
func (s *sentinels) watch(parent context.Context, w *watcher) {
	ctx, cancel := context.WithCancel(parent)
	w.cancel, w.listed = cancel, time.Now()
	a := &access{s.cfg.Dial, s.cfg.Username, s.cfg.Password, s.cfg.Credentials, s.cfg.Name}
	q := &inquiry{master: s.cfg.MasterName, replicas: s.cfg.Replicas, mapAddr: s.cfg.MapAddr}
	w.probe = &probe[sentinelAnswer]{addr: w.addr, access: a, wake: make(chan struct{}, 1), question: q.ask}
	s.running.Go(func() {
		w.probe.run(ctx, func(answer sentinelAnswer, err error) {
			select {
			case s.reports <- sentinelReport{w, answer, err}:
			case <-ctx.Done():
			}
		})
	})
	l := &listener{addr: w.addr, access: a, master: s.cfg.MasterName}
	s.running.Go(func() {
		l.run(ctx, func(e event) {
			select {
			case s.heard <- e:
			case <-ctx.Done():
			}
		})
	})
	s.watchers = append(s.watchers, w)
}

// run decides until ctx is done.
func (s *sentinels) run(ctx context.Context) {
	for timer := (*time.Timer)(nil); ; {
		now := time.Now()
		if s.pace.take(now) {
			for _, w := range s.watchers {
				s.nudge(w, now)
			}
		}
		s.decide(now)
		timer = rearmed(timer, s.due(now))
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		case <-s.wanted:
			s.pace.pressed = true
		case e := <-s.heard:
			s.pace.pressed = true // an announcement is not itself the truth
			if e == switched {
				s.count(func(st *Stats) { st.Announcements++ })
			}
		case r := <-s.reports:
			s.take(ctx, r)
		}
	}
}

// rearmed returns a timer that fires when due, but never at once: two of those in a
// bubble of synctest crash the race detector of Go 1.26 (timer.maybeRunChan).
func rearmed(t *time.Timer, due time.Time) *time.Timer {
	wait := max(time.Until(due), 1)
	if t == nil {
		return time.NewTimer(wait)
	}
	t.Reset(wait)
	return t
}

// nudge lets a Sentinel be asked. One that refuses access is asked once a second
// at most, however often Refresh is called: some lock out who tries too often.
func (s *sentinels) nudge(w *watcher, now time.Time) {
	if accessRefused(w.err) && now.Sub(w.nudged) < pollEvery {
		return
	}
	w.nudged = now
	w.probe.nudge()
}

// due returns when something is to be done though nothing happens.
func (s *sentinels) due(now time.Time) time.Time {
	due := s.pace.due()
	earlier := func(t time.Time) {
		if t.After(now) && t.Before(due) {
			due = t
		}
	}
	earlier(s.verdict.due)
	if s.State().Epoch == 0 {
		earlier(s.started.Add(hold))
		earlier(s.started.Add(fallbackAfter))
	}
	return due
}

func (s *sentinels) take(ctx context.Context, r sentinelReport) {
	if ctx.Err() != nil || !slices.Contains(s.watchers, r.from) {
		return // forgotten meanwhile
	}
	w := r.from
	s.polled(r.err)
	w.asked, w.err, w.answer = true, r.err, nil
	if r.err == nil {
		w.answer = &r.answer
	}
	s.noticeBadMap(r.answer.badMap)
	if r.answer.discovered {
		s.discover(w)
	}
	s.admit(ctx)
}

// decide makes up the mind and tells it.
func (s *sentinels) decide(now time.Time) {
	answered, failed := s.first()
	s.overdue = s.overdue || now.Sub(s.started) >= fallbackAfter || answered == 0 && failed == s.configured
	s.noticeLoss()
	if s.ready(now) {
		before := s.verdict.vote
		if s.verdict.consider(now, s.votes(), len(s.watchers)) {
			s.adopt(now, before)
		}
		s.noticeDisagreement()
	}
	state := *s.State()
	if state.Epoch == 0 && s.cfg.Fallback != "" && s.overdue && s.reachable() == 0 {
		state = State{Primary: s.cfg.Fallback, Epoch: 1, Fallback: true}
	}
	if s.cfg.Replicas && !state.Fallback && state.Epoch > 0 {
		if online, ok := s.replicas(); ok {
			state.Replicas = online
		}
	}
	var err error
	if state.Primary == "" {
		err = s.reason()
	}
	s.publish(state, err)
	s.tally()
}

// ready reports whether enough Sentinels have had their say for a first
// decision: a majority of the configured ones, or all, or any in time.
func (s *sentinels) ready(now time.Time) bool {
	if s.verdict.Primary != "" || now.Sub(s.started) >= hold {
		return true
	}
	answered, failed := s.first()
	return 2*answered > s.configured || answered+failed == s.configured
}

// first counts the configured Sentinels by what became of the last question to
// them. Those that are still asked for the first time count as neither.
func (s *sentinels) first() (answered, failed int) {
	for _, w := range s.watchers {
		switch {
		case !w.configured || !w.asked:
		case w.answer != nil:
			answered++
		default:
			failed++
		}
	}
	return answered, failed
}

// votes returns what those hold who answer and know the name. A Sentinel that is
// configured under two names has one vote.
func (s *sentinels) votes() []vote {
	var votes []vote
	seen := make(map[string]bool)
	for _, w := range s.watchers {
		if w.answer == nil || w.answer.Primary == "" || w.id != "" && seen[w.id] {
			continue
		}
		seen[w.id] = true
		votes = append(votes, w.answer.vote)
	}
	return votes
}

func (s *sentinels) reachable() int {
	var n int
	for _, w := range s.watchers {
		if w.answer != nil {
			n++
		}
	}
	return n
}

// adopt publishes a new verdict.
func (s *sentinels) adopt(now time.Time, before vote) {
	state := *s.State()
	from, after := state.Primary, s.verdict.vote
	again := before.HasEpoch && after.HasEpoch && after.Epoch > before.Epoch
	if after.Primary == from && !again && !state.Fallback {
		return // the same, of which only the config-epoch is news
	}
	state.Fallback = false
	if after.Primary != from || again {
		state.Primary = after.Primary
		state.Replicas = nil
		state.Epoch++
	}
	if from != "" && (after.Primary != from || again) {
		s.count(func(st *Stats) { st.Switches++; st.LastSwitch = now })
		s.cfg.Logger.Info("failover: new primary", "from", from, "to", after.Primary, "config_epoch", after.Epoch, "master_name", s.cfg.MasterName)
	}
	if s.cfg.Replicas {
		state.Replicas, _ = s.replicas()
	}
	s.publish(state, nil)
}

// replicas returns those that at least half of the Sentinels which name the
// primary call up and linked; false if there is no such Sentinel at present.
func (s *sentinels) replicas() (online []string, ok bool) {
	counts := make(map[string]int)
	var voters int
	for _, w := range s.watchers {
		if w.answer == nil || w.answer.Primary != s.verdict.Primary {
			continue
		}
		voters++
		for _, addr := range w.answer.online {
			counts[addr]++
		}
	}
	for addr, n := range counts {
		if 2*n >= voters {
			online = append(online, addr)
		}
	}
	slices.Sort(online)
	return online, voters > 0
}
