# make demo     from nothing to a table and secateur-demo/report.html
# make test     the whole suite          make quick    without the slow tests
# make walk     the laws on 2,000 random nets, some ten minutes
# make lint     ruff and mypy            make wheel    dist/*.whl

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
WORKERS ?= 2
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: demo test quick walk lint wheel clean

demo: $(VENV)/all.stamp
	$(BIN)/secateur demo

test: $(VENV)/dev.stamp
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --durations 15

quick: $(VENV)/dev.stamp
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) -m "not slow"

walk: $(VENV)/dev.stamp
	SECATEUR_WALK=2000 OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/test_walk.py

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/mypy

wheel: $(VENV)/dev.stamp
	$(BIN)/pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .

clean:
	rm -rf $(VENV) build dist secateur-demo .pytest_cache .mypy_cache .ruff_cache

# A stamp is written last: an installation that was interrupted is made again. The extras are `all` and `dev`.
$(VENV)/%.stamp: pyproject.toml constraints.txt
	@echo "Installing Secateur, PyTorch and what they need (the extras [$*]) into $(VENV), 1 GB and more: a minute or several, by your network."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[$*]"
	touch $@
