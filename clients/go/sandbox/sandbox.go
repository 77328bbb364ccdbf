// Package sandbox starts a bank and the servers of Chargeonce for tests, by the command "chargeonce sandbox".
package sandbox

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
)

// Sandbox is a bank, a command server and a query server over an empty journal. It ends with the program that started it.
type Sandbox struct {
	Command string // the command server's address, as host:port
	Query   string // the query server's
	Feed    string // the feed's
	Bank    string // the mock bank's, as a URL
	Log     string // the path of the servers' log
	process *exec.Cmd
}

// Start starts a sandbox and returns when all of it serves. The environment variable CHARGEONCE_SANDBOX names the command line;
// without it the one of this checkout is taken, or else the one on the PATH.
func Start() (*Sandbox, error) {
	words := strings.Fields(os.Getenv("CHARGEONCE_SANDBOX"))
	if len(words) == 0 {
		words = []string{program(), "sandbox"}
	}
	process := exec.Command(words[0], words[1:]...)
	process.Stderr = os.Stderr
	out, err := process.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := process.Start(); err != nil {
		return nil, err
	}
	started := &Sandbox{process: process}
	if err := json.NewDecoder(out).Decode(started); err != nil {
		return nil, fmt.Errorf("%s did not start: %w, %w", process, err, started.Stop())
	}
	return started, nil
}

// Stop ends the sandbox, and returns when it has ended.
func (s *Sandbox) Stop() error {
	if err := s.process.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	return s.process.Wait()
}

// program is the program "chargeonce" of this checkout, if it is set up.
func program() string {
	_, here, _, _ := runtime.Caller(0)
	ours := filepath.Join(filepath.Dir(here), "../../../.venv/bin/chargeonce")
	if _, err := os.Stat(ours); err == nil {
		return ours
	}
	return "chargeonce"
}
