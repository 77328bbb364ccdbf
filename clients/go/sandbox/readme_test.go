package sandbox_test

import (
	"os"
	"strings"
	"testing"
)

func TestTheReadmeShowsATestThatRuns(t *testing.T) {
	readme, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	shown, err := os.ReadFile("sandbox_test.go")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(readme), "```go\n"+string(shown)+"```\n") {
		t.Error("README.md does not show sandbox_test.go as it stands")
	}
}
