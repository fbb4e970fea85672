# Each target does its own set-up: a virtual environment with the locked packages, and RabbitMQ where it is needed.
# The scripts say how; what is there already is not touched.

VENV := .venv
BIN := $(VENV)/bin
ENVIRONMENT := $(VENV)/.installed
PYTEST := $(BIN)/python -m pytest -q
TESTS := $(BIN)/python scripts/run_tests.py
# Made once and shared by all checkouts; root's own, so `make clean` leaves it alone.
RABBITMQ4 := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/warrener/rabbitmq4

MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help

# --- what to run -----------------------------------------------------------------------------------------------------

.PHONY: demo
demo: $(ENVIRONMENT) $(if $(filter embedded,$(BROKER)),,rabbitmq) ## publish through a broker that is killed, and account for every message (BROKER=embedded: without RabbitMQ)
	@$(BIN)/warrener demo $(if $(filter embedded,$(BROKER)),--embedded)

.PHONY: serve
serve: $(ENVIRONMENT) rabbitmq ## a private RabbitMQ and the ML producer service, to try with curl; BIND=host:port
	@$(BIN)/python scripts/serve.py $(if $(BIND),--bind $(BIND))

.PHONY: test
test: lint types layers ## everything below, then all tests but the very long ones, against a real RabbitMQ too
	@$(MAKE) rabbitmq graphviz
	@$(MAKE) fuzz SECONDS=60
	@$(MAKE) simulation
	@$(TESTS)

.PHONY: test-pure
test-pure: $(ENVIRONMENT) ## only the tests that need no broker
	@$(PYTEST) -n 2 -m "not full and not broker"

.PHONY: test-full
test-full: lint types layers ## all tests, with three times the examples of CI, and the mutation tests of the core
	@$(MAKE) rabbitmq graphviz chromium
	@HYPOTHESIS_PROFILE=full $(TESTS) --full
	@$(MAKE) planted-bugs
	@$(MAKE) mutation

.PHONY: test-rabbit4
test-rabbit4: $(ENVIRONMENT) rabbitmq4 ## the drivers and the embedded broker against RabbitMQ 4, from a Debian 13 in a folder (needs root)
	@$(PYTEST) --rabbitmq $(RABBITMQ4) tests/drivers/test_conformance.py tests/testing/test_against_rabbitmq.py tests/testing/test_rabbitmq.py

.PHONY: conformance
conformance: $(ENVIRONMENT) rabbitmq rabbitmq4 ## the drivers on this machine's RabbitMQ, on RabbitMQ 4 and on the embedded broker, as one matrix
	@$(PYTEST) --rabbitmq here --rabbitmq $(RABBITMQ4) tests/drivers/test_conformance.py tests/testing/test_drivers_on_embedded.py

.PHONY: mutation
mutation: $(ENVIRONMENT) graphviz ## plant small bugs in the pure core, and see that its tests notice (some twenty minutes)
	@$(BIN)/python scripts/mutation.py

.PHONY: simulation
simulation: SEEDS ?= 2000
simulation: $(ENVIRONMENT) ## simulate years of outages in virtual time, and judge every promise (SEEDS=2000; some two minutes on two processors)
	@$(BIN)/python -m tests.simulation --seeds $(SEEDS)

.PHONY: soak
soak: SEEDS ?= 20000
soak: FIRST ?= 100000
soak: $(ENVIRONMENT) ## the same with as many seeds as asked (SEEDS=20000), and others (FIRST=100000)
	@nice $(BIN)/python -m tests.simulation --seeds $(SEEDS) --first $(FIRST)

.PHONY: planted-bugs
planted-bugs: $(ENVIRONMENT) ## plant known bugs of other clients, and see that the simulation catches each
	@$(BIN)/python scripts/planted_bugs.py

.PHONY: lint
lint: $(ENVIRONMENT) ## ruff: rules and format
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check .

.PHONY: types
types: $(ENVIRONMENT) ## mypy and pyright, both strict
	@$(BIN)/mypy --no-error-summary
	@PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/pyright --pythonpath $(BIN)/python

.PHONY: layers
layers: $(ENVIRONMENT) ## import-linter: who may know whom
	@$(BIN)/lint-imports --no-logo >$(VENV)/layers.log || { cat $(VENV)/layers.log; exit 1; }

.PHONY: format
format: $(ENVIRONMENT) ## let ruff format and repair what it can
	@$(BIN)/ruff format --quiet .
	@$(BIN)/ruff check --fix .

.PHONY: bench
bench: $(ENVIRONMENT) rabbitmq ## measure against the peers; table, JSON, plots (QUICK=1: 3 minutes; PIN=1: broker and clients on CPUs of their own; DOCUMENT=1: into docs/performance.md)
	@$(BIN)/python -m benchmarks $(if $(QUICK),--quick) $(if $(PIN),--pin) $(if $(DOCUMENT),--document)

.PHONY: fuzz
fuzz: SECONDS ?= 1800
fuzz: $(ENVIRONMENT) ## throw octets at warrener.wire, guided by coverage (SECONDS=1800; `make test` has a minute of it)
	@$(BIN)/python tests/fuzz/wire.py --seconds $(SECONDS)

.PHONY: docs
docs: $(ENVIRONMENT) ## the pages as HTML, in docs/_build
	@$(BIN)/python -m sphinx -q -n -W --keep-going -b html docs docs/_build && echo "docs/_build/index.html"

.PHONY: lock
lock: $(ENVIRONMENT) ## write requirements-dev.lock anew from pyproject.toml
	@$(BIN)/python -m pip install --quiet uv
	@scripts/lock.sh $(BIN)/uv requirements-dev.lock

.PHONY: clean
clean: ## remove the environment and all caches
	@rm -rf $(VENV) build dist .coverage .coverage.* .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache

.PHONY: help
help: ## this list
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/\1|\2/p' Makefile | while IFS='|' read -r target does; do printf '  make %-12s %s\n' "$$target" "$$does"; done

# --- set-up ----------------------------------------------------------------------------------------------------------

$(ENVIRONMENT): pyproject.toml requirements-dev.lock scripts/venv.sh
	@scripts/venv.sh $(VENV)
	@touch $@

.PHONY: rabbitmq
rabbitmq:
	@scripts/rabbitmq.sh

.PHONY: rabbitmq4
rabbitmq4:
	@scripts/rabbitmq4.sh $(RABBITMQ4)

.PHONY: graphviz
graphviz:
	@scripts/graphviz.sh

.PHONY: chromium
chromium:
	@scripts/chromium.sh
