package main

import (
	"bytes"
	"encoding/json"
	"os"
	"reflect"
	"testing"

	"chargeonce.dev/sandbox"
)

// The tour sees what tour.jsonl says, whatever the ids of the charges are.
func TestTheTourSeesWhatEveryClientSees(t *testing.T) {
	town, err := sandbox.Start()
	if err != nil {
		t.Fatal(err)
	}
	defer town.Stop()
	var out bytes.Buffer
	environment := map[string]string{"CHARGEONCE_COMMAND": town.Command, "CHARGEONCE_QUERY": town.Query}
	if err := run(t.Context(), &out, func(name string) string { return environment[name] }); err != nil {
		t.Fatal(err)
	}
	transcript, err := os.ReadFile("../../../tour.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	seen, expected := lines(t, out.Bytes()), lines(t, transcript)
	if len(seen) != len(expected) {
		t.Fatalf("%d steps instead of %d", len(seen), len(expected))
	}
	ids := map[any]any{}
	for number, line := range seen {
		if id, has := line["charge_id"]; has {
			if name, known := ids[id]; known {
				line["charge_id"] = name
			} else {
				ids[id] = expected[number]["charge_id"]
				line["charge_id"] = ids[id]
			}
		}
		if !reflect.DeepEqual(line, expected[number]) {
			t.Errorf("it saw %v\ninstead of %v", line, expected[number])
		}
	}
}

func lines(t *testing.T, text []byte) []map[string]any {
	t.Helper()
	var all []map[string]any
	for line := range bytes.Lines(text) {
		var one map[string]any
		if err := json.Unmarshal(line, &one); err != nil {
			t.Fatal(err)
		}
		all = append(all, one)
	}
	return all
}
