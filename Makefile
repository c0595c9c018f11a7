# make fig2    set up, train the embedded study, draw Figure 2
# make test    set up, run every test
PYTHON ?= python3
BIN := .venv/bin
export OMP_NUM_THREADS ?= 1
export PIP_DISABLE_PIP_VERSION_CHECK = 1

fig2: .venv/installed
	$(BIN)/smoothinterp sweep digits
	$(BIN)/papermill nbs/fig2.ipynb -p width 15
	@echo "Figure 2: figures/fig2-width15.png and .svg; the executed notebook: figures/fig2-width15.ipynb"

test: .venv/installed
	$(BIN)/ruff check smoothinterp tests benchmarks setup.py
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/nbdev_test --n_workers 2 --do_print --skip_file_re '^(_|\.|fig|b[0-9])'
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest -q tests

slow: .venv/installed
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest -q tests -m slow

bench: .venv/installed
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[bench]'
	for b in benchmarks/*.py; do $(BIN)/python $$b || exit 1; done

readme: .venv/installed
	$(BIN)/python tests/readme.py

# A folder that was copied or moved is no longer an environment: a new one is made.
.venv/installed: settings.ini setup.py constraints.txt
	test "$$($(BIN)/python -c 'import sys; print(sys.prefix)' 2>/dev/null)" = "$(CURDIR)/.venv" || rm -rf .venv
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[lab,dev]'
	touch $@

clean:
	rm -rf .venv build *.egg-info

.PHONY: fig2 test slow bench readme clean
