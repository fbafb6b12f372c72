# Two commands on a machine that has Python 3.11-3.13 and make: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO := demo

.PHONY: demo test test-browser test-slow quality audit dist-check calibrate river format clean

# Torch comes first and by its exact version, so that no later step may bring another build.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip check
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/nilatent demo $(DEMO)

test: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist worksteal

# Pages in a real browser; skipped where Chromium is not installed.
test-browser: $(STAMP)
	$(BIN)/python -m pytest tests/browser -m browser

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m "(slow or real) and not calibration"

river: $(STAMP)
	$(BIN)/python -m pytest tests/river -m "slow or not slow"

# One row per simulated cohort in $(ROWS); a run that was stopped goes on, and parts may run side by side: SHARD=1/4 and so on.
ROWS ?= calibration-rows
SHARD ?= 1/1
calibrate: $(STAMP)
	$(BIN)/python -m tests.calibration.run $(ROWS) --shard $(SHARD)
	$(BIN)/python -m tests.calibration.table $(ROWS) docs/calibration.md
	$(BIN)/python -m tests.calibration.table $(ROWS) docs/longitudinal.md
	$(BIN)/python -m pytest tests/calibration -m calibration

quality: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -c "import torch; assert torch.version.cuda is None, 'a CUDA build of torch was installed'"
	$(BIN)/python -c "import importlib.util as u; assert u.find_spec('torchvision') is None, 'torchvision was installed'"

# Known holes in what is installed; where no advisory can be reached it says that nothing was audited, and goes on.
audit: $(STAMP)
	$(BIN)/python -m tests.security.audit

# Wheel and source archive, and the demo from the wheel in an environment of its own.
dist-check: $(STAMP)
	rm -rf dist build/check
	$(BIN)/python -m build --outdir dist .
	$(PYTHON) -m venv build/check/venv
	build/check/venv/bin/pip install --quiet --disable-pip-version-check -r constraints.txt
	build/check/venv/bin/pip install --quiet --disable-pip-version-check -c constraints.txt "nilatent[all] @ file://$(CURDIR)/$$(ls dist/*.whl)"
	build/check/venv/bin/pip check
	cd build/check && venv/bin/nilatent demo out --n-subjects 40
	test -s build/check/out/report.html

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) $(DEMO) build dist .pytest_cache .mypy_cache .ruff_cache
