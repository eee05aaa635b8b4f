package deps
import (
 _ "github.com/redis/go-redis/v9"
 _ "github.com/bsm/redislock"
 _ "github.com/sony/gobreaker/v2"
 _ "github.com/klauspost/compress/flate"
 _ "github.com/prometheus/client_golang/prometheus"
 _ "github.com/prometheus/client_golang/prometheus/promhttp"
 _ "github.com/prometheus/client_golang/prometheus/testutil"
 _ "github.com/prometheus/client_golang/prometheus/testutil/promlint"
 _ "github.com/alicebob/miniredis/v2"
 _ "github.com/alicebob/miniredis/v2/server"
 _ "github.com/stretchr/testify/require"
 _ "pgregory.net/rapid"
 _ "go.uber.org/goleak"
)
