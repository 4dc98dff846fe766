# Two commands: `make demo` and `make test`. Both set up everything they need in .venv the first time.
#
# The path to this folder may contain spaces, so every path here is relative, and tools are started through the
# interpreter (`python -m`) instead of through scripts that name the interpreter in their first line.

PYTHON ?= python3
PY := .venv/bin/python
PIP := $(PY) -m pip --disable-pip-version-check
export ROOT := $(CURDIR)

.PHONY: help demo test fast t faults simulate corruption zoo mutants lint docs bench clean

# A line `##@ title` begins a group; `## text` behind a target describes it.
help: ## Show this list
	@awk 'BEGIN {FS = ":[^#]*## "} /^##@/ {printf "\n%s\n", substr($$0, 5)} \
	  /^[a-z]+:[^#]*## / {printf "  make %-11s %s\n", $$1, $$2}' Makefile
	@printf '\nAnother interpreter than python3: make PYTHON=python3.12 test\n'

##@ Try it

demo: .venv/.demo-installed ## Trade through two PostgreSQL outages and lose nothing
	.venv/bin/atb outbox demo

test: lint ## Linters, types, and all tests with coverage
	$(PY) -m pytest -n 2 -rs --cov --cov-report=term

##@ Work on it

# Compiling takes as long as testing: the bytecode is kept here also where the environment forbids it elsewhere.
# Stores in memory: these tests judge logic, for which a disk makes no difference.  `make test` has them on disk.
fast: lint ## Linters and the tests that need no server, process or disk waits
	@memory="$$(mktemp -d /dev/shm/outbox-fast-XXXXXX 2>/dev/null || mktemp -d)"; chmod 755 "$$memory"; trap 'rm -rf "$$memory"' EXIT; \
	  TMPDIR="$$memory" PYTHONDONTWRITEBYTECODE= PYTHONPYCACHEPREFIX="$$ROOT/.venv/bytecode" \
	  $(PY) -m pytest -n 2 -q -m "not slow" --basetemp="$$memory/t" tests/unit

t: .venv/.test-installed ## The tests that judge one module: make t T=scan
	@judges="$$($(PY) -m tests.mutation.plan $(T))" && $(PY) -m pytest -q $$judges

lint: .venv/.test-installed ## Linters and types only
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

docs: .venv/.docs-installed ## The documents as a site in build/site; a broken link is an error
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --quiet --strict
	@npm install --silent --no-audit --no-fund --prefix build/npm mermaid@11 >/dev/null 2>&1 && \
	  cp build/npm/node_modules/mermaid/dist/mermaid.min.js build/site/assets/ || \
	  echo "npm has no mermaid for us: browsers will load it from unpkg.com to draw the diagrams"

##@ Try to break it

SEEDS ?= 20000
simulate: .venv/.test-installed ## Simulated lives with every fault: SEEDS=20000; SEED=n replays one
	$(PY) -m tests.simulation $(if $(SEED),--seed $(SEED),--seeds $(SEEDS))

MUTANTS ?= 10000
SOUND ?= 20000
corruption: .venv/.test-installed ## Damage MUTANTS=10000 stores, open SOUND=20000 sound ones
	$(PY) -m tests.corruption $(MUTANTS)
	$(PY) -m tests.corruption.sound $(SOUND)

zoo: .venv/.test-installed ## Deliberate defects, one by one: the tests must catch each
	$(PY) -m tests.zoo

mutants: .venv/.mutation-installed ## Small changes that no test notices (over an hour): MODULES, KEEP, SAMPLE
	$(PY) -m tests.mutation $(if $(KEEP),--keep "$(KEEP)") $(if $(SAMPLE),--sample $(SAMPLE)) $(MODULES)

faults: .venv/.test-installed ## Every kill point and every disk error (some minutes)
	FAULTS=all $(PY) -m pytest -n 2 tests/faults

##@ Measure it

# For the documents: make bench BENCH="--report docs/explanation/performance.md"
bench: .venv/.bench-installed ## Beside other ways to do the same; BENCH=--quick is short
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

.venv/.docs-installed: .venv/.root setup.cfg pyproject.toml
	$(PIP) install --quiet --editable '.[docs]'
	@touch $@

.venv/.mutation-installed: .venv/.test-installed
	$(PIP) install --quiet --editable '.[mutation]'
	@touch $@

##@ Tidy up

clean: ## Remove what these made
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage .coverage.*
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
