package redisha_test

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/redisha"
)

func TestThePackageCommentListsEveryParameter(t *testing.T) {
	text, err := os.ReadFile("doc.go")
	require.NoError(t, err)
	known := regexp.MustCompile(`unknown: use (.*)`)
	for _, url := range []redisha.URL{"redis://h?nope=1", "redis+socket:///r?nope=1", "redis+sentinel://s/m?nope=1", "redis+cluster://h?nope=1"} {
		m := known.FindStringSubmatch(url.Validate().Error())
		require.NotNil(t, m, "%v", url.Validate())
		for _, name := range strings.Split(m[1], ", ") {
			require.Regexp(t, `\b`+name+`\b`, string(text))
		}
	}
}
