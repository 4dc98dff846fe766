# Two commands: `make demo` and `make test`. Both set up everything they need in .venv the first time.
#
# The path to this folder may contain spaces, so every path here is relative, and tools are started through the
# interpreter (`python -m`) instead of through scripts that name the interpreter in their first line.

PYTHON ?= python3
PY := .venv/bin/python
PIP := $(PY) -m pip --disable-pip-version-check
export ROOT := $(CURDIR)

.PHONY: help demo test faults simulate corruption zoo mutants lint bench clean

help:
	@echo "make demo   run the main job: trade through a PostgreSQL outage and lose nothing"
	@echo "make test   linters, types, tests with coverage"
	@echo "make faults every kill point and every disk error, not only a share of them (some minutes)"
	@echo "make lint   linters and types only"
	@echo "make simulate  SEEDS=20000 simulated lives with every fault; SEED=n replays one"
	@echo "make corruption  damage 10,000 stores (MUTANTS=N: another number); none may pass in silence"
	@echo "make zoo    deliberate defects, one by one: the tests must catch each (some minutes)"
	@echo "make mutants  change the library in thousands of small ways and list what no test notices (over an hour);"
	@echo "            MODULES=\"envelope breaker\": only these; KEEP=folder: next time only what survived there;"
	@echo "            SAMPLE=120: at most so many changes of each module"
	@echo "make bench  measure beside other ways to do the same; BENCH=--quick takes under two minutes"
	@echo "make clean  remove what these made"
	@echo "Another interpreter than python3: make PYTHON=python3.12 test"

demo: .venv/.demo-installed
	.venv/bin/atb outbox demo

test: lint
	$(PY) -m pytest -n 2 --cov --cov-report=term

SEEDS ?= 20000
simulate: .venv/.test-installed
	$(PY) -m tests.simulation $(if $(SEED),--seed $(SEED),--seeds $(SEEDS))

MUTANTS ?= 10000
corruption: .venv/.test-installed
	$(PY) -m tests.corruption $(MUTANTS)

zoo: .venv/.test-installed
	$(PY) -m tests.zoo

mutants: .venv/.mutation-installed
	$(PY) -m tests.mutation $(if $(KEEP),--keep "$(KEEP)") $(if $(SAMPLE),--sample $(SAMPLE)) $(MODULES)

faults: .venv/.test-installed
	FAULTS=all $(PY) -m pytest -n 2 tests/faults

lint: .venv/.test-installed
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

# For docs/performance.md: make bench BENCH="--report docs/performance.md"
bench: .venv/.bench-installed
	$(PY) -m benchmarks $(BENCH)

# An editable install remembers where this folder is: after a move, or in a copy, start over.
ifneq ($(shell cat .venv/.root 2>/dev/null),$(CURDIR))
.PHONY: .venv/.root
endif

.venv/.root:
	@command -v "$(PYTHON)" >/dev/null || { \
	  echo "$(PYTHON) was not found: install Python 3.11 or newer, or name it: make PYTHON=/path/to/python3" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "$(PYTHON) is older than Python 3.11: name a newer one, for example: make PYTHON=python3.12" >&2; exit 1; }
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "$(PYTHON) cannot make virtual environments (on Debian and Ubuntu: apt-get install python3-venv)" >&2; exit 1; }
	rm -rf .venv
	"$(PYTHON)" -m venv .venv
	@printf '%s\n' "$$ROOT" > .venv/.root

.venv/.demo-installed: .venv/.root setup.cfg pyproject.toml
	$(PIP) install --quiet --editable '.[demo]'
	@touch $@

.venv/.bench-installed: .venv/.root setup.cfg pyproject.toml
	$(PIP) install --quiet --editable '.[bench]'
	@touch $@

# cli/ and integrations/ install as outbox.cli and outbox.integrations. The type checker does not follow the import hook
# of an editable install, so it gets the same shape from links.
.venv/.test-installed: .venv/.root setup.cfg pyproject.toml
	$(PIP) install --quiet --editable '.[test,dev]'
	@rm -rf .venv/typing && mkdir -p .venv/typing/outbox
	@ln -s ../../../cli ../../../integrations .venv/typing/outbox/
	@touch $@

.venv/.mutation-installed: .venv/.test-installed
	$(PIP) install --quiet --editable '.[mutation]'
	@touch $@

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage .coverage.*
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
