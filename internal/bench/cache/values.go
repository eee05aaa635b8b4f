package main

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strings"
)

// A profile is what applications cache.
type profile struct {
	ID        int        `json:"id"`
	Name      string     `json:"name"`
	Email     string     `json:"email"`
	Active    bool       `json:"active"`
	Score     float64    `json:"score"`
	Roles     []string   `json:"roles"`
	Purchases []purchase `json:"purchases"`
	Note      string     `json:"note"`
}

type purchase struct {
	SKU   string `json:"sku"`
	Count int    `json:"count"`
	Cents int64  `json:"cents"`
}

// newProfile returns the n-th profile, which has size bytes as JSON, 1 KiB or about.
func newProfile(n, size int) profile {
	r := rand.New(rand.NewPCG(1, uint64(n))) //nolint:gosec // the same in each run
	p := profile{
		ID: n, Name: fmt.Sprintf("user-%06x", r.IntN(1<<24)), Email: fmt.Sprintf("u%d@example.com", r.IntN(100_000)),
		Active: r.IntN(2) == 0, Score: float64(r.IntN(100_000)) / 1000, Roles: []string{"reader", "editor"},
	}
	for encoded(p) < size-100 {
		p.Purchases = append(p.Purchases, purchase{SKU: fmt.Sprintf("sku-%05x", r.IntN(1<<20)), Count: 1 + r.IntN(9), Cents: r.Int64N(100_000)})
	}
	p.Note = letters(r, size-encoded(p))
	return p
}

func encoded(p profile) int {
	b, _ := json.Marshal(p) // never fails
	return len(b)
}

// text returns the n-th value of size bytes: JSON, mostly of random letters.
func text(n, size int) []byte {
	head := fmt.Sprintf(`{"id":%d,"text":"`, n)
	return []byte(head + letters(rand.New(rand.NewPCG(2, uint64(n))), size-len(head)-len(`"}`)) + `"}`) //nolint:gosec // the same in each run
}

func letters(r *rand.Rand, n int) string {
	const alphabet = "abcdefghijklmnopqrstuvwxyz 0123456789"
	var b strings.Builder
	for range n {
		b.WriteByte(alphabet[r.IntN(len(alphabet))])
	}
	return b.String()
}
