package testserver

import "github.com/alicebob/miniredis/v2/server"

func (s *Server) cmdEval(c *server.Peer, cl *client, args []string) bool { return false }
