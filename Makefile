# Two commands, on a machine that has only Python 3.11 or newer and make:
#   make demo   plan and train a small task, and write the report
#   make test   lint, type check and the whole test suite
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt

.PHONY: demo test clean

demo: $(VENV)/demo.stamp
	$(BIN)/rightbatch plan digits --train --out demo
	@echo "The report: file://$(CURDIR)/demo/report.html"
	@echo "For the commands above, first: . $(BIN)/activate"

test: $(VENV)/test.stamp
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/python -m pytest -n auto --dist loadfile

$(VENV)/demo.stamp: $(BIN)/python pyproject.toml constraints.txt
	@echo "installing into $(VENV), a minute or two the first time"
	@$(INSTALL) -e '.[report,examples]'
	@touch $@

$(VENV)/test.stamp: $(BIN)/python pyproject.toml constraints.txt
	@echo "installing into $(VENV), a minute or two the first time"
	@$(INSTALL) -e '.[dev]'
	@touch $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and \
	"rightbatch needs Python 3.11 or newer, and $(PYTHON) is %d.%d: make PYTHON=python3.12" % v[:2])'
	@$(PYTHON) -m venv $(VENV)

clean:
	rm -rf $(VENV) demo .pytest_cache .ruff_cache .hypothesis
