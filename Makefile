# `make demo` and `make test` need nothing but Python 3.11 or later: they set up the rest.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

# The tests run side by side: a worker for each core, and a PostgreSQL for each worker. PYTEST_ARGS=-n0 runs them
# one after the other in one process, as a debugger needs it.
PYTEST_ARGS ?=
PYTEST      := $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadgroup

.DEFAULT_GOAL := help
.PHONY: help install demo run test check unit lint format pytest coverage matrix sshd chromium postgres clean

help: ## show this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 18

install: $(STAMP) ## make the virtual environment and install everything into it

$(STAMP): setup.cfg pyproject.toml requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "syncdata needs Python 3.11 or later; this is $$($(PYTHON) --version). Try: make PYTHON=python3.12 ..." >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) \
	  || { echo "Cannot make a virtual environment; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@echo "installing into $(VENV) ..."
	@$(BIN)/python -m pip install --quiet --upgrade pip
	@$(BIN)/python -m pip install -qq -r requirements.txt
	@touch $@

demo: $(STAMP) ## see production changes arrive in a local PostgreSQL (all of it throw-away)
	DATA_SYNC_CONFIG= $(BIN)/python manage.py syncdata_demo

run: $(STAMP) ## the admin on http://127.0.0.1:8000/ (needs DATA_SYNC_CONFIG)
	$(BIN)/python manage.py migrate
	$(BIN)/python manage.py runserver

test: lint pytest ## lint, types, migrations and all tests

check: $(STAMP) ## lint and the unit tests, in a minute or two
	@$(MAKE) --no-print-directory -j2 lint unit

unit: $(STAMP)
	$(PYTEST) tests/unit $(PYTEST_ARGS)

lint: $(STAMP) ## ruff, layers, mypy and makemigrations --check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	DATA_SYNC_CONFIG= $(BIN)/mypy
	DATA_SYNC_CONFIG= $(BIN)/python manage.py makemigrations --check --dry-run

pytest: $(STAMP) sshd chromium postgres ## the tests alone; PYTEST_ARGS="-k resync -x" goes to pytest
	$(PYTEST) $(PYTEST_ARGS)

# The processes that tests start are measured too, but for those that they kill.
COVERAGE_TESTS ?= tests/unit tests/integration
coverage: $(STAMP) sshd postgres ## branch coverage of changes, capture and apply; less than 95 % is an error
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest -n auto --maxprocesses 8 --dist loadgroup $(COVERAGE_TESTS) $(PYTEST_ARGS)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

matrix: $(STAMP) postgres ## all types and tables on PostgreSQL 14 to 18, in all 25 pairs
	$(BIN)/python tests/fetch_postgres.py
	$(PYTEST) --matrix $(PYTEST_ARGS)

# The SFTP tests run against a real OpenSSH server of their own. Where it cannot be installed they say so.
# The system's SSH service that comes with the package is switched off again: nobody asked for that one.
sshd:
	@PATH="$$PATH:/usr/sbin:/sbin"; command -v sshd >/dev/null && exit 0; \
	command -v apt-get >/dev/null || exit 0; \
	if [ "$$(id -u)" = 0 ]; then sudo=; elif sudo -n true 2>/dev/null; then sudo="sudo -n"; else exit 0; fi; \
	echo "installing openssh-server for the tests"; \
	$$sudo apt-get update -qq </dev/null >/dev/null; \
	if $$sudo env DEBIAN_FRONTEND=noninteractive \
	     apt-get install -y -qq --no-install-recommends openssh-server </dev/null >/dev/null; \
	then $$sudo systemctl disable --now ssh.service ssh.socket >/dev/null 2>&1 || true; \
	else echo "openssh-server could not be installed; the tests that need it will say so" >&2; fi

# The tests of the admin drive a real browser. Where it cannot be installed they say so.
chromium:
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null && exit 0; \
	command -v apt-get >/dev/null || exit 0; \
	if [ "$$(id -u)" = 0 ]; then sudo=; elif sudo -n true 2>/dev/null; then sudo="sudo -n"; else exit 0; fi; \
	echo "installing chromium for the tests"; \
	$$sudo apt-get update -qq </dev/null >/dev/null; \
	$$sudo env DEBIAN_FRONTEND=noninteractive \
	  apt-get install -y -qq --no-install-recommends chromium </dev/null >/dev/null \
	|| echo "chromium could not be installed; the tests that need it will say so" >&2

# Besides the PostgreSQL 18 of the virtual environment, the tests run on Debian's 15. Where it cannot be installed, 16
# takes its place, which the virtual environment has, too. The cluster that comes with the package is stopped and
# stays so: nobody asked for that one, and the tests make their own.
postgres:
	@test -x /usr/lib/postgresql/15/bin/initdb && exit 0; \
	command -v apt-get >/dev/null || exit 0; \
	if [ "$$(id -u)" = 0 ]; then sudo=; elif sudo -n true 2>/dev/null; then sudo="sudo -n"; else exit 0; fi; \
	test -d /etc/postgresql/15/main && had_cluster=yes; \
	echo "installing PostgreSQL 15 for the tests"; \
	$$sudo apt-get update -qq </dev/null >/dev/null; \
	$$sudo env DEBIAN_FRONTEND=noninteractive \
	  apt-get install -y -qq --no-install-recommends postgresql-15 </dev/null >/dev/null \
	|| { echo "PostgreSQL 15 could not be installed; the tests take 16 in its place" >&2; exit 0; }; \
	if [ -z "$$had_cluster" ] && [ -d /etc/postgresql/15/main ]; then \
	  $$sudo pg_ctlcluster 15 main stop >/dev/null 2>&1; \
	  $$sudo sed -i 's/^auto/manual/' /etc/postgresql/15/main/start.conf; fi

format: $(STAMP) ## rewrite the code as ruff would have it
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# A page that says what is not so fails like a test.
.PHONY: docs
test: docs
docs: $(STAMP) ## build the documentation into docs/_build/html; a warning is an error
	$(BIN)/sphinx-build -q -W --keep-going -n -b html -d docs/_build/doctrees docs docs/_build/html

# In full it takes some 25 minutes of a machine that does nothing else; BENCH_ARGS=--quick two or three.
.PHONY: bench
BENCH_ARGS ?= --write
bench: $(STAMP) sshd postgres ## measure beside PostgreSQL's own tools into docs/performance.md; BENCH_ARGS=--quick
	DATA_SYNC_CONFIG= $(BIN)/python -m benchmarks $(BENCH_ARGS)

clean: ## remove the virtual environment, caches and what the demo left
	rm -rf $(VENV) .demo .postgres build dist *.egg-info .mypy_cache .import_linter_cache .pytest_cache .ruff_cache .hypothesis \
	  .coverage .coverage.*
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
