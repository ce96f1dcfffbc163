# Everything here needs Python >= 3.11, make and a network, nothing else. The first target
# that needs an environment makes it; a second run finds its stamp and starts at once.
#
#   make demo ARGS="--epochs 3"      options for the program that the target runs
#   make test ARGS="-k gather -x"
#   make test ARGS="-m quick"        under a minute: for the hand that edits
#   make test PYTHON=python3.13      another interpreter (remove .venv first)

PYTHON ?=
ARGS ?=
VENV := .venv
OLDEST := .venv-oldest
LIBRARIES := .venv-libraries
STREAMING := .venv-streaming
OLDEST_TORCH := 2.10
OLDEST_NUMPY := 1.26
OLDEST_PYARROW := 21

BIN := $(VENV)/bin
INSTALL := $(BIN)/uv pip install --quiet --python $(BIN)/python

# The tests start hundreds of interpreters. Where a shell forbids them to keep compiled code, each
# would compile torch again, for seconds; it is kept in the environment, and next to the sources.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test lint format bench docs docs-serve stress test-libraries test-oldest test-pythons dist clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' $(firstword $(MAKEFILE_LIST)) \
		| awk -F'|' '{ printf "%-20s %s\n", $$1, $$2 }'

demo: $(VENV)/.installed-demo  ## train a small network on real handwritten digits
	@$(BIN)/headrace demo $(ARGS)

# Threads of torch that wait would spin otherwise, on cores that other tests could use.
test: $(VENV)/.installed-dev  ## the tests (without those marked "stress")
	@OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -n 3 --dist worksteal --durations 10 $(ARGS)

lint: $(VENV)/.installed-dev  ## formatting, lint rules, strict types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(VENV)/.installed-dev  ## put the code into its one format, with the safe fixes
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.installed-dev  ## every figure of the README, measured here
	@$(BIN)/headrace bench all $(ARGS)

docs: $(VENV)/.installed-dev  ## the documentation, into site/; a broken link fails
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet $(ARGS)
	@echo "site/index.html"

docs-serve: $(VENV)/.installed-dev  ## the documentation, live on this machine
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve $(ARGS)

stress: $(VENV)/.installed-dev  ## the long kills and soaks
	@$(BIN)/python -m pytest -m stress $(ARGS)

test-libraries: $(LIBRARIES)/.installed $(STREAMING)/.installed  ## programs of other libraries; writes docs/works-with.md
	@rm -f $(LIBRARIES)/seen.jsonl
	@HEADRACE_WORKS_WITH=$(LIBRARIES)/seen.jsonl $(STREAMING)/bin/python -m pytest tests/libraries/test_streaming.py
	@HEADRACE_WORKS_WITH=$(LIBRARIES)/seen.jsonl $(LIBRARIES)/bin/python -m pytest tests/libraries $(ARGS)
	@$(LIBRARIES)/bin/python scripts/works_with.py $(LIBRARIES)/seen.jsonl docs/works-with.md

test-oldest: $(OLDEST)/.installed  ## the tests on the oldest supported torch and NumPy
	@$(OLDEST)/bin/python -m pytest -n 2 --dist worksteal $(ARGS)

test-pythons: $(VENV)/bin/uv  ## the quick tests on every Python that this machine has
	@sh scripts/test_pythons.sh $(abspath $(BIN))/uv $(ARGS)

dist: $(VENV)/.installed-dev  ## sdist and wheel, checked, and used where nothing else is
	@sh scripts/check_dist.sh $(abspath $(BIN))

clean:  ## remove the environments and everything built
	rm -rf $(VENV) $(VENV)-3.* $(OLDEST) $(LIBRARIES) $(STREAMING) site dist build .mypy_cache .pytest_cache .ruff_cache .hypothesis

# One environment, two stamps: the demo asks for less than the tests do. A stamp is older
# than pyproject.toml when the dependencies may have changed; uv then checks in a moment.

$(VENV)/bin/uv $(OLDEST)/bin/uv $(LIBRARIES)/bin/uv $(STREAMING)/bin/uv:
	@PYTHON="$(PYTHON)" sh scripts/make_venv.sh $(patsubst %/bin/uv,%,$@)

$(VENV)/.installed-demo: pyproject.toml | $(VENV)/bin/uv
	@echo "headrace: installing into $(VENV) (torch is large: the first time takes a while) ..."
	@$(INSTALL) --editable '.[demo]'
	@touch $@

$(VENV)/.installed-dev: pyproject.toml | $(VENV)/bin/uv
	@echo "headrace: installing with test, lint and docs tools into $(VENV)" \
		"(torch is large: the first time takes a while) ..."
	@$(INSTALL) --editable '.[demo,bench]' --group dev
	@touch $@ $(VENV)/.installed-demo

$(OLDEST)/.installed: pyproject.toml | $(OLDEST)/bin/uv
	@echo "headrace: installing torch $(OLDEST_TORCH), NumPy $(OLDEST_NUMPY)," \
		"pyarrow $(OLDEST_PYARROW) and the test tools into $(OLDEST) ..."
	@$(OLDEST)/bin/uv pip install --quiet --python $(OLDEST)/bin/python \
		--editable '.[demo,bench]' --group test \
		'torch==$(OLDEST_TORCH).*' 'numpy==$(OLDEST_NUMPY).*' 'pyarrow==$(OLDEST_PYARROW).*'
	@touch $@

$(LIBRARIES)/.installed: pyproject.toml | $(LIBRARIES)/bin/uv
	@echo "headrace: installing some twenty libraries into $(LIBRARIES) ..."
	@$(LIBRARIES)/bin/uv pip install --quiet --python $(LIBRARIES)/bin/python \
		--editable . --group libraries
	@touch $@

$(STREAMING)/.installed: pyproject.toml | $(STREAMING)/bin/uv
	@echo "headrace: installing mosaicml-streaming into $(STREAMING) ..."
	@$(STREAMING)/bin/uv pip install --quiet --python $(STREAMING)/bin/python \
		--editable . --group streaming
	@touch $@
