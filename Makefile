# Two commands: `make demo` and `make test`. Both install what they need first, for the GPU or the CPU of this machine.
PYTHON ?= python3
VENV ?= .venv
PROFILE ?= $(shell nvidia-smi -L >/dev/null 2>&1 && echo gpu || echo cpu)
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed-$(PROFILE)
# A PyTorch CPU build comes from local files where pip has been told of some, else from PyTorch's own index.
LOCAL_WHEELS := $(or $(PIP_FIND_LINKS),$(shell $(PYTHON) -m pip config get global.find-links 2>/dev/null))
ifeq ($(PROFILE),cpu)
TORCH_FROM := $(if $(LOCAL_WHEELS),--find-links $(LOCAL_WHEELS),--torch-backend cpu)
endif

.PHONY: install demo test lint count bench bench-learning bench-rewards architectures lock check-locks clean

install: $(STAMP)

# Compiled once here: else each of a run's processes compiles all of torch and vLLM again where no bytecode is written.
$(STAMP): pyproject.toml .locks/$(PROFILE).txt .locks/overrides-$(PROFILE).txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet uv
	VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install --quiet --compile-bytecode $(TORCH_FROM) --override .locks/overrides-$(PROFILE).txt -r .locks/$(PROFILE).txt
	VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install --quiet --compile-bytecode --no-deps --editable .
	touch $@

demo: install
	$(BIN)/rlcore train demo

# Two tests at a time, but for those of the stack: a run has many processes, which wait much; pyright runs beside them.
test: install check-locks
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@failed=0; set -x; \
	$(BIN)/pytest -n 2 --dist worksteal tests/unit tests/processes || failed=1; \
	$(BIN)/pyright >$(VENV)/pyright.txt 2>&1 & types=$$!; \
	$(BIN)/pytest --ignore=tests/unit --ignore=tests/processes || failed=1; \
	wait $$types || failed=1; cat $(VENV)/pyright.txt; exit $$failed

lint: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/pyright

# Lines of each room, and what is over a limit.
count: install
	$(BIN)/python -m tests.count

bench: install
	$(BIN)/pytest -m slow -s

bench-learning: install
	$(BIN)/python -m tests.benchmarks.algorithms

bench-rewards: install
	$(BIN)/python -m tests.benchmarks.rewards

# Which architectures train right, measured into docs/models.md: half a minute each, once for a state of the code.
architectures: install
	$(BIN)/python -m tests.benchmarks.architectures

# Both profiles resolve without installing anything; run `make lock` after a change of dependencies.
LOCKS ?= .locks
lock:
	$(BIN)/uv pip compile pyproject.toml --quiet --no-header --extra cpu --extra dev --python-version 3.11 \
	  $(TORCH_FROM) --override .locks/overrides-cpu.txt -o $(LOCKS)/cpu.txt
	$(BIN)/uv pip compile pyproject.toml --quiet --no-header --extra gpu --extra dev --python-version 3.11 \
	  --python-platform x86_64-manylinux_2_28 -o $(LOCKS)/gpu.txt

# The locks are what pyproject.toml asks for: resolving again changes nothing. Asked again when one of these has changed.
check-locks: $(VENV)/.locks-checked
$(VENV)/.locks-checked: pyproject.toml Makefile $(wildcard .locks/*) | install
	rm -rf $(VENV)/locks && cp -r .locks $(VENV)/locks
	$(MAKE) --no-print-directory lock LOCKS=$(VENV)/locks PROFILE=cpu
	diff -r .locks $(VENV)/locks
	$(BIN)/uv pip compile pyproject.toml --quiet --extra gpu --extra flash --constraint .locks/gpu.txt --python-version 3.11 \
	  --python-platform x86_64-manylinux_2_28 -o $(VENV)/gpu-with-flash-attn.txt
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
