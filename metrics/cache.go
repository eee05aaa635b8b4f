package metrics

import (
	"github.com/redisha/redisha/cache"
	"github.com/redisha/redisha/internal/stats"
)

// caches is what a cache counts, the default or a named one.
var caches = newTable(by("role"),
	counters("redisha_cache_reads_total",
		"Reads that Redis answered: with a value (hit), with a cached absence, or with neither (miss; values that do not decode included).",
		by("outcome"), func(s *cache.Stats) []sample {
			return []sample{count(s.Hits, "hit"), count(s.Absences, "absence"), count(s.Misses, "miss")}
		}),
	counter("redisha_cache_errors_total",
		"Reads, Sets, Deletes and steps of a load lease that Redis did not carry out.",
		func(s *cache.Stats) uint64 { return s.Errors }),
	counter("redisha_cache_decode_errors_total",
		"Values in Redis that could not be used: unknown, cut off, too long, corrupt, or not of the view's type.",
		func(s *cache.Stats) uint64 { return s.DecodeErrors }),
	counter("redisha_cache_read_batches_total",
		"Batches of reads that travelled together, since all lanes to the server were taken.",
		func(s *cache.Stats) uint64 { return s.Batches }),
	counter("redisha_cache_read_batch_keys_total",
		"Keys in batches of reads, each of which served one read or several.",
		func(s *cache.Stats) uint64 { return s.BatchKeys }),
	counter("redisha_cache_sets_total",
		"Values stored by Set, SetMany, Add and Replace.",
		func(s *cache.Stats) uint64 { return s.Sets }),
	counter("redisha_cache_deletes_total",
		"Keys deleted by Delete, whether they existed or not.",
		func(s *cache.Stats) uint64 { return s.Deletes }),
	histograms("redisha_cache_operation_duration_seconds",
		"Seconds that operations took, with encoding or decoding and without loads. A get is a call of Get, GetInto or GetMany, or a read of Fetch, that Redis answered.",
		by("operation"), func(s *cache.Stats) []sample {
			return []sample{times(s.GetTime, "get"), times(s.SetTime, "set"), times(s.DeleteTime, "delete")}
		}),

	counter("redisha_cache_loads_total",
		"Calls of a loader.",
		func(s *cache.Stats) uint64 { return s.Loads }),
	counter("redisha_cache_load_errors_total",
		"Loads that failed, panicked or took too long. An absence is no error.",
		func(s *cache.Stats) uint64 { return s.LoadErrors }),
	histogram("redisha_cache_load_duration_seconds",
		"Seconds that loads took, failed ones included.",
		func(s *cache.Stats) stats.HistogramSnapshot { return s.LoadTime }),
	counter("redisha_cache_joined_fetches_total",
		"Fetches that shared the load of another one in the process.",
		func(s *cache.Stats) uint64 { return s.Joined }),
	counter("redisha_cache_leases_taken_total",
		"Load leases taken, which let one process load a key.",
		func(s *cache.Stats) uint64 { return s.LeasesTaken }),
	counter("redisha_cache_lease_waits_total",
		"Times that the load of another process was waited for.",
		func(s *cache.Stats) uint64 { return s.LeaseWaits }),
	counter("redisha_cache_fills_refused_total",
		"Loaded values that were not stored, since the key had been deleted, set or evicted meanwhile.",
		func(s *cache.Stats) uint64 { return s.FillsRefused }),

	counter("redisha_cache_fallbacks_total",
		"Loads that did without Redis because of an error.",
		func(s *cache.Stats) uint64 { return s.Fallbacks }),
	counter("redisha_cache_fallbacks_refused_total",
		"Loads without Redis that did not run, since as many ran as Config.MaxFallbacks allows.",
		func(s *cache.Stats) uint64 { return s.FallbacksRefused }),
	gauge("redisha_cache_fallbacks_running",
		"Loads that run without Redis now.",
		func(s *cache.Stats) int64 { return s.FallbacksRunning }),

	counter("redisha_cache_uncompressed_bytes_total",
		"Bytes of the values made ready for storing, before compression.",
		func(s *cache.Stats) uint64 { return s.BytesBefore }),
	counter("redisha_cache_compressed_bytes_total",
		"Bytes of the same values after compression, or as they were where it did not pay.",
		func(s *cache.Stats) uint64 { return s.BytesAfter }),
	counter("redisha_cache_too_large_values_total",
		"Values not stored because they exceed ViewConfig.MaxValueBytes.",
		func(s *cache.Stats) uint64 { return s.TooLarge }),
)
