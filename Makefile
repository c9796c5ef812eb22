# Everything runs in .venv, which `make setup` makes. Only Python 3.11 or newer is needed beforehand
# (and a C++ compiler where a package has no wheel; Swift for the Swift package).
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
FUZZ_STAMP := $(VENV)/.fuzzers
SOURCES := mdm_apple conversion benchmarks examples tests

.PHONY: setup fuzzers demo bundle test quick test-all processors narrow-processor without-coreai check check-and-swift swift format bench clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet -c constraints.txt -e '.[all,dev]'
	$(BIN)/python tests/coreai_wheels.py; case $$? in \
	  0) $(BIN)/pip install --quiet -c constraints.txt -e '.[coreai]' ;; \
	  3) echo "skipped: Core AI (it has no wheels for this system; see tests/coreai_wheels.py)" ;; \
	  *) exit 1 ;; \
	esac
	touch $@

# atheris, for which there are wheels on Linux x86-64 only; elsewhere the fuzzers are skipped.
fuzzers: $(FUZZ_STAMP)

$(FUZZ_STAMP): $(STAMP)
	if [ "$$(uname -sm)" = "Linux x86_64" ]; then \
	  $(BIN)/pip install --quiet -c constraints.txt -e '.[fuzz]'; \
	fi
	touch $@

demo: setup
	$(BIN)/mdm demo --out out/demo --overwrite
	@echo "Open out/demo/report.html in a browser."

# The student of the box, cut for the Neural Engine: what the Swift package is shown with.
bundle: setup
	$(BIN)/mdm convert box:student --out out/emoji.bundle --overwrite

# All but the slow tests and those of `make without-coreai`. Costly tests come first; processes that
# fall idle take over some of the rest. Bundles are converted once and kept in .cache/test-bundles,
# where the next run finds them.
test: setup check-and-swift
	$(BIN)/pytest -m "not slow" --numprocesses auto --dist worksteal \
	  --ignore tests/test_without_coreai.py

# While writing: unit tests alone, first those that reach a changed file (or one of the last commit).
quick: setup
	$(BIN)/pytest -m unit --changed-first --numprocesses auto --dist load --maxschedchunk 4

# The slow ones too, one at a time: kills, corruption, each fuzzer for a minute.
test-all: setup fuzzers check-and-swift
	$(BIN)/pytest

# The tests of numbers as narrower processors compute them, with one thread and with two.
processors: setup
	$(BIN)/python tests/processors.py

# One of them: AVX2, one thread.
narrow-processor: setup
	$(BIN)/python tests/processors.py --narrow --numprocesses auto

# Every process behaves as if Core AI's packages were not installed: all other commands work, and the
# tests that need the packages are skipped.
without-coreai: setup
	PYTHONPATH=$(CURDIR)/tests/without_coreai $(BIN)/pytest -m "not slow" --numprocesses auto \
	  tests/test_without_coreai.py tests/test_missing_packages.py tests/test_coreai*.py

# Beside each other: pyright keeps one core busy, and the Swift tests rarely more than one.
check-and-swift:
	$(MAKE) --jobs 2 check swift

check: setup
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/pyright --pythonpath $(BIN)/python

# Release mode: what the tests in Python start as well, so that it is built once.
swift:
	@if command -v swift >/dev/null; then \
	  swift build -c release --build-tests && \
	  swift test -c release --skip-build && \
	  COREML_SHIM=1 COREAI_SHIM=1 AVFOUNDATION_SHIM=1 swift test -c release --scratch-path .build-shim \
	    --filter 'DiffusionCore(ML|AI)Tests|MovieWriterTests'; \
	elif [ "$$CI" = true ]; then \
	  echo "swift is not on the PATH, which CI demands" >&2; exit 1; \
	else \
	  echo "skipped: the tests of the Swift package (swift is not on the PATH)"; \
	fi

format: setup
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/ruff check --fix $(SOURCES)

# The short set, under 20 minutes on two idle cores, and what became slower since the last commit.
bench: setup
	rm -rf out/bench
	$(BIN)/mdm bench run --short --out out/bench
	$(BIN)/mdm bench compare out/bench

clean:
	rm -rf $(VENV) .cache build dist out *.egg-info .build .build-shim
