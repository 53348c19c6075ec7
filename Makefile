# Two commands need nothing but Python 3.11, make and git: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PYTEST_ARGS ?=

.PHONY: help demo run test lint types unit e2e peers compiled test-compiled sanitize soak soak-logs fuzz bench bench-guard bench-plots clean

help: ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "sniproxy needs Python 3.11 or later: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt setuptools
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-build-isolation --editable '.[dev]'
	@touch $@

demo: $(STAMP) ## who may reach which Wikipedia, played on this machine with no network
	$(BIN)/sniproxy demo

run: $(STAMP) ## start the proxy with config/sniproxy.yaml
	$(BIN)/sniproxy run --config config/sniproxy.yaml

test: lint types peers ## lint, types, unit and end-to-end tests
	$(BIN)/python -m pytest -m 'not soak' $(PYTEST_ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

unit: $(STAMP) ## the tests that start no process
	$(BIN)/python -m pytest -m 'not e2e and not soak' $(PYTEST_ARGS)

e2e: $(STAMP) peers ## the tests against real peers
	$(BIN)/python -m pytest -m 'e2e and not soak' $(PYTEST_ARGS)

peers: ## bring the real peers that the tests want, where the machine lets us
	@bash tests/support/peers.sh

COMPILED := build/compiled
PROFILED := build/profiled
COMPILE := $(BIN)/pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps . --target

$(COMPILED): $(STAMP) setup.py bench/hello.py bench/training.py $(shell find sniproxy -name '*.py' -o -name '*.c')
	rm -rf $@ $(PROFILED) build/lib* build/temp* build/bdist*
	SNIPROXY_COMPILE=1 SNIPROXY_PROFILE=record $(COMPILE) $(PROFILED)
	PYTHONSAFEPATH=1 PYTHONPATH=$(PROFILED):. $(BIN)/python -m bench.training
	rm -rf build/lib*
	SNIPROXY_COMPILE=1 SNIPROXY_PROFILE=use $(COMPILE) $@
	PYTHONSAFEPATH=1 PYTHONPATH=$@ $(BIN)/python -c 'import sniproxy.net._calls, sniproxy.connection as c; assert c.__file__.endswith(".so"), c.__file__'
	@touch $@

compiled: $(COMPILED) ## the package with its hot path compiled, in build/compiled; wants GCC

test-compiled: $(COMPILED) peers ## the end-to-end tests against the compiled package
	PYTHONSAFEPATH=1 PYTHONPATH=$(CURDIR)/$(COMPILED):$(CURDIR) $(BIN)/python -m pytest -m 'e2e and not soak' -p no:cacheprovider $(PYTEST_ARGS)

sanitize: $(STAMP) ## the calls in C under AddressSanitizer and UndefinedBehaviorSanitizer
	CFLAGS='-g -fsanitize=address,undefined -fno-sanitize-recover=undefined' \
	LD_PRELOAD="$$(cc -print-file-name=libasan.so) $$(cc -print-file-name=libubsan.so)" \
	ASAN_OPTIONS=detect_leaks=0 PYTHONMALLOC=malloc \
	$(BIN)/python -m pytest -p no:cacheprovider $(PYTEST_ARGS) tests/net/test_calls.py

soak: $(STAMP) ## everything at once for SOAK_SECONDS (1800), and the longer variants of other tests
	$(BIN)/python -m pytest -m soak -s $(PYTEST_ARGS) tests/soak/test_soak.py
	$(BIN)/python -m pytest -m soak -s $(PYTEST_ARGS) --ignore tests/soak --ignore tests/e2e/test_image.py tests

soak-logs: $(STAMP) ## sick logs for SOAK_SECONDS (600): a slow reader and a full disk; wants root
	$(BIN)/python -m pytest -m soak -s $(PYTEST_ARGS) tests/soak/test_soak_logs.py

FUZZ_SECONDS ?= 60
FUZZ_TARGETS ?=
FUZZ_STAMP := $(VENV)/.fuzz

$(FUZZ_STAMP): $(STAMP)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-build-isolation --editable '.[fuzz]'
	@touch $@

fuzz: $(FUZZ_STAMP) ## every parser under atheris, for FUZZ_SECONDS each (60)
	FUZZ_SECONDS=$(FUZZ_SECONDS) $(BIN)/python -m tests.fuzz $(FUZZ_TARGETS)

BENCH_ARGS ?=
PLOTS_STAMP := $(VENV)/.plots

bench: $(STAMP) $(COMPILED) ## side by side with nginx, HAProxy and Envoy
	$(BIN)/python -m bench $(BENCH_ARGS)

bench-guard: $(STAMP) $(COMPILED) ## fail if a ratio to nginx has grown by more than 15 %
	$(BIN)/python -m bench --guard $(BENCH_ARGS)

$(PLOTS_STAMP): $(STAMP)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-build-isolation --editable '.[bench]'
	@touch $@

bench-plots: $(PLOTS_STAMP) ## draw bench/plots from the newest committed results
	$(BIN)/python -m bench.plots $(BENCH_ARGS)

clean: ## remove what the build made
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis bench/build

.PHONY: image-test
image-test: $(STAMP) ## build the image on a base made here, and run it (needs root, buildah and debootstrap)
	$(BIN)/python -m pytest -o addopts='-ra --strict-markers' $(PYTEST_ARGS) tests/e2e/test_image.py
