package tracking

// String returns the text of the prefix.
func (p *Prefix) String() string { return p.text }
