package main

import (
	"time"

	"github.com/redisha/redisha/internal/bench/harness"
)

// targets are those of a row of the issue: what a failover may cost.
func targets(median, worst time.Duration) []harness.Target {
	return []harness.Target{
		{Contender: "redisha", Quantity: recovery, Limit: harness.AtMost(float64(median), harness.Median)},
		atWorst(recovery, float64(worst)),
		atWorst(setErrors, 0),
		atWorst(pushUnknown, 1),
		atWorst(pushOthers, 0),
		atWorst(twice, 0),
	}
}

// atWorst is met if no round of redisha shows more.
func atWorst(q harness.Quantity, bound float64) harness.Target {
	return harness.Target{Contender: "redisha", Quantity: q, Limit: harness.AtMost(bound, harness.Worst)}
}
