package main

import (
	"regexp"
	"strings"
)

var address = regexp.MustCompile(`\d+\.\d+\.\d+\.\d+:\d+(->\d+\.\d+\.\d+\.\d+:\d+)?`)

// kindOf shortens an error to what errors of its kind have in common.
func kindOf(err error) string {
	text := address.ReplaceAllString(err.Error(), "…")
	if len(text) > 160 {
		text = text[:160]
	}
	return strings.TrimSpace(text)
}
