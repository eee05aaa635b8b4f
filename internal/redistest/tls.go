package redistest

import (
	"cmp"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// TLS says how a server speaks TLS.
type TLS struct {
	// Names are the host names and IP addresses in the server's certificate.
	// Defaults to localhost and 127.0.0.1.
	Names []string

	// Expired gives the server a certificate that ended yesterday.
	Expired bool

	// RequireClientCert refuses clients without a certificate of the CA.
	RequireClientCert bool
}

// Certs are the certificates of a server with TLS, made for it alone, each a
// PEM file that goes with the server.
type Certs struct {
	CAFile                        string // signed the server's and the client's
	OtherCAFile                   string // signed nothing: trusting it alone fails
	ServerCertFile, ServerKeyFile string
	ClientCertFile, ClientKeyFile string

	peerCertFile, peerKeyFile string // the server's, where it is a client itself
	trustFile                 string // what the server trusts: CAFile, and the CA of peerCertFile

	ca     *authority
	pool   *x509.CertPool
	client tls.Certificate
}

// ClientConfig returns a client's side: it trusts the CA, expects 127.0.0.1
// unless the caller sets another ServerName, and shows the client's
// certificate. The caller owns the result.
func (c *Certs) ClientConfig() *tls.Config {
	return &tls.Config{
		RootCAs:      c.pool,
		Certificates: []tls.Certificate{c.client},
		ServerName:   "127.0.0.1",
		MinVersion:   tls.VersionTLS12,
	}
}

// write makes the certificates and writes them into dir. They are signed by ca,
// or a new authority; the one for connections to other servers by peers, or ca.
func (t TLS) write(dir string, ca, peers *authority) (_ *Certs, err error) {
	names := t.Names
	if len(names) == 0 {
		names = []string{"localhost", "127.0.0.1"}
	}
	if ca == nil {
		if ca, err = newAuthority("redistest CA"); err != nil {
			return nil, err
		}
	}
	peers = cmp.Or(peers, ca)
	other, err := newAuthority("redistest other CA")
	if err != nil {
		return nil, err
	}
	end := time.Now().Add(24 * time.Hour)
	serverEnd := end
	if t.Expired {
		serverEnd = time.Now().Add(-24 * time.Hour)
	}
	serverCert, serverKey, err := ca.issue("redistest server", names, serverEnd, x509.ExtKeyUsageServerAuth)
	if err != nil {
		return nil, err
	}
	clientCert, clientKey, err := ca.issue("redistest client", nil, end, x509.ExtKeyUsageClientAuth)
	if err != nil {
		return nil, err
	}
	peerCert, peerKey, err := peers.issue("redistest server as a client", nil, end, x509.ExtKeyUsageClientAuth)
	if err != nil {
		return nil, err
	}
	c := &Certs{
		CAFile:         filepath.Join(dir, "ca.pem"),
		OtherCAFile:    filepath.Join(dir, "other-ca.pem"),
		ServerCertFile: filepath.Join(dir, "server.pem"),
		ServerKeyFile:  filepath.Join(dir, "server-key.pem"),
		ClientCertFile: filepath.Join(dir, "client.pem"),
		ClientKeyFile:  filepath.Join(dir, "client-key.pem"),
		peerCertFile:   filepath.Join(dir, "peer.pem"),
		peerKeyFile:    filepath.Join(dir, "peer-key.pem"),
		trustFile:      filepath.Join(dir, "trust.pem"),
		ca:             ca,
		pool:           x509.NewCertPool(),
	}
	for file, text := range map[string][]byte{
		c.CAFile:         ca.certPEM(),
		c.OtherCAFile:    other.certPEM(),
		c.ServerCertFile: serverCert,
		c.ServerKeyFile:  serverKey,
		c.ClientCertFile: clientCert,
		c.ClientKeyFile:  clientKey,
		c.peerCertFile:   peerCert,
		c.peerKeyFile:    peerKey,
		c.trustFile:      append(ca.certPEM(), peers.certPEM()...),
	} {
		if err := os.WriteFile(file, text, 0o600); err != nil {
			return nil, err
		}
	}
	c.pool.AddCert(ca.cert)
	c.client, err = tls.X509KeyPair(clientCert, clientKey)
	return c, err
}

// An authority signs certificates.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(name string) (*authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: name},
		NotBefore:             time.Now().Add(-72 * time.Hour),
		NotAfter:              time.Now().Add(72 * time.Hour),
		KeyUsage:              x509.KeyUsageCertSign,
		IsCA:                  true,
		BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	return &authority{cert: cert, key: key}, err
}

func (a *authority) certPEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw})
}

func (a *authority) issue(name string, hosts []string, end time.Time, usage x509.ExtKeyUsage) (cert, key []byte, err error) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		return nil, nil, err
	}
	template := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: name},
		NotBefore:    time.Now().Add(-48 * time.Hour),
		NotAfter:     end,
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{usage},
	}
	for _, host := range hosts {
		if ip := net.ParseIP(host); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, host)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, private.Public(), a.key)
	if err != nil {
		return nil, nil, err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return nil, nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}), nil
}
