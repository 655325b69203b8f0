# Two commands on a fresh machine: make demo, make test.
PYTHON ?= python3
VENV   ?= .venv
# The exact versions that the figures in docs/ were made with; CONSTRAINTS= takes the newest that fit instead.
CONSTRAINTS ?= constraints.txt
PIP    := $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check $(if $(CONSTRAINTS),--constraint $(CONSTRAINTS))
BASE   := smollm2-135m-instruct

.PHONY: demo test check clean

demo: $(VENV)/.installed
	$(VENV)/bin/punnett fetch $(BASE)
	$(VENV)/bin/punnett run studies/date_doubt

test: $(VENV)/.installed-dev
	$(VENV)/bin/punnett fetch $(BASE)
	$(MAKE) --no-print-directory check
	$(VENV)/bin/pytest

check: $(VENV)/.installed-dev
	$(VENV)/bin/ruff check src tests benchmarks
	$(VENV)/bin/ruff format --check src tests benchmarks
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports --no-logo

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# torch first and by itself, so that a CPU build offered by the local index is taken
$(VENV)/.installed: $(VENV)/bin/python pyproject.toml $(CONSTRAINTS)
	$(PIP) torch==2.13.0
	$(PIP) --editable .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) .punnett
