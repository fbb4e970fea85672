# Each target does its own set-up: the part of the virtual environment that it needs, and RabbitMQ where it needs one.
# The scripts say how; what is there already is not touched, and nothing outside of this folder and the user's cache is.

VENV := .venv
BIN := $(VENV)/bin
CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/warrener
RABBITMQ4 := $(CACHE)/rabbitmq4
REPORTS := build/tests
PYTEST := $(BIN)/python -m pytest -q
#: The locked packages of these groups of pyproject.toml, in $(VENV).
NEEDS = @scripts/venv.sh $(VENV)
#: The output of each target in one piece, where this make can do that.
APART := $(if $(filter output-sync,$(.FEATURES)),--output-sync=target)

# The programs that the scripts unpacked, after the machine's own.
export PATH := $(PATH):$(CACHE)/bin:$(CACHE)/rabbitmq/usr/lib/rabbitmq/bin:$(CACHE)/rabbitmq/usr/lib/erlang/bin
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help

# --- to try it out ---------------------------------------------------------------------------------------------------

.PHONY: demo
demo: ## publish through a broker that is killed, and account for every message (BROKER=embedded: without RabbitMQ)
	$(NEEDS) run
ifeq ($(BROKER),embedded)
	@echo "Broker: the embedded one, as asked"
	@$(BIN)/warrener demo --embedded
else
	@scripts/rabbitmq.sh --which && embedded= || embedded=--embedded; $(BIN)/warrener demo $$embedded
endif

.PHONY: cluster-demo
cluster-demo: ## publish to three nodes that are killed, frozen and put into maintenance in turn, and account for every message; two minutes
	$(NEEDS) run test bench
	@scripts/rabbitmq.sh
	@$(BIN)/python -m tests.cluster --demo

.PHONY: serve
serve: ## a private RabbitMQ and the ML producer service, to try with curl; BIND=host:port
	$(NEEDS) run serve
	@scripts/rabbitmq.sh
	@$(BIN)/python scripts/serve.py $(if $(BIND),--bind $(BIND))

.PHONY: broker
broker: ## a private RabbitMQ alone; prints its URL, and ends with Ctrl-C (PORT=5673; default: 5672 if it is free, otherwise another port)
	$(NEEDS) run
	@scripts/rabbitmq.sh
	@$(BIN)/python scripts/serve.py --broker-only $(PORT)

# --- the loop --------------------------------------------------------------------------------------------------------

.PHONY: check
check: ## lint, types, layers, and the tests that need no broker with few examples; a minute
	$(NEEDS) run test check
	@rm -rf $(REPORTS)
	@$(MAKE) -j2 -k $(APART) _pure lint types layers DEPTH=check PROFILE=quick; $(BIN)/python scripts/count_tests.py $$? $(REPORTS)

.PHONY: test
test: ## all tests but the very long ones, against a real RabbitMQ too, 20 s of fuzzing and 500 seeds; five minutes
	$(NEEDS) run test check
	@scripts/rabbitmq.sh
	@scripts/postgresql.sh
	@rm -rf $(REPORTS)
	@$(MAKE) -j3 -k $(APART) _pure _broker types lint layers fuzz simulation SECONDS=20 SEEDS=500; $(BIN)/python scripts/count_tests.py $$? $(REPORTS)

.PHONY: test-full
test-full: ## everything: all copies, 1,000 examples, 2,000 seeds, 5 minutes of fuzzing, planted bugs, mutants, the operations kit
	$(NEEDS) run test check docs deep
	@scripts/rabbitmq.sh
	@scripts/postgresql.sh
	@scripts/program.sh chromium || echo "Going on without Chromium: the tests of the status page are skipped." >&2
	@scripts/program.sh promtool || echo "Going on without promtool: the alerts' tests are skipped." >&2
	@rm -rf $(REPORTS)
	@status=0; \
	$(MAKE) -j3 -k $(APART) _pure _broker types lint layers fuzz DEPTH=full PROFILE=full SECONDS=300 || status=1; \
	$(MAKE) -k simulation planted-bugs mutation || status=1; \
	$(BIN)/python scripts/count_tests.py $$status $(REPORTS)

# What a test is marked with decides where it runs; see CONTRIBUTING.md.
DEPTH := test
SELECT_check := not full and not slow
SELECT_test := not full
SELECT_full := slow or not slow

.PHONY: _pure
_pure:
	@$(if $(PROFILE),HYPOTHESIS_PROFILE=$(PROFILE)) $(PYTEST) -n 2 -m "not broker and ($(SELECT_$(DEPTH)))" --junit-xml=$(REPORTS)/pure.xml

# One test after another, on one private RabbitMQ that they share.
.PHONY: _broker
_broker:
	@$(if $(PROFILE),HYPOTHESIS_PROFILE=$(PROFILE)) $(PYTEST) -m "broker and ($(SELECT_$(DEPTH)))" --junit-xml=$(REPORTS)/broker.xml

.PHONY: lint
lint: ## ruff: rules and format
	$(NEEDS) check
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check .

.PHONY: types
types: ## mypy and pyright, both strict
	$(NEEDS) test check
	@$(BIN)/mypy --no-error-summary
	@PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/pyright --pythonpath $(BIN)/python

.PHONY: layers
layers: ## import-linter: who may know whom
	$(NEEDS) check
	@$(BIN)/lint-imports --no-logo >$(VENV)/layers.log || { cat $(VENV)/layers.log; exit 1; }

.PHONY: format
format: ## let ruff format and repair what it can
	$(NEEDS) check
	@$(BIN)/ruff format --quiet .
	@$(BIN)/ruff check --fix .

.PHONY: test-pythons
test-pythons: ## the tests of `make test` on each Python from 3.11 to 3.14 that this machine has (uv or pyenv)
	@scripts/pythons.sh

.PHONY: test-rabbit4
test-rabbit4: rabbitmq4 ## the drivers and the embedded broker against RabbitMQ 4, from a Debian 13 in a folder (needs root)
	$(NEEDS) run test
	@$(PYTEST) --rabbitmq $(RABBITMQ4) tests/drivers/test_conformance.py tests/testing/test_against_rabbitmq.py tests/testing/test_rabbitmq.py

.PHONY: conformance
conformance: rabbitmq4 ## the drivers on this machine's RabbitMQ, on RabbitMQ 4 and on the embedded broker, as one matrix
	$(NEEDS) run test
	@scripts/rabbitmq.sh
	@$(PYTEST) --rabbitmq here --rabbitmq $(RABBITMQ4) tests/drivers/test_conformance.py tests/testing/test_drivers_on_embedded.py

# --- what runs as long as asked --------------------------------------------------------------------------------------

.PHONY: fuzz
fuzz: SECONDS ?= 1800
fuzz: ## throw bytes at what takes them from outside, guided by coverage (SECONDS=1800, divided among the targets)
	$(NEEDS) run test
	@$(BIN)/python -m tests.fuzz --seconds $(SECONDS)

.PHONY: hostile-broker
hostile-broker: EACH ?= 3
hostile-broker: ## attack a producer as a hostile broker, in every way, on both drivers and both event loops (EACH=3 seconds; ten minutes)
	$(NEEDS) run test
	@$(BIN)/python -m tests.hostile --seconds $(EACH)

.PHONY: simulation
simulation: SEEDS ?= 2000
simulation: FIRST ?= 0
simulation: ## simulate years of outages in virtual time, and judge every promise (SEEDS=2000 FIRST=0)
	$(NEEDS) run test
	@$(BIN)/python -m tests.simulation --seeds $(SEEDS) --first $(FIRST)

.PHONY: soak
soak: MINUTES ?= 60
soak: ## a producer under random faults of a real RabbitMQ for an hour, its account, memory and descriptors; then a day of virtual time (MINUTES=60)
	$(NEEDS) run test bench
	@scripts/rabbitmq.sh
	@$(BIN)/python -m tests.soak --minutes $(MINUTES)
	@$(MAKE) simulation SEEDS=720 FIRST=200000

.PHONY: cluster
cluster: MINUTES ?= 60
cluster: CLIENT ?= warrener
cluster: ## three nodes of RabbitMQ under random faults, an account, and the time without service (MINUTES=60 SEED=1 CLIENT=aio-pika SEPARATE=1)
	$(NEEDS) run test bench
	@scripts/rabbitmq.sh
	@$(BIN)/python -m tests.cluster --minutes $(MINUTES) --client $(CLIENT) $(if $(SEED),--seed $(SEED)) $(if $(SEPARATE),--separate)

.PHONY: hostile-http
hostile-http: SECONDS ?= 6
hostile-http: ## attack the service with hostile HTTP clients, kind after kind, and say what each got (SECONDS=6 for each kind)
	$(NEEDS) run serve test
	@$(BIN)/python -m tests.ml.hostile --seconds $(SECONDS)

.PHONY: planted-bugs
planted-bugs: ## plant known bugs of other clients, and see that the simulation catches each
	$(NEEDS) run test
	@$(BIN)/python scripts/planted_bugs.py

.PHONY: mutation
mutation: ## plant small bugs in the pure core, and see that its tests notice (some twenty minutes)
	$(NEEDS) run test deep
	@$(BIN)/python scripts/mutation.py

.PHONY: outbox-kills
outbox-kills: SQLITE ?= 1000
outbox-kills: POSTGRES ?= 200
outbox-kills: ## kill the process that fills an outbox, again and again, and settle the account (SQLITE=1000 POSTGRES=200; an hour)
	$(NEEDS) run test
	@scripts/rabbitmq.sh
	@scripts/postgresql.sh
	@$(BIN)/python -m tests.outbox.crashes --sqlite $(SQLITE) --postgres $(POSTGRES)

.PHONY: bench-outbox
bench-outbox: ## measure the outbox beside the plain databases and beside the producer alone
	$(NEEDS) run test bench
	@scripts/rabbitmq.sh
	@scripts/postgresql.sh
	@$(BIN)/python benchmarks/outbox.py

.PHONY: bench
bench: ## measure against the peers; table, JSON, plots (QUICK=1: 3 minutes; PIN=1: broker and clients on CPUs of their own; DOCUMENT=1: into docs/performance.md)
	$(NEEDS) run test bench
	@scripts/rabbitmq.sh
	@$(BIN)/python -m benchmarks $(if $(QUICK),--quick) $(if $(PIN),--pin) $(if $(DOCUMENT),--document)

# --- around it -------------------------------------------------------------------------------------------------------

.PHONY: docs
docs: ## the pages as HTML, in docs/_build
	$(NEEDS) run test docs
	@$(BIN)/python -m sphinx -q -n -W --keep-going -b html docs docs/_build && echo "docs/_build/index.html"

.PHONY: news
news: ## what the fragments in newsfragments/ will add to CHANGELOG.md
	$(NEEDS) docs
	@$(BIN)/towncrier build --draft --version Unreleased

.PHONY: lock
lock: ## write requirements-dev.lock anew from pyproject.toml
	$(NEEDS) run
	@$(BIN)/python -m pip install --quiet uv
	@scripts/lock.sh $(BIN)/uv requirements-dev.lock

.PHONY: clean
clean: ## remove the environment and all caches of this folder; what was unpacked is in $(CACHE)
	@rm -rf $(VENV) $(VENV).lock build dist .coverage .coverage.* .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache

.PHONY: help
help: ## this list
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/\1|\2/p' Makefile | while IFS='|' read -r target does; do printf '  make %-12s %s\n' "$$target" "$$does"; done

.PHONY: postgresql
postgresql:
	@scripts/postgresql.sh

.PHONY: rabbitmq4
rabbitmq4:
	@scripts/rabbitmq4.sh $(RABBITMQ4)
