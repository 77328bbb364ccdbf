// Package chargeonce holds what a Go client of the charging service needs beside the generated stubs: a connection with the
// service config, errors with their details, and calls that are repeated until they are decided.
package chargeonce

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	_ "embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
)

//go:generate buf generate --template ../buf.gen.yaml --output .. ../../../protos
//go:generate cp ../../service-config.json service-config.json

//go:embed service-config.json
var serviceConfig string

// Dial makes a connection to a server, such as "127.0.0.1:50051", in plaintext unless the options say otherwise: see TLS.
// It connects at the first call, and again by itself after every loss.
func Dial(target string, options ...grpc.DialOption) (*grpc.ClientConn, error) {
	reconnecting := backoff.DefaultConfig
	reconnecting.MaxDelay = 5 * time.Second // gRPC's own is two minutes, for which a call would wait after a long outage
	defaults := []grpc.DialOption{
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultServiceConfig(serviceConfig),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: reconnecting, MinConnectTimeout: 5 * time.Second}),
		// A watch sends nothing, so only a ping tells that its connection is dead. The server permits one every 5 s.
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 15 * time.Second, Timeout: 7 * time.Second}),
	}
	return grpc.NewClient(target, append(defaults, options...)...)
}

// TLS gives the option for TLS. The folder holds ca.crt, the authorities to trust, and, for a client that shows a certificate,
// tls.crt and tls.key.
func TLS(folder string) (grpc.DialOption, error) {
	authorities, err := os.ReadFile(filepath.Join(folder, "ca.crt"))
	if err != nil {
		return nil, err
	}
	config := &tls.Config{RootCAs: x509.NewCertPool()}
	if !config.RootCAs.AppendCertsFromPEM(authorities) {
		return nil, fmt.Errorf("no certificate in %s", filepath.Join(folder, "ca.crt"))
	}
	own, err := tls.LoadX509KeyPair(filepath.Join(folder, "tls.crt"), filepath.Join(folder, "tls.key"))
	if err == nil {
		config.Certificates = []tls.Certificate{own}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return grpc.WithTransportCredentials(credentials.NewTLS(config)), nil
}

// Token gives the option for the bearer token in a file. The file is read at every call, so that the token may be replaced.
// Dial returns an error if it is not beside TLS.
func Token(file string) grpc.DialOption { return grpc.WithPerRPCCredentials(bearer(file)) }

// bearer is the path of a file with a token.
type bearer string

// GetRequestMetadata implements credentials.PerRPCCredentials.
func (b bearer) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	token, err := os.ReadFile(string(b))
	if err != nil {
		return nil, err
	}
	return map[string]string{"authorization": "Bearer " + strings.TrimSpace(string(token))}, nil
}

// RequireTransportSecurity implements credentials.PerRPCCredentials: a token is never sent in plaintext.
func (bearer) RequireTransportSecurity() bool { return true }
