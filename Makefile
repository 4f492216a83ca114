# Two commands are enough: `make demo` and `make test`. Both set up a virtual environment first.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
WORKERS ?= 2
PYTEST := $(BIN)/pytest -n $(WORKERS) --dist worksteal

.PHONY: demo test test-slow test-gpu docs screenshots dist lint setup clean

demo: $(READY)
	$(BIN)/tlpipe demo

test: $(READY)
	$(PYTEST) -m "not slow"

# What `make test` leaves out: all large backbones, every format and head that is exported, the demo, every page of the
# documentation from end to end with its notebook and pictures, the promised interface from outside, several devices.
test-slow: $(READY)
	@echo "Beside make test: large backbones, all exports, the demo, the whole documentation, promises from outside (an hour or two)"
	$(PYTEST) -m slow

# On a machine with a GPU that JAX can use; TensorFlow need not be there. RUN is what starts Python.
RUN ?= $(BIN)/python
test-gpu:
	KERAS_BACKEND=jax $(RUN) -m pytest -p no:cacheprovider -m gpu tests/test_gpu.py
	KERAS_BACKEND=jax $(RUN) tests/benchmarks/gpu.py

# The pages of the reference are written anew, then the site goes into build/site. `make screenshots` takes the pictures.
docs: $(READY)
	$(BIN)/python -m pipeline.cli.reference docs/reference
	$(BIN)/mkdocs build --strict --quiet --config-file .ci/mkdocs.yml

screenshots: $(READY)
	$(BIN)/python tests/screenshots.py docs/pictures

# The packages, and the wheel tried outside of the checkout: in an environment of its own, which has the libraries of
# $(VENV) but not what is editable there.
TRIED := build/wheel
dist: $(READY)
	rm -rf dist $(TRIED)
	$(BIN)/python -m build --outdir dist
	$(PYTHON) -m venv --without-pip $(TRIED)
	$(BIN)/python -m pip --python $(TRIED)/bin/python install --quiet --no-deps dist/*.whl
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
		> "$$($(TRIED)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/libraries.pth"
	tests/wheel.sh $(CURDIR)/$(TRIED)/bin/tlpipe

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "tlpipe needs Python 3.10 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[cpu,dev]"
	touch $(READY)

clean:
	rm -rf $(VENV)
