# Needs Python 3.11 or newer and make. Every target installs what else it needs.
#
#   make demo            a server, a backup, a change, a restore; SOURCE=DIR
#   make serve           a server on ./staddle-data
#   make cluster         three servers, PostgreSQL, a replicated store: one of
#                        each is killed during a backup, and restores compared
#
#   make test            the tests, in parallel
#                        PYTHON=python3.13: with that one; ARGS="-k restore": some
#   make test-all        all tests with all their cases, also the slow ones
#   make check           format, lint, types, import rule, generated code, protos
#   make check-deploy    server/deploy: Compose, Helm, Kubernetes, Envoy, nginx
#   make format          format the code and apply the linter's fixes
#   make coverage        the lines that the tests reach; ARGS="tests/store": of some
#   make protos          generate client/staddle/v1 from the protos
#   make protos-keep     renew the stored image of the protos, for make check
#   make interop         clients in other languages: grpcurl, buf, Go, Node, Java
#   make clean           remove environments, caches and build output, but no data
#
#   make crash           servers killed at every step; ARGS="--runs 1000 --seed 7"
#   make power           power cuts after every step of a recorded run
#                        ARGS="--operations 12 --random 3 --seed 7"
#   make together        clock, disk, network and clients fail together
#                        ARGS="--runs 100 --seed 7"
#   make chaos           three servers, their database and store fail under load
#                        ARGS="--minutes 10 --seed 7"; needs PostgreSQL
#   make fuzz            hostile input; ARGS="frame --runs 1000000 --seed 1"
#   make big             a large tree and a large file through it all, with kills
#
#   make bench           speed and size against restic, borg, rustic and bupstash
#                        ARGS="--help" lists the sizes
#   make bench-full      the same at the sizes of docs/performance.md: takes hours
#                        ARGS="--tree DIR --libraries DIR": with real files
#   make bench-growth    the same work at several sizes: what grows; ARGS="--full"
#   make bench-report    docs/performance.md from the newest results, or ARGS="FILE"
#   make bench-memory    the server's memory with eight clients; ARGS="--streams 24"
#   make bench-clients   1 to 256 uploads at once, and a small call beside them
#                        ARGS="--count 64 --way thin"
#   make bench-servers   the same uploads against one server, and between two
#   make bench-cluster   one to three servers on PostgreSQL and S3, against both raw
#   make bench-entries   processor time for each tiny file; ARGS="--files 100000"
#   make bench-index     bytes and speed of the chunk index; ARGS="--rows 1e7"
#   make bench-pages     how long a page of the dashboard takes; ARGS="--help"
#   make bench-wire      one stream in and out, and what gRPC carries; ARGS="--tls"
#   make bench-profile   where processor time goes; needs root, or ptrace_scope 0
#   make bench-peers     install these (Debian, as root, with cargo; into .tools/)

SHELL := /bin/sh
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

# --- Python
CANDIDATES := python3.14 python3.13 python3.12 python3.11 python3 python
RECENT := import sys; sys.exit(sys.version_info < (3, 11))
# The first version that runs; of several of that version, one that is optimised and makes virtual environments. A name on PATH is not
# enough: it may be a shim without an interpreter behind it.
ifdef PYTHON
  BASE_PYTHON := $(shell $(PYTHON) -c '$(RECENT)' >/dev/null 2>&1 && echo $(PYTHON))
  SUFFIX := -$(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
else
  BASE_PYTHON := $(shell IFS=:; for each in $(CANDIDATES); do first=; for directory in $$PATH; do \
    found=$$directory/$$each; "$$found" -c '$(RECENT)' >/dev/null 2>&1 || continue; \
    if "$$found" client/staddle/_base/interpreter.py && "$$found" -c 'import ensurepip, venv' 2>/dev/null; then echo "$$found"; exit; fi; first=$${first:-$$found}; done; \
    if [ -n "$$first" ]; then echo "$$first"; exit; fi; done)
endif
# CONSTRAINTS=.ci/oldest.txt installs those versions, into a separate environment.
ifdef CONSTRAINTS
  SUFFIX := $(SUFFIX)-$(basename $(notdir $(CONSTRAINTS)))
endif

VENV ?= .venv$(SUFFIX)
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PROTOS_VENV := .venv-protos
PROTOS_STAMP := $(PROTOS_VENV)/.installed
DEPLOY_VENV := .venv-deploy
DEPLOY_STAMP := $(DEPLOY_VENV)/.installed
PROTOS := $(wildcard protos/staddle/v1/*.proto)
PIP := -m pip --quiet --disable-pip-version-check --no-input
SOURCE ?= .
ARGS ?=
LISTEN ?= 127.0.0.1:7443
HTTP ?= 127.0.0.1:7480

.PHONY: help
help:
	@sed -n '/^#   make/,/^SHELL/{/^#/!d;s/^# \{0,3\}//p}' Makefile

.PHONY: python
python:
	@if [ -z "$(BASE_PYTHON)" ]; then \
	  echo "Python 3.11 or newer is needed$(if $(PYTHON), and $(PYTHON) is not: it is older or does not run,, and none of these is: $(CANDIDATES))." >&2; \
	  echo "On Debian and Ubuntu: apt-get install python3 python3-venv; or name one: make PYTHON=/path/to/python3.13 ..." >&2; exit 1; fi
	@if ! $(BASE_PYTHON) -c 'import ensurepip, venv' 2>/dev/null; then \
	  version=$$($(BASE_PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])'); \
	  echo "$(BASE_PYTHON) cannot make virtual environments: it has no ensurepip." >&2; \
	  echo "On Debian and Ubuntu: apt-get install python$$version-venv" >&2; exit 1; fi

# --- environments
# One of another interpreter is made anew: half of each would not run.
REAL := import os, sys; print(os.path.realpath(sys.executable))
make_venv = $(BASE_PYTHON) -m venv \
  $$([ "$$($(1)/bin/python -c '$(REAL)' 2>/dev/null)" = "$$($(BASE_PYTHON) -c '$(REAL)')" ] || echo --clear) $(1)
# The version is in the server's package; an installation keeps the version from when it was made.
$(STAMP): pyproject.toml server/staddle_server/__init__.py $(CONSTRAINTS) | python
	@echo "Setting up $(VENV) with $$($(BASE_PYTHON) --version) (once; about a minute) ..."
	@$(call make_venv,$(VENV))
	@# Dependency groups need pip 25.1.
	@$(BIN)/python $(PIP) install --upgrade 'pip>=25.1'
	@$(BIN)/python $(PIP) install --editable '.[server,parity,postgres,s3,lock,http,otel,apprise]' --group dev $(if $(CONSTRAINTS),--constraint $(CONSTRAINTS))
	@touch $@

$(PROTOS_STAMP): pyproject.toml | python
	@echo "Setting up $(PROTOS_VENV), the generators of client/staddle/v1 ..."
	@$(call make_venv,$(PROTOS_VENV))
	@$(PROTOS_VENV)/bin/python $(PIP) install --upgrade 'pip>=25.1'
	@$(PROTOS_VENV)/bin/python $(PIP) install --group protos
	@touch $@

$(DEPLOY_STAMP): pyproject.toml | python
	@echo "Setting up $(DEPLOY_VENV), which reads the files in server/deploy ..."
	@$(call make_venv,$(DEPLOY_VENV))
	@$(DEPLOY_VENV)/bin/python $(PIP) install --upgrade 'pip>=25.1'
	@$(DEPLOY_VENV)/bin/python $(PIP) install --group deploy
	@touch $@

.PHONY: venv
venv: $(STAMP)

# --- to use
.PHONY: demo
demo: $(STAMP)
	@$(BIN)/python -m staddle_server.demo --source "$(SOURCE)"

.PHONY: cluster
cluster: $(STAMP)
	@PYTHONPATH=tests/support $(BIN)/python tests/cluster/cluster_run.py $(ARGS)

.PHONY: serve
serve: $(STAMP)
	@$(BIN)/staddle-server serve --data staddle-data --listen $(LISTEN) --http $(HTTP)

# --- to work on it
# Without this, each worker compiles all tests in each run, which takes 8 s of CPU.
unexport PYTHONDONTWRITEBYTECODE

# A run makes and syncs a hundred thousand files: in memory where it has room, and with test-all on a disk.
IN_MEMORY = $(shell ! grep -q ' /dev/shm tmpfs [^ ]*\(noexec\|nodev\)' /proc/mounts 2>/dev/null && \
  df -kP /dev/shm 2>/dev/null | awk 'NR == 2 && $$1 == "tmpfs" && $$4 > 4194304 { print "PYTEST_DEBUG_TEMPROOT=/dev/shm" }')

.PHONY: test
test: $(STAMP)
	@$(IN_MEMORY) $(BIN)/python -m pytest -n auto --dist loadgroup -m "not slow" -o tmp_path_retention_policy=failed $(ARGS)

.PHONY: test-all
test-all: $(STAMP)
	@STADDLE_TEST_EXTENT=all $(BIN)/python -m pytest -n auto --dist loadgroup $(ARGS)

# Reports even if tests fail: some bounds of memory and time do not hold while lines are counted.
COVERAGE = $(BIN)/python -m coverage
.PHONY: coverage
coverage: $(STAMP)
	@rm -rf build/coverage && mkdir -p build/coverage
	@$(IN_MEMORY) $(COVERAGE) run -m pytest -n auto --dist loadgroup -m "not slow" -o tmp_path_retention_policy=failed $(ARGS); \
	  tests=$$?; $(COVERAGE) combine --quiet && $(COVERAGE) report && $(COVERAGE) html --quiet --directory build/coverage/html \
	  && echo "Line by line: build/coverage/html/index.html" && exit $$tests

.PHONY: check
check: $(STAMP) $(PROTOS_STAMP)
	@echo "format";        $(BIN)/ruff format --quiet --check .
	@echo "lint";          $(BIN)/ruff check --quiet .
	@echo "types";         $(BIN)/mypy --no-error-summary
	@echo "import rule";   $(BIN)/python -m pytest --quiet --no-header tests/test_rooms.py
	@echo "generated code"; $(MAKE) protos-drift
	@echo "protos";        $(BIN)/buf lint protos
	@echo "protocol kept"; $(MAKE) protos-kept
	@echo "All checks passed."

# nginx reads the certificates that its configuration names.
.PHONY: check-deploy
check-deploy: $(STAMP) $(DEPLOY_STAMP)
	@rm -rf build/deploy && mkdir -p build && $(BIN)/staddle-server cert --dir build/deploy --host server1 >/dev/null
	@$(DEPLOY_VENV)/bin/python tests/deploy/deploy_check.py build/deploy

.PHONY: format
format: $(STAMP)
	@$(BIN)/ruff format --quiet .
	@$(BIN)/ruff check --quiet --fix .

GENERATE = $(PROTOS_VENV)/bin/python -m grpc_tools.protoc --proto_path=protos \
  --plugin=protoc-gen-mypy=$(PROTOS_VENV)/bin/protoc-gen-mypy \
  --plugin=protoc-gen-mypy_grpc=$(PROTOS_VENV)/bin/protoc-gen-mypy_grpc

# The proto path is the import path, so the output of protoc is used unchanged.
.PHONY: protos
protos: $(PROTOS_STAMP)
	@$(GENERATE) --python_out=client --grpc_python_out=client --mypy_out=quiet:client --mypy_grpc_out=quiet:client $(PROTOS)
	@echo "Generated client/staddle/v1 from protos/."

.PHONY: protos-drift
protos-drift: $(PROTOS_STAMP)
	@rm -rf build/protos && mkdir -p build/protos
	@$(GENERATE) --python_out=build/protos --grpc_python_out=build/protos --mypy_out=quiet:build/protos --mypy_grpc_out=quiet:build/protos $(PROTOS)
	@cp client/staddle/v1/__init__.py build/protos/staddle/v1/
	@diff -r --exclude=__pycache__ build/protos/staddle/v1 client/staddle/v1 \
	  || { echo "client/staddle/v1 is not what the protos give: run make protos" >&2; exit 1; }

# What the protos must stay compatible with: an image of them, renewed by `make protos-keep` alone.
PROTOS_KEPT := tests/golden/protos/staddle-v1.binpb
.PHONY: protos-kept
protos-kept: $(STAMP)
	@$(BIN)/buf breaking protos --against $(PROTOS_KEPT) || { \
	  echo "The protos break clients made from $(PROTOS_KEPT): add fields instead, or run make protos-keep if the break is meant" >&2; \
	  exit 1; }

.PHONY: protos-keep
protos-keep: $(STAMP)
	@mkdir -p $(dir $(PROTOS_KEPT))
	@$(BIN)/buf build protos --exclude-source-info --output $(PROTOS_KEPT)
	@echo "Kept the protos in $(PROTOS_KEPT): from now on changes must be compatible with them."

.PHONY: bench
bench: $(STAMP)
	@$(BIN)/python -m benchmarks.compare $(ARGS)

.PHONY: bench-full
bench-full: $(STAMP)
	@$(BIN)/python -m benchmarks.compare --full $(ARGS)

.PHONY: bench-growth
bench-growth: $(STAMP)
	@$(BIN)/python -m benchmarks.growth $(ARGS)

.PHONY: bench-report
bench-report: $(STAMP)
	@$(BIN)/python $(PIP) install --group bench
	@$(BIN)/python -m benchmarks.report $(ARGS)

.PHONY: bench-memory
bench-memory: $(STAMP)
	@$(BIN)/python -m benchmarks.memory $(ARGS)

.PHONY: bench-clients
bench-clients: $(STAMP)
	@$(BIN)/python -m benchmarks.many_uploads $(ARGS)

.PHONY: bench-servers
bench-servers: $(STAMP)
	@$(BIN)/python -m benchmarks.two_servers $(ARGS)

.PHONY: bench-cluster
bench-cluster: $(STAMP)
	@PYTHONPATH=tests/support $(BIN)/python -m benchmarks.cluster $(ARGS)

.PHONY: bench-index
bench-index: $(STAMP)
	@PYTHONPATH=tests/support $(BIN)/python -m benchmarks.chunk_rows $(ARGS)

.PHONY: bench-pages
bench-pages: $(STAMP)
	@PYTHONPATH=tests/support:tests/api $(BIN)/python -m benchmarks.pages $(ARGS)

.PHONY: bench-wire
bench-wire: $(STAMP)
	@$(BIN)/python -m benchmarks.streams $(ARGS)

.PHONY: bench-entries
bench-entries: $(STAMP)
	@$(BIN)/python -m benchmarks.entries $(ARGS)

.PHONY: bench-profile
bench-profile: $(STAMP)
	@$(BIN)/python $(PIP) install --group bench
	@$(BIN)/python -m benchmarks.cpu $(ARGS)

BORG := .tools/borg
# borg has no wheels: it is built here against these libraries.
BORG_NEEDS := gcc pkg-config libacl1-dev liblz4-dev libssl-dev libxxhash-dev libzstd-dev
# rustic and bupstash are built from crates.io.
CARGO_ROOT := .tools/cargo
BUPSTASH_NEEDS := libsodium-dev
.PHONY: bench-peers
bench-peers: python
	@apt-get update -qq
	@apt-get install -y -qq restic $(BORG_NEEDS) $(BUPSTASH_NEEDS) >/dev/null
	@$(BASE_PYTHON) -m venv $(BORG)
	@$(BORG)/bin/python $(PIP) install 'borgbackup>=1.4,<1.5'
	@command -v cargo >/dev/null || { echo "cargo is not installed: rustic and bupstash are left out (https://rustup.rs)" >&2; exit 1; }
	@cargo install --quiet --locked --root $(CARGO_ROOT) rustic-rs bupstash
	@restic version && $(BORG)/bin/borg --version && $(CARGO_ROOT)/bin/rustic --version && $(CARGO_ROOT)/bin/bupstash version

.PHONY: big
big: $(STAMP)
	@$(BIN)/python -m benchmarks.big $(ARGS)

.PHONY: crash
crash: $(STAMP)
	@PYTHONPATH=tests/support $(BIN)/python tests/crash/crash_run.py $(ARGS)

.PHONY: power
power: $(STAMP)
	@PYTHONPATH=tests/support $(BIN)/python tests/crash/crash_power.py $(ARGS)

.PHONY: together
together: $(STAMP)
	@PYTHONPATH=tests/support $(BIN)/python tests/crash/crash_together.py $(ARGS)

.PHONY: chaos
chaos: $(STAMP)
	@PYTHONPATH=tests/support:tests/crash $(BIN)/python tests/chaos/chaos_run.py $(ARGS)

.PHONY: fuzz
fuzz: $(STAMP)
	@$(BIN)/python -m tests.fuzz $(ARGS)

.PHONY: interop
interop: $(STAMP)
	@STADDLE_TEST_REQUIRE=all $(BIN)/python -m pytest tests/interop $(ARGS)

.PHONY: clean
clean:
	@rm -rf .venv .venv-* .tools build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	@find client server tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
	@echo "Removed environments and caches; staddle-data and demo-data are left alone."
