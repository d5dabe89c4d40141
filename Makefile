# Everything a person or CI runs. `make train` and `make test` install what they need first.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
OUTPUT ?= runs/first

export PATH := $(CURDIR)/$(BIN):$(PATH)
# What DeepSpeed compiles at its first start lives with the environment, and is built when it is made.
export TORCH_EXTENSIONS_DIR := $(CURDIR)/$(VENV)/torch_extensions

.PHONY: install train test test-slow test-gpu bench check format clean

install: $(STAMP)

$(STAMP): setup.cfg setup.py pyproject.toml constraints.txt
	@command -v c++ >/dev/null || { echo "no C++ compiler found: DeepSpeed compiles a small operator at first use." \
	  "Install one (Debian and Ubuntu: apt-get install g++) and run make again." >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	rm -f $(TORCH_EXTENSIONS_DIR)/*/lock
	$(BIN)/python -c "from deepspeed.comm.torch import build_shm_op; build_shm_op()" >/dev/null
	@touch $(STAMP)

train: install
	$(BIN)/deepspeed --log_level warning --num_accelerators 2 recipes/train_rec.py --deepspeed_config recipes/configs/pipeline_2.json \
	  --model llama-tiny --dataset synthetic --num_train_epochs 12 --eval_epochs 4 \
	  --output_dir $(OUTPUT) --overwrite_output_dir

test: install
	$(BIN)/python -m pytest -m "not slow"

test-slow: install
	$(BIN)/python -m pytest -m slow
	RECPARALLEL_EXAMPLES=1 $(BIN)/python -m pytest tests/partitioning tests/planning tests/compression tests/optimizers

test-gpu: install
	$(BIN)/python -m pytest -m gpu

bench: install
	$(BIN)/python -m benchmarks selfcheck
	$(BIN)/python -m benchmarks stock --json docs/results/stock.json
	$(BIN)/python -m benchmarks partition --json docs/results/partition.json
	$(BIN)/python -m benchmarks rebalance --json docs/results/rebalance.json
	$(BIN)/python -m benchmarks tensor --json docs/results/tensor.json
	$(BIN)/python -m benchmarks transfers --json docs/results/transfers.json
	$(BIN)/python -m benchmarks codecs --json docs/results/codecs.json
	$(BIN)/python -m benchmarks compression --json docs/results/compression.json
	$(BIN)/python -m benchmarks learning --json docs/results/learning.json
	$(BIN)/python -m benchmarks quality --json docs/results/quality.json
	$(BIN)/python -m benchmarks ragged --json docs/results/ragged.json
	$(BIN)/python -m benchmarks async --json docs/results/async.json
	$(BIN)/python -m benchmarks async_quality --json docs/results/async_quality.json
	$(BIN)/python -m benchmarks click --json docs/results/click.json
	$(BIN)/python -m benchmarks preparation --json docs/results/preparation.json
	$(BIN)/python -m benchmarks endurance --json docs/results/endurance.json

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) build dist runs .pytest_cache .mypy_cache .ruff_cache .hypothesis
