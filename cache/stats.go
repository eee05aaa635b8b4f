package cache

import (
	"github.com/redisha/redisha/internal/conn"
	"github.com/redisha/redisha/internal/stats"
)

// Stats is what a client and its views did. Counts run since New.
type Stats struct {
	// Conn is what the connection did.
	Conn conn.Stats

	ScopeHits uint64 // reads that found a value or an absence in a request scope
	LocalHits uint64 // reads that found one among the local copies (ViewConfig.LocalEntries)

	// LocalFlushes is how often all local copies were given up, since changes may
	// have been missed.
	LocalFlushes LocalFlushes

	// Tracking is how servers tell of changes. It is zero without local copies.
	Tracking TrackingStats

	Hits     uint64 // reads that found a value in Redis
	Absences uint64 // reads that found a cached absence in Redis
	Stale    uint64 // reads that found a value whose TTL was over: Fetch returns it, to Get it is a miss
	Misses   uint64 // reads that found none of these, DecodeErrors included
	Errors   uint64 // reads, Sets, Deletes and steps of a lease that Redis did not carry out, and calls of maps, hashes, limiters and session stores

	// DecodeErrors counts what was in Redis and could not be used: unknown, cut
	// off, too long, corrupt, or not of the view's type.
	DecodeErrors uint64

	// Reads of about the same time travel in one batch where all lanes to the
	// server are taken: Batches counts the batches, and BatchKeys the keys in
	// them, each of which served one read or several. Other reads went alone.
	Batches   uint64
	BatchKeys uint64

	Sets    uint64 // values stored by Set, SetMany, Add and Replace
	Deletes uint64 // keys deleted by Delete and DeleteFor, whether they existed or not

	// DeletesOwed is how many keys, tags and views now wait for a Delete, an
	// InvalidateTags or a Clear to be repeated that failed or may have been lost in a
	// failover, DeletesRepeated how many keys and tags it was repeated for.
	DeletesOwed     int64
	DeletesRepeated uint64

	Loads      uint64                  // keys that a loader was called for
	LoadErrors uint64                  // those that failed, panicked or took too long; ErrNotFound is no error
	LoadTime   stats.HistogramSnapshot // how long the loads took
	Joined     uint64                  // Fetches that joined the flight of another one

	LeasesTaken  uint64 // load leases that Fetch took
	LeaseWaits   uint64 // times that a flight waited for another's load
	FillsRefused uint64 // loaded values that were not stored, since the key had been deleted, set or evicted meanwhile

	Refreshes        uint64 // stale values that a load of this client was to replace
	RefreshesRefused uint64 // refreshes that were left to a later caller, since 64 ran
	SoftTimeouts     uint64 // Fetches that returned a stale value after ViewConfig.SoftLoadTimeout
	ErrorsShared     uint64 // reads that found the error of a load which had just failed
	Expires          uint64 // values that Expire made stale

	TagsInvalidated uint64 // tags that InvalidateTags ended
	Clears          uint64 // views that Clear cleared
	GenerationReads uint64 // times that generations of tags were read in a round trip of their own
	LoadsOutdated   uint64 // loads during which a tag was invalidated, or the view cleared: they are made again, or not stored

	// Fallbacks counts the loads that did without Redis because of an error,
	// FallbacksRefused those that Config.MaxFallbacks kept from running, and
	// FallbacksRunning is how many run now, those for a tombstone included.
	Fallbacks        uint64
	FallbacksRefused uint64
	FallbacksRunning int64

	// OutageHits counts the reads that Redis did not answer, and that got what a
	// Fetch had loaded in the two seconds before.
	OutageHits uint64

	// LimitsAllowed and LimitsRefused count what Limiters said to Allow and AllowN,
	// LimitsLocal those of both that the process decided alone, since Redis did not.
	LimitsAllowed uint64
	LimitsRefused uint64
	LimitsLocal   uint64

	SessionCommits        uint64 // sessions stored, or prolonged, or found to need neither
	SessionCommitsRefused uint64 // commits of sessions that had been destroyed
	SessionDestroys       uint64 // sessions destroyed

	// SessionDestroysUnconfirmed counts those of the destroyed ones that no replica is
	// known to have heard of, where there are replicas: a failover may bring them back
	// until this process has destroyed them again.
	SessionDestroysUnconfirmed uint64

	// BytesBefore and BytesAfter are the lengths of the values that were made
	// ready for storing, before and after compression, without header.
	BytesBefore uint64
	BytesAfter  uint64
	TooLarge    uint64 // values above ViewConfig.MaxValueBytes

	GetTime    stats.HistogramSnapshot // calls of Get, GetInto, GetMany, Fetch and FetchMany, decoding included, loads not
	SetTime    stats.HistogramSnapshot // calls of these, encoding included
	DeleteTime stats.HistogramSnapshot // Deletes
}

// counters is where a client counts; see Stats.
type counters struct {
	localHits                                               stats.Counter
	localFlushes                                            flushCounters
	scopeHits                                               stats.Counter
	hits, absences, stale, misses, errors, decodeErrors     stats.Counter
	refreshes, refreshesRefused, softTimeouts               stats.Counter
	tagsInvalidated, clears, generationReads, loadsOutdated stats.Counter
	errorsShared, expires                                   stats.Counter
	sets, deletes, deletesRepeated                          stats.Counter
	loads, loadErrors, joined                               stats.Counter
	leasesTaken, leaseWaits, fillsRefused                   stats.Counter
	fallbacks, fallbacksRefused, outageHits                 stats.Counter
	fallbacksRunning                                        stats.Gauge
	limitsAllowed, limitsRefused, limitsLocal               stats.Counter
	sessionCommits, sessionCommitsRefused                   stats.Counter
	sessionDestroys, sessionDestroysUnconfirmed             stats.Counter
	bytesBefore, bytesAfter, tooLarge                       stats.Counter
	loadTime, getTime, setTime, deleteTime                  stats.Histogram
}

// Stats returns what the client did.
func (c *Client) Stats() Stats {
	n := &c.stats
	batched := c.primary.Stats()
	if c.reads != c.primary {
		replicas := c.reads.Stats()
		batched.Batches += replicas.Batches
		batched.Keys += replicas.Keys
	}
	flushes := &n.localFlushes
	return Stats{
		Conn:                       c.rdb.Stats(),
		ScopeHits:                  n.scopeHits.Load(),
		LocalHits:                  n.localHits.Load(),
		LocalFlushes:               LocalFlushes{flushes.flushed.Load(), flushes.failover.Load(), flushes.connection.Load()},
		Tracking:                   c.trackingStats(),
		Hits:                       n.hits.Load(),
		Absences:                   n.absences.Load(),
		Stale:                      n.stale.Load(),
		Misses:                     n.misses.Load(),
		Errors:                     n.errors.Load(),
		DecodeErrors:               n.decodeErrors.Load(),
		Batches:                    batched.Batches,
		BatchKeys:                  batched.Keys,
		Sets:                       n.sets.Load(),
		Deletes:                    n.deletes.Load(),
		DeletesOwed:                c.owed.n.Load(),
		DeletesRepeated:            n.deletesRepeated.Load(),
		Loads:                      n.loads.Load(),
		LoadErrors:                 n.loadErrors.Load(),
		LoadTime:                   n.loadTime.Snapshot(),
		Joined:                     n.joined.Load(),
		LeasesTaken:                n.leasesTaken.Load(),
		LeaseWaits:                 n.leaseWaits.Load(),
		FillsRefused:               n.fillsRefused.Load(),
		Refreshes:                  n.refreshes.Load(),
		RefreshesRefused:           n.refreshesRefused.Load(),
		SoftTimeouts:               n.softTimeouts.Load(),
		ErrorsShared:               n.errorsShared.Load(),
		Expires:                    n.expires.Load(),
		TagsInvalidated:            n.tagsInvalidated.Load(),
		Clears:                     n.clears.Load(),
		GenerationReads:            n.generationReads.Load(),
		LoadsOutdated:              n.loadsOutdated.Load(),
		Fallbacks:                  n.fallbacks.Load(),
		FallbacksRefused:           n.fallbacksRefused.Load(),
		FallbacksRunning:           n.fallbacksRunning.Load(),
		OutageHits:                 n.outageHits.Load(),
		LimitsAllowed:              n.limitsAllowed.Load(),
		LimitsRefused:              n.limitsRefused.Load(),
		LimitsLocal:                n.limitsLocal.Load(),
		SessionCommits:             n.sessionCommits.Load(),
		SessionCommitsRefused:      n.sessionCommitsRefused.Load(),
		SessionDestroys:            n.sessionDestroys.Load(),
		SessionDestroysUnconfirmed: n.sessionDestroysUnconfirmed.Load(),
		BytesBefore:                n.bytesBefore.Load(),
		BytesAfter:                 n.bytesAfter.Load(),
		TooLarge:                   n.tooLarge.Load(),
		GetTime:                    n.getTime.Snapshot(),
		SetTime:                    n.setTime.Snapshot(),
		DeleteTime:                 n.deleteTime.Snapshot(),
	}
}

// limited counts what a limiter said.
func (n *counters) limited(res LimitResult) {
	if res.Allowed {
		n.limitsAllowed.Inc()
	} else {
		n.limitsRefused.Inc()
	}
	if res.Local {
		n.limitsLocal.Inc()
	}
}
