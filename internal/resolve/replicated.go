package resolve

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"time"
)

// A ReplicatedConfig lists a primary and its replicas.
type ReplicatedConfig struct {
	Addrs []string // host:port, the primary first as far as one knows

	Username, Password string
	Credentials        func(context.Context) (user, password string, err error) // instead; asked at each new connection

	Dial   func(ctx context.Context, network, addr string) (net.Conn, error) // required, TLS included
	Name   string                                                            // of the connections; empty for none
	Logger *slog.Logger                                                      // nil: slog.Default()
}

// NewReplicated begins to ask the servers for their replication role and
// returns at once. Its State lists replicas always.
func NewReplicated(cfg ReplicatedConfig) (Resolver, error) {
	if err := checkServers(cfg.Addrs, cfg.Dial != nil); err != nil {
		return nil, err
	}
	cfg.Logger = cmp.Or(cfg.Logger, slog.Default())
	b, ctx := newBoard()
	r := &replicated{board: b, cfg: cfg, started: time.Now(), reports: make(chan roleReport)}
	a := &access{cfg.Dial, cfg.Username, cfg.Password, cfg.Credentials, cfg.Name}
	for _, addr := range cfg.Addrs {
		if slices.ContainsFunc(r.servers, func(s *roleServer) bool { return s.addr == addr }) {
			continue
		}
		s := &roleServer{addr: addr}
		s.probe = &probe[roleAnswer]{addr: addr, access: a, wake: make(chan struct{}, 1), question: askRole}
		r.servers = append(r.servers, s)
		r.running.Go(func() {
			s.probe.run(ctx, func(answer roleAnswer, err error) {
				select {
				case r.reports <- roleReport{s, answer, err}:
				case <-ctx.Done():
				}
			})
		})
	}
	r.publish(State{}, r.reason())
	r.tally()
	r.running.Go(func() { r.run(ctx) })
	return r, nil
}

// replicated is a [Resolver]. All fields below the board belong to its run.
type replicated struct {
	*board
	cfg     ReplicatedConfig
	started time.Time
	reports chan roleReport
	servers []*roleServer
	pace    pace
	two     bool // more than one primary, which is logged
	lost    bool // nobody answers, which is logged
}

type roleServer struct {
	addr   string
	probe  *probe[roleAnswer]
	asked  bool
	answer *roleAnswer // nil if it failed
	err    error
}

type roleReport struct {
	from   *roleServer
	answer roleAnswer
	err    error
}

// A roleAnswer is what a server says of itself.
type roleAnswer struct {
	role   string // "master", "slave"; "" where it may not be asked
	linked bool   // a replica that follows a primary
}

// askRole asks for the replication role. Where ROLE is forbidden, the reply to
// HELLO tells it too.
func askRole(w *wire, _ bool) (roleAnswer, error) {
	replies, err := w.ask(askTimeout, []string{"ROLE"})
	if err != nil {
		return roleAnswer{}, err
	}
	switch reply := replies[0].(type) {
	case []any:
		return readRole(reply)
	case replyError:
		if reply.code() != "NOPERM" && !reply.unknownCommand() {
			return roleAnswer{}, reply
		}
	default:
		return roleAnswer{}, fmt.Errorf("%w to ROLE: %.50q", errProtocol, reply)
	}
	if replies, err = w.ask(askTimeout, []string{"HELLO"}); err != nil {
		return roleAnswer{}, err
	}
	switch fields(replies[0])["role"] {
	case "master":
		return roleAnswer{role: "master"}, nil
	case "replica", "slave":
		return roleAnswer{role: "slave", linked: true}, nil
	}
	return roleAnswer{}, nil
}

func readRole(reply []any) (roleAnswer, error) {
	if len(reply) > 0 {
		switch role, _ := reply[0].(string); role {
		case "master":
			return roleAnswer{role: role}, nil
		case "slave":
			var link string
			if len(reply) > 3 {
				link, _ = reply[3].(string)
			}
			return roleAnswer{role: role, linked: link == "connected" || link == "sync"}, nil
		case "sentinel":
			return roleAnswer{}, errIsSentinel
		}
	}
	return roleAnswer{}, fmt.Errorf("%w to ROLE: %.50q", errProtocol, reply)
}

var errIsSentinel = errors.New("it is a Sentinel, not a data node: use a URL such as redis+sentinel://host:26379/mymaster")

func (r *replicated) run(ctx context.Context) {
	for timer := (*time.Timer)(nil); ; {
		now := time.Now()
		if r.pace.take(now) {
			for _, s := range r.servers {
				s.probe.nudge()
			}
		}
		r.decide(now)
		due := r.pace.due()
		if gate := r.started.Add(hold); r.State().Epoch == 0 && gate.After(now) && gate.Before(due) {
			due = gate
		}
		timer = rearmed(timer, due)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		case <-r.wanted:
			r.pace.pressed = true
		case report := <-r.reports:
			r.polled(report.err)
			s := report.from
			s.asked, s.err, s.answer = true, report.err, nil
			if report.err == nil {
				s.answer = &report.answer
			}
		}
	}
}

// decide makes up the mind and tells it.
func (r *replicated) decide(now time.Time) {
	r.noticeLoss()
	state := *r.State()
	if r.ready(now) {
		primary, primaries := r.elect(state.Primary)
		r.noticeTwo(primary, primaries)
		if primary != "" && primary != state.Primary {
			if state.Primary != "" {
				r.count(func(st *Stats) { st.Switches++; st.LastSwitch = now })
				r.cfg.Logger.Info("failover: new primary", "from", state.Primary, "to", primary)
			}
			state.Primary = primary
			state.Epoch++
		}
		state.Replicas = r.replicas(state.Primary)
	}
	var err error
	if state.Primary == "" {
		err = r.reason()
	}
	r.publish(state, err)
	r.tally()
}

// ready reports whether a first decision can be made: all have had their say,
// the first one says that it is the primary, or the time is over.
func (r *replicated) ready(now time.Time) bool {
	first := r.servers[0].answer
	return r.State().Epoch > 0 || now.Sub(r.started) >= hold ||
		first != nil && first.role == "master" ||
		!slices.ContainsFunc(r.servers, func(s *roleServer) bool { return !s.asked })
}

// elect returns the primary, "" for no change, and who all say that they are.
func (r *replicated) elect(current string) (primary string, primaries []string) {
	silent := true // nobody tells a role
	for _, s := range r.servers {
		if s.answer == nil {
			continue
		}
		silent = silent && s.answer.role == ""
		if s.answer.role == "master" {
			primaries = append(primaries, s.addr)
		}
	}
	switch {
	case slices.Contains(primaries, current):
		return current, primaries
	case len(primaries) > 0:
		return primaries[0], primaries
	case silent && current == "" && r.servers[0].answer != nil:
		return r.servers[0].addr, nil
	}
	return "", nil
}

func (r *replicated) replicas(primary string) []string {
	var online []string
	for _, s := range r.servers {
		if s.addr != primary && s.answer != nil && s.answer.role == "slave" && s.answer.linked {
			online = append(online, s.addr)
		}
	}
	slices.Sort(online)
	return online
}

// noticeTwo logs when a second primary comes up.
func (r *replicated) noticeTwo(primary string, primaries []string) {
	two := len(primaries) > 1
	if two && !r.two {
		r.count(func(st *Stats) { st.TwoPrimaries++ })
		r.cfg.Logger.Error("several servers say that they are the primary: writes to the others are lost when they become replicas", "addr", primary, "primaries", primaries)
	}
	r.two = two
}

func (r *replicated) noticeLoss() {
	n := r.reachable()
	switch {
	case n > 0 && r.lost:
		r.lost = false
		r.cfg.Logger.Info("servers answer again", "reachable", n)
	case n == 0 && !r.lost && r.State().Epoch > 0:
		r.lost = true
		r.cfg.Logger.Warn("neither primary nor replica answers", "addr", r.State().Primary, "err", r.reason())
	}
}

func (r *replicated) reachable() int {
	var n int
	for _, s := range r.servers {
		if s.answer != nil {
			n++
		}
	}
	return n
}

func (r *replicated) tally() {
	r.count(func(st *Stats) {
		st.Configured, st.Known, st.Reachable = len(r.servers), len(r.servers), r.reachable()
	})
}

var (
	errIsReplica = errors.New("it says that it is a replica")
	errNoRole    = errors.New("it tells no role")
)

// reason says why there is no primary.
func (r *replicated) reason() error {
	var said []saying
	for _, s := range r.servers {
		err := s.err
		switch {
		case !s.asked:
			err = errNotYet
		case err != nil:
		case s.answer.role == "":
			err = errNoRole
		default:
			err = errIsReplica
		}
		said = append(said, saying{s.addr, err})
	}
	return because(ErrNoPrimary, "no primary", "", said)
}
