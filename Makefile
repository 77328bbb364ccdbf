# Two commands do everything on a machine with Python 3.11+ and make: `make run` and `make test`.
# `make` lists the targets. Nothing else is needed; what is missing is installed into .venv/.

PYTHON ?= python3
BIN := .venv/bin
# The contract may not break what it was at first, nor when it named the languages, nor what it was one commit ago.
CONTRACT_LANDED = $(shell git log --diff-filter=A --format=%H -- protos/charging/v1/query.proto 2>/dev/null | tail -n 1) \
	$(shell git log -S go_package --format=%H -- protos/charging/v1/query.proto 2>/dev/null | tail -n 1) \
	$(shell git rev-parse --verify --quiet HEAD~1)
BEFORE_LANGUAGES = $$(git grep --quiet go_package $$landed -- protos/charging || echo --config protos/before-languages.yaml)

.DEFAULT_GOAL := help
.PHONY: help install run certs postgres stuck deploy-files screenshots demo test test-banks test-clients simulate prove day bench lint format audit constraints clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

install: .venv/installed ## set up the environment in .venv/ (also done by every other target)

# The stubs of charging.v1 are generated while the package is installed, so a changed contract installs it again.
.venv/installed: constraints.txt pyproject.toml protos/build.py $(wildcard protos/charging/v1/*.proto)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or later is needed: make PYTHON=/path/to/python3.11"; exit 1; }
	@echo "Setting up .venv/ (about half a minute) ..."
	@test -x $(BIN)/pip || $(PYTHON) -m venv .venv # pip comes last: what was interrupted is made again
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r constraints.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

# Tests that need one of them are skipped where it is not here: a browser for the console, Prometheus for the alerts.
.PHONY: lacking
PROGRAMS = chromium:chromium prometheus:prometheus promtool:prometheus
lacking: ## the packages of Debian that some tests need, and that are not here
	@for each in $(PROGRAMS); do command -v $${each%%:*} >/dev/null || echo $${each##*:}; done | sort -u

run: install $(if $(TLS),certs) ## start the servers and the console, make one charge, show what happened; Ctrl-C stops (TLS=1: with mutual TLS)
	@$(BIN)/python -m demo.tour $(if $(TLS),--tls $(CERTS))

CERTS ?= data/certs
certs: install ## make a small authority's certificates for trying, in data/certs (AGAIN=1: replace those there)
	@$(BIN)/python -m rig.certs $(CERTS) $(if $(AGAIN),--again)

stuck: install ## start the servers with a charge in each situation in which it is stuck, to try the command line and the console with
	@$(BIN)/python -m rig.try_stuck

deploy-files: install ## the certificates and passwords that deploy/compose.yaml mounts, in data/deploy
	@$(BIN)/python -m rig.composed

postgres: install ## start a PostgreSQL with a standby to try things with, and say how; Enter kills its primary
	@$(BIN)/python -m rig.try_postgres

screenshots: install ## take the README's pictures of the console anew (needs Chromium)
	@$(BIN)/python -m demo.screenshots

demo: install ## the story of a crash between the bank and the journal, in a few seconds
	@$(BIN)/python -m demo.crash

# Half of the time tests wait for servers. The tests of one file share servers, and stay in one process.
test: install ## run all tests (CHROMIUM_REQUIRED=yes PROMETHEUS_REQUIRED=yes: none is skipped where these are missing)
	@$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

# Of the fakes that others wrote, one is from PyPI. Like the others it has a folder of its own, never beside the product.
build/banks-venv/installed: tests/banks/requirements.txt
	@echo "Setting up build/banks-venv/ (about half a minute) ..."
	@test -x build/banks-venv/bin/pip || $(PYTHON) -m venv build/banks-venv
	@build/banks-venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $<
	@touch $@

test-banks: install build/banks-venv/installed ## try the adapters at three fakes of Stripe that others wrote (needs Go and Node.js)
	@$(BIN)/python -m tests.banks.programs
	@$(BIN)/python -m pytest tests/banks

test-clients: install ## take the tour with the clients of every language whose tools are here (CLIENTS_REQUIRED=all: of all)
	@$(BIN)/python -m tests.clients.programs
	@$(BIN)/python -m tests.clients.tools
	@$(BIN)/python -m pytest tests/clients

SEEDS ?= 1000
simulate: install ## SEEDS=n: tell n simulated stories, after finding every planted bug
	@$(BIN)/python -m prove.simulation $(SEEDS) --canaries

MINUTES ?= 5
prove: install ## MINUTES=n: try to break the promise by every means there is, and print one table
	@$(BIN)/python -m prove $(MINUTES)

OPERATIONS ?= 100000
day: install ## OPERATIONS=n: a day of mixed operations, kills and bank faults, reconciled to 0.00; then planted differences
	@$(BIN)/python -m prove.day $(OPERATIONS)

# The benchmark's peers live in an environment of their own: none of them is ever beside the product.
build/bench-venv/installed: bench/requirements.txt
	@echo "Setting up build/bench-venv/ (about a minute) ..."
	@test -x build/bench-venv/bin/pip || $(PYTHON) -m venv build/bench-venv
	@build/bench-venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $<
	@touch $@

# The comparison alone needs the servers of Restate and Temporal, and a small run leaves them out.
NEEDS_SERVERS = $(if $(QUICK),,$(if $(ONLY),$(filter compare,$(ONLY)),compare))

bench: install build/bench-venv/installed ## measure against the peers (QUICK=1: in about a minute; ONLY=rebuild: a part); see docs/benchmark.md
	@$(if $(NEEDS_SERVERS),build/bench-venv/bin/python -m bench.programs)
	@build/bench-venv/bin/python -m bench $(if $(ONLY),--only $(ONLY))

lint: install ## check style, types, the contract and who imports whom
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/buf lint
	@$(BIN)/buf format --diff --exit-code
	@for landed in $(CONTRACT_LANDED); do $(BIN)/buf breaking --against ".git#ref=$$landed" $(BEFORE_LANGUAGES) || exit 1; done

format: install ## put the code and the contract into their form
	@$(BIN)/ruff check --fix --quiet . || true
	@$(BIN)/ruff format --quiet .
	@$(BIN)/buf format --write

build/audit-venv/installed: .ci/audit.txt
	@test -x build/audit-venv/bin/pip || $(PYTHON) -m venv build/audit-venv
	@build/audit-venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $<
	@touch $@

audit: build/audit-venv/installed ## look the pinned packages up among known vulnerabilities (needs the advisories' own host)
	@build/audit-venv/bin/pip-audit --strict --progress-spinner off --disable-pip --require-hashes -r constraints.txt || { echo "Not clean, or the source of advisories cannot be reached from here: see above"; exit 1; }

constraints: ## pin the dependencies anew (needs uv)
	uv pip compile --universal --no-strip-extras --generate-hashes --no-header --no-annotate --quiet pyproject.toml --all-extras --output-file constraints.txt
	uv pip compile --universal --no-strip-extras --generate-hashes --no-header --no-annotate --quiet -c constraints.txt pyproject.toml --extra console --output-file deploy/requirements.txt
	uv pip compile --universal --no-strip-extras --generate-hashes --no-header --no-annotate --quiet -c constraints.txt pyproject.toml bench/requirements.in --output-file bench/requirements.txt
	uv pip compile --universal --no-strip-extras --generate-hashes --no-header --no-annotate --quiet tests/banks/requirements.in --output-file tests/banks/requirements.txt
	uv pip compile --universal --no-strip-extras --generate-hashes --no-header --no-annotate --quiet .ci/audit.in --output-file .ci/audit.txt

clean: ## remove everything that was made here, but what is in data/
	rm -rf .venv build charging .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis .coverage
