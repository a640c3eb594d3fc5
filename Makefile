# Two commands do everything on a fresh machine: make demo, make test.
PYTHON ?= python3
BIN := .venv/bin
export HF_HUB_OFFLINE = 1
export FLWR_TELEMETRY_ENABLED = 0
export RAY_USAGE_STATS_ENABLED = 0

.PHONY: demo live-demo test faults audit install lock proto

demo: install
	$(BIN)/polyclinic demo --open

# A coordinator and three sites as processes of their own, over TLS, all in runs/live-demo.
live-demo: install
	$(BIN)/polyclinic live-demo --open

test: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest

# Long: real processes killed more than a hundred times, partitions of a minute, full disks. The seed is printed.
faults: install
	$(BIN)/pytest -m faults -s tests

# Long: more than twenty audits that try to prove the privacy claims wrong.
audit: install
	$(BIN)/pytest -m audit tests/simulations/audit

install: .venv/installed

.venv/installed: requirements.lock pyproject.toml hatch_build.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

# Pins what is installed in .venv now, without the machine's own paths.
lock:
	$(BIN)/python -m pip freeze --exclude-editable --exclude polyclinic | sed 's/+cpu$$//; s/ @ .*//' > requirements.lock

# Generates core/governance/*_pb2* from governance.proto, with the versions that what is checked in was made with.
proto: install
	$(PYTHON) -m venv build/proto
	build/proto/bin/python -m pip install --quiet --disable-pip-version-check grpcio-tools==1.81.1 protobuf==6.33.6
	build/proto/bin/python -m grpc_tools.protoc -I .dev --python_out=.dev --pyi_out=.dev --grpc_python_out=.dev \
		polyclinic/core/governance/governance.proto
