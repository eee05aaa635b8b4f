package testserver

import (
	"crypto/sha1"
	"encoding/hex"
	"fmt"
	"regexp"
	"strings"

	"github.com/alicebob/miniredis/v2/server"
)

// scriptError matches miniredis' reply to a script that failed while it ran.
// The first group is the line, the second the message.
var scriptError = regexp.MustCompile(`^-ERR Error compiling script \(new function\): (?::(\d+): )?(.*?)\s*stack traceback:`)

// errorCode matches a message that begins with a code, as replies of commands do.
var errorCode = regexp.MustCompile(`^[A-Z]{2,} `)

// cmdEval runs a script and gives its error the form that it has in Redis.
func (s *Server) cmdEval(c *server.Peer, cl *client, args []string) bool {
	if cl.script || len(args) < 2 {
		return false
	}
	reply := s.runScript(c, args)
	if failed := scriptError.FindStringSubmatch(reply); failed != nil {
		line, message := failed[1], failed[2]
		if line == "" {
			line = "1"
		}
		sha := args[1]
		if !strings.HasPrefix(strings.ToUpper(args[0]), "EVALSHA") {
			sum := sha1.Sum([]byte(args[1]))
			sha = hex.EncodeToString(sum[:])
		}
		message = strings.TrimSuffix(message, " script: "+sha+", &c.")
		if strings.HasPrefix(message, "Unknown Redis command") {
			message = "ERR " + message
		}
		if !errorCode.MatchString(message) {
			message = fmt.Sprintf("ERR user_script:%s: %s", line, message)
		}
		reply = fmt.Sprintf("-%s script: %s, on @user_script:%s.\r\n", message, sha, line)
	}
	c.WriteRaw(reply)
	return true
}
