package resolve

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
)

// noticeLoss logs when no Sentinel gives a usable answer any more, which one that
// refuses access does not either, and when one does again.
func (s *sentinels) noticeLoss() {
	switch n := s.reachable(); {
	case n > 0 && s.lost:
		s.lost = false
		s.cfg.Logger.Info("Sentinels answer again", "master_name", s.cfg.MasterName, "reachable", n)
	case n == 0 && !s.lost && (s.State().Epoch > 0 || s.overdue):
		s.lost = true
		s.cfg.Logger.Warn("no usable answer from the Sentinels: the last known primary stays, or the fallback is taken",
			"master_name", s.cfg.MasterName, "addr", cmp.Or(s.State().Primary, s.cfg.Fallback), "err", s.reason())
	}
}

// noticeDisagreement logs when Sentinels begin to name different primaries of
// the same config-epoch.
func (s *sentinels) noticeDisagreement() {
	if s.verdict.disagree && !s.warned {
		s.count(func(st *Stats) { st.Disagreements++ })
		s.cfg.Logger.Warn("Sentinels name different primaries in the same config-epoch: do some of them monitor another group under this name?",
			"master_name", s.cfg.MasterName, "addr", s.State().Primary, "votes", s.told())
	}
	s.warned = s.verdict.disagree
}

// told lists what each Sentinel that knows the name calls the primary, as
// <Sentinel>=<primary>@<config-epoch>, or without the epoch where that is refused.
func (s *sentinels) told() []string {
	var told []string
	for _, w := range s.watchers {
		if w.answer == nil || w.answer.Primary == "" {
			continue
		}
		text := w.addr + "=" + w.answer.Primary
		if w.answer.HasEpoch {
			text += "@" + strconv.FormatUint(w.answer.Epoch, 10)
		}
		told = append(told, text)
	}
	return told
}

// noticeBadMap logs the first address that MapAddr makes of another one and that
// is none: nobody connects to that server.
func (s *sentinels) noticeBadMap(err error) {
	if err == nil || s.badMap {
		return
	}
	s.badMap = true
	s.cfg.Logger.Warn("an announced address cannot be used", "master_name", s.cfg.MasterName, "err", err)
}

// tally writes the levels into the statistics.
func (s *sentinels) tally() {
	s.count(func(st *Stats) {
		st.Configured, st.Known, st.Reachable = s.configured, len(s.watchers), s.reachable()
		st.ConfigEpoch = s.verdict.Epoch
	})
}

// reason says why there is no primary.
func (s *sentinels) reason() error {
	var said []saying
	var names []string
	var unknown, refused, wrong, mapped bool
	for _, w := range s.watchers {
		err := w.err
		switch {
		case !w.asked:
			err = errNotYet
		case err == nil && w.answer.Primary == "":
			err = errUnknownName
			unknown = true
			names = append(names, w.answer.names...)
		case err == nil:
			continue
		}
		said = append(said, saying{w.addr, err})
		refused = refused || accessRefused(err)
		wrong = wrong || notSentinel(err)
		mapped = mapped || errors.Is(err, errBadMap)
	}
	kind, detail := ErrNoSentinel, ""
	switch {
	case unknown:
		kind, detail = ErrUnknownMaster, known(names)
	case refused:
		kind = ErrSentinelAuth
	case wrong:
		kind = ErrNotSentinel
	case mapped:
		kind = errBadMap
	}
	return because(kind, fmt.Sprintf("no primary for %q", s.cfg.MasterName), detail, said)
}

var (
	errNotYet      = errors.New("no answer yet")
	errUnknownName = errors.New("it does not know the name")
)

// known lists the names that Sentinels know, at most ten.
func known(names []string) string {
	slices.Sort(names)
	names = slices.Compact(names)
	switch {
	case len(names) == 0:
		return "; they know none"
	case len(names) > 10:
		return fmt.Sprintf("; they know %q and %d more", names[:10], len(names)-10)
	}
	return fmt.Sprintf("; they know %q", names)
}
