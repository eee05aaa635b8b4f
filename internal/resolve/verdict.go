package resolve

import "time"

// A vote is what one Sentinel holds for the primary.
type vote struct {
	Primary  string
	Epoch    uint64 // config-epoch
	HasEpoch bool   // false where SENTINEL MASTER is refused
}

// A verdict makes one belief of what the Sentinels say. A config-epoch is
// itself the outcome of a majority vote among them, so that the highest one
// wins, even if one Sentinel alone knows it yet.
type verdict struct {
	vote                // the present belief; Primary is "" before the first
	contender vote      // what would replace it, after a while
	since     time.Time // when the contender came up; zero without one
	due       time.Time // when to consider again at the latest; zero without a contender
	disagree  bool      // Sentinels name different primaries of one epoch
}

// consider looks at the votes of all Sentinels that answer and know the name;
// watched is the number of all Sentinels. It reports whether the belief has
// changed.
func (v *verdict) consider(now time.Time, votes []vote, watched int) bool {
	best, count, disagree := v.best(votes)
	v.disagree = disagree
	var wait time.Duration
	switch {
	case len(votes) == 0:
		v.drop()
		return false
	case v.Primary == "":
		return v.accept(best)
	case best.HasEpoch && v.HasEpoch && best.Epoch > v.Epoch:
		return v.accept(best)
	case best.HasEpoch && v.HasEpoch && best.Epoch < v.Epoch:
		wait = resetAfter // old news, unless nobody knows better for long
	case best.Primary == v.Primary:
		return v.accept(best)
	case 2*count > watched:
		return v.accept(best)
	default:
		wait = hold // until those who have not answered yet can object
	}
	if v.since.IsZero() || v.contender != best {
		v.contender, v.since = best, now
	}
	v.due = v.since.Add(wait)
	if now.Before(v.due) {
		return false
	}
	return v.accept(best)
}

func (v *verdict) drop() { v.since, v.due = time.Time{}, time.Time{} }

// accept makes b the belief. Without a config-epoch it keeps the one before, so
// that answers of before that one stay old news.
func (v *verdict) accept(b vote) bool {
	v.drop()
	if !b.HasEpoch {
		b.Epoch, b.HasEpoch = v.Epoch, v.HasEpoch
	}
	if b == v.vote {
		return false
	}
	v.vote = b
	return true
}

// best returns the vote of the highest config-epoch, or of a majority where no
// Sentinel tells its epoch, and how many gave it. Of equal ones the present
// belief is the best, then the first.
func (v *verdict) best(votes []vote) (best vote, count int, disagree bool) {
	for _, b := range votes {
		if b.HasEpoch && (!best.HasEpoch || b.Epoch > best.Epoch) {
			best = b
		}
	}
	counts := make(map[string]int, 2)
	var order []string
	for _, b := range votes {
		if b.HasEpoch != best.HasEpoch || b.Epoch != best.Epoch {
			continue
		}
		if counts[b.Primary]++; counts[b.Primary] == 1 {
			order = append(order, b.Primary)
		}
	}
	for _, primary := range order {
		n := counts[primary]
		if n > count || n == count && primary == v.Primary {
			best.Primary, count = primary, n
		}
	}
	return best, count, len(order) > 1
}
