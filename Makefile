# The two commands a newcomer needs are `make demo` and `make test`; both install what they need first.
#
# The system's interpreter comes first where it is new enough and can make environments: distributions build theirs with
# profile-guided optimization, version managers mostly do not, and that is worth a quarter of the speed. PYTHON=... decides.
FIT := import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(firstword $(foreach name,/usr/bin/python3 python3,$(shell $(name) -c '$(FIT)' 2>/dev/null && echo $(name))) python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
UV := $(shell command -v uv 2>/dev/null)
# Options for the command behind a target: make test ARGS="-k patch"
ARGS ?=
# Test processes side by side; one of them runs whatever starts the whole system. They wait more than they compute:
# with a third one (PROCESSES=3) the suite takes two minutes less, and a test now and then has to be repeated.
PROCESSES ?= 2

.PHONY: install demo test check format bench lock clean

install: $(STAMP)

$(STAMP): requirements.lock pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
ifneq ($(UV),)
	@$(UV) pip install --quiet --compile-bytecode --python $(BIN)/python --require-hashes -r requirements.lock
	@$(UV) pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .
else
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
endif
	@touch $(STAMP)

demo: install
	@PYTHONDONTWRITEBYTECODE= exec $(BIN)/provgate demo $(ARGS)

# The suite starts hundreds of processes: compiled files are kept (beside the sources), also where the environment forbids it.
test: install
	@PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n $(PROCESSES) $(ARGS)

check: install
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: install
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: install
	@$(BIN)/python -m tests.bench $(ARGS)

lock:
	@uv pip compile --quiet --universal --generate-hashes --python-version 3.11 --extra dev --no-annotate --no-header pyproject.toml -o requirements.lock

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
