package cache_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/redisha/redisha/cache"
)

// Who fails to log in five times has to wait; who succeeds has not.
func ExampleLimiter() {
	client, _, closeAll := connect()
	defer closeAll()
	ctx := context.Background()
	logins := cache.NewLimiter[string](client, "login", cache.LimiterConfig{Rate: 5, Per: time.Hour})

	for range 6 {
		res, err := logins.Allow(ctx, "ada")
		if err != nil {
			panic(err) // nothing is allowed then
		}
		fmt.Println(res.Allowed, res.Remaining, res.RetryAfter.Round(time.Minute))
	}
	fmt.Println(logins.Reset(ctx, "ada"))
	res, _ := logins.Peek(ctx, "ada")
	fmt.Println(res.Allowed, res.Remaining, "decided by this process alone:", res.Local)
	// Output:
	// true 4 0s
	// true 3 0s
	// true 2 0s
	// true 1 0s
	// true 0 0s
	// false 0 12m0s
	// <nil>
	// true 5 decided by this process alone: false
}

// With scs: sessions.Store = cache.NewSessionStore(clients.Cache, "web").
func ExampleSessionStore() {
	client, _, closeAll := connect()
	defer closeAll()
	ctx := context.Background()
	store := cache.NewSessionStore(client, "web")
	expiry := time.Now().Add(24 * time.Hour)

	fmt.Println(store.CommitCtx(ctx, "token", []byte("cart: 1 book"), expiry))
	data, found, err := store.FindCtx(ctx, "token")
	fmt.Println(string(data), found, err)

	// While another request signs out, this one goes on.
	fmt.Println(store.DeleteCtx(ctx, "token"))
	err = store.CommitCtx(ctx, "token", []byte("cart: 2 books"), expiry)
	fmt.Println(errors.Is(err, cache.ErrSessionDestroyed))
	_, found, err = store.FindCtx(ctx, "token")
	fmt.Println(found, err)
	// Output:
	// <nil>
	// cart: 1 book true <nil>
	// <nil>
	// true
	// false <nil>
}

type Flow struct{ ReturnTo, Nonce string }

// The state of a login through OpenID is there for ten minutes, and used once.
func ExampleMap_Take() {
	client, _, closeAll := connect()
	defer closeAll()
	ctx := context.Background()
	flows := cache.NewMap[string, Flow](client, "openid", cache.MapConfig{TTL: 10 * time.Minute})

	fmt.Println(flows.Set(ctx, "random state", Flow{ReturnTo: "/cart", Nonce: "n"}))
	for range 2 { // the callback, and somebody who repeats it
		flow, err := flows.Take(ctx, "random state")
		fmt.Println(flow, err)
	}
	// Output:
	// <nil>
	// {/cart n} <nil>
	// { } cache: miss
}

// Of two devices that approve a login, one does.
func ExampleMap_Update() {
	client, _, closeAll := connect()
	defer closeAll()
	ctx := context.Background()
	logins := cache.NewMap[string, string](client, "device", cache.MapConfig{TTL: 10 * time.Minute})
	errTaken := errors.New("somebody else has approved it")

	_ = logins.Set(ctx, "WDJB-MJHT", "")
	for _, user := range []string{"ada", "grace"} {
		_, err := logins.Update(ctx, "WDJB-MJHT", func(by string) (string, error) {
			if by != "" {
				return by, errTaken
			}
			return user, nil
		})
		fmt.Println(user, err)
	}
	// Output:
	// ada <nil>
	// grace somebody else has approved it
}

// An identifier is used once.
func ExampleMap_Add() {
	client, _, closeAll := connect()
	defer closeAll()
	assertions := cache.NewMap[string, bool](client, "saml", cache.MapConfig{TTL: time.Hour})
	for range 2 {
		fmt.Println(assertions.Add(context.Background(), "_a75adf55", true))
	}
	// Output:
	// true <nil>
	// false <nil>
}

// All processes know who listens.
func ExampleMap_All() {
	client, _, closeAll := connect()
	defer closeAll()
	ctx := context.Background()
	listeners := cache.NewMap[int, string](client, "push", cache.MapConfig{TTL: time.Minute}) // Set again every 20 s
	_ = listeners.Set(ctx, 1, "https://push.example.com/1")
	_ = listeners.Set(ctx, 2, "https://push.example.com/2")

	var urls []string
	for e, err := range listeners.All(ctx) {
		if err != nil {
			panic(err)
		}
		urls = append(urls, e.Value)
	}
	slices.Sort(urls)
	fmt.Println(urls)
	// Output: [https://push.example.com/1 https://push.example.com/2]
}

// A user's devices: each is forgotten on its own.
func ExampleHash() {
	client, _, closeAll := connect()
	defer closeAll()
	ctx := context.Background()
	devices := cache.NewHash[int64, string](client, "devices", cache.MapConfig{TTL: time.Hour})

	err := devices.Set(ctx, 42, "phone", "Lyon")
	if errors.Is(err, errors.ErrUnsupported) {
		fmt.Println("Redis is too old")
	}
	_ = devices.Set(ctx, 42, "tablet", "Paris", cache.TTL(10*time.Minute))
	all, err := devices.All(ctx, 42)
	fmt.Println(len(all), all["phone"], all["tablet"], err)
	// Output: 2 Lyon Paris <nil>
}
