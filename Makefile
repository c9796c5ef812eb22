# Everything runs in .venv, which `make setup` makes. Only Python 3.11 or newer is needed beforehand
# (and a C++ compiler where a package has no wheel; Swift for the Swift package).
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SOURCES := mdm_apple conversion benchmarks tests

.PHONY: setup demo bundle test test-all check swift format bench clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet -c constraints.txt -e '.[all,dev]'
	touch $@

demo: setup
	$(BIN)/mdm demo --out out/demo --overwrite
	@echo "Open out/demo/report.html in a browser."

# The student of the box, cut for the Neural Engine: what the Swift package is shown with.
bundle: setup
	$(BIN)/mdm convert mdm_apple/models/emoji_student --out out/emoji.bundle --overwrite

test: setup check swift
	$(BIN)/pytest -m "not slow" --numprocesses auto --dist loadfile

test-all: setup check swift
	$(BIN)/pytest

check: setup
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/pyright --pythonpath $(BIN)/python

# Release mode: what the tests in Python start as well, so that it is built once.
swift:
	@if command -v swift >/dev/null; then \
	  swift build --package-path swift_package -c release --build-tests && \
	  swift test --package-path swift_package -c release --skip-build && \
	  COREML_SHIM=1 swift test --package-path swift_package -c release \
	    --scratch-path swift_package/.build-shim --filter DiffusionCoreMLTests; \
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
	rm -rf $(VENV) build dist out *.egg-info swift_package/.build*
