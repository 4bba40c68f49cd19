# make demo   set up, curate generated demo media, show what came of it
# make test   set up, run all tests
# make quick  set up, run the tests that start no Ray and take less than a second of a core each
# make lint   style and types
# make docs   the parts of docs/ that the code says itself
# make bench  the benchmarks that run on one CPU, tables into build/
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := build/demo
# Tests in the order tests/conftest.py gives them, and what they compile kept for the next time.
SHARED_OUT := -n 3 --dist loadgroup --no-loadscope-reorder
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo test quick lint docs bench clean

$(VENV)/.ready: constraints.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet "torch==$$(sed -n 's/^# torch==//p' constraints.txt)"
	$(BIN)/pip install --quiet --no-deps -r constraints.txt
	$(BIN)/pip install --quiet --no-deps --no-build-isolation -e .
	$(BIN)/python -m compileall -q -j 0 $(VENV)/lib schemas stages pipeline model >/dev/null || true
	touch $@

demo: $(VENV)/.ready
	$(BIN)/nava-curate demo --out $(DEMO)/media
	$(BIN)/nava-curate run quickstart --input $(DEMO)/media/sources.jsonl --out $(DEMO)/run
	$(BIN)/nava-curate stats $(DEMO)/run
	$(BIN)/nava-curate verify $(DEMO)/run

test: $(VENV)/.ready
	$(BIN)/python -m pytest $(SHARED_OUT)

quick: $(VENV)/.ready
	$(BIN)/python -m pytest $(SHARED_OUT) -m "not ray and not slow"

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.ready
	$(BIN)/python -m pipeline.show.reference docs

bench: $(VENV)/.ready
	mkdir -p build
	$(BIN)/python -m benchmarks.quality --json build/quality.json
	$(BIN)/python -m benchmarks.batching --json build/batching.json
	$(BIN)/python -m benchmarks.loader --json build/loader.json
	$(BIN)/python -m benchmarks.step --json build/step.json
	$(BIN)/python -m benchmarks.scale --json build/scale.json
	$(BIN)/python -m benchmarks.curation --json build/curation.json

clean:
	rm -rf build .pytest_cache .mypy_cache .ruff_cache
