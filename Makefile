# make fig2    set up, train the embedded study, draw Figure 2
# make test    set up, run the tests, all but those of minutes (make slow)
# make docs    set up, build the documentation
# make avx2    run the tests that depend on how the processor calculates, as on one without AVX-512
PYTHON ?= python3
BIN := .venv/bin
ANY = $(or $(wildcard $(BIN)/python),$(PYTHON))
export OMP_NUM_THREADS ?= 1
export PIP_DISABLE_PIP_VERSION_CHECK = 1

fig2: .venv/installed
	$(BIN)/smoothinterp sweep digits --also 15
	$(BIN)/papermill nbs/fig2.ipynb -p width 15
	@echo "Figure 2: figures/fig2-width15.png and .svg; the executed notebook: figures/fig2-width15.ipynb"

# Notebooks under test see an empty folder of runs, and so only networks that are committed; tests/conftest.py does the same.
NOTEBOOKS = SMOOTHINTERP_RUNS=$$(mktemp -d) $(BIN)/nbdev_test --n_workers 2 --do_print
PYTEST := $(BIN)/python -m pytest -q -n 2 --dist worksteal tests
test slow avx2 gpu docs: export PATH := $(CURDIR)/$(BIN):$(PATH)

test: .venv/installed
	$(BIN)/ruff check smoothinterp tests benchmarks docs setup.py
	$(NOTEBOOKS)
	$(PYTEST)

avx2: export ATEN_CPU_CAPABILITY = avx2
avx2: export ONEDNN_MAX_CPU_ISA = AVX2
avx2: .venv/installed
	$(NOTEBOOKS) --file_re '^(0[1-9]|1[0-5])_'
	$(PYTEST) -m numeric

slow: .venv/installed
	$(PYTEST) -m slow

bench: .venv/installed
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[bench]'
	for b in benchmarks/*.py; do $(BIN)/python $$b || exit 1; done

# make gpu     on a machine with a GPU: its tests, its timings with the projected total of a study, and what bf16 costs.
#              Without .venv it uses the machine's own Python, which needs PyTorch, the requirements in settings.ini and pytest.
gpu: export PYTHONPATH = .
gpu:
	$(ANY) -m pytest -q tests/test_engine.py -m cuda
	$(ANY) benchmarks/gpu.py
	$(ANY) benchmarks/precision.py

# make cifar   the CIFAR-10 studies of ConvNets, a stage after the other, on a GPU where there is one, three runs at a time there;
#              stop and start it at any time
STAGES ?= convnet-cifar10-reduced convnet-a-cifar10-reduced "convnet-cifar10-reduced --seeds 0-2" convnet-cifar10-long
WORKERS ?= $(if $(shell command -v nvidia-smi),3,$(shell nproc))
cifar: .venv/installed
	for stage in $(STAGES); do set -- $$stage; \
	  $(BIN)/smoothinterp sweep $$stage --workers $(WORKERS) && $(BIN)/smoothinterp publish $$stage && $(BIN)/papermill nbs/fig2.ipynb -p study $$1 || exit 1; done
	$(BIN)/jupyter nbconvert --to notebook --inplace --execute nbs/reproduction.ipynb && $(BIN)/nbdev_clean

# make figures            executes in place, two at a time, the notebooks that show committed results. Each draws its figure again,
#                         and its stored outputs are current too. Then it makes the gallery and the README. Without new results
#                         no file changes.
# make figures SHOW=FILE  executes that notebook alone
# make figures RETRAIN=1  first trains every embedded study from nothing, in a folder of its own, and then says how far each number
#                         moved and which claims changed. RETRAINED=FOLDER goes on with a folder. The folds of c2_mislabelled, for
#                         which cleanlab is needed, are trained by `papermill nbs/c2_mislabelled.ipynb -p again True` alone.
SHOW = $(wildcard nbs/fig*.ipynb nbs/[bc][0-9]_*.ipynb nbs/18_*.ipynb nbs/2[234]_*.ipynb) nbs/claims.ipynb \
       nbs/index.ipynb nbs/reproduction.ipynb
ifdef RETRAIN
ifndef RETRAINED
RETRAINED := $(CURDIR)/runs/again-$(shell date +%Y%m%d-%H%M%S)
endif
endif
figures: export SMOOTHINTERP_RUNS = $(or $(RETRAINED),$(CURDIR)/build/no-runs)
figures: SHELL := bash
figures: .SHELLFLAGS := -o pipefail -c
figures: .venv/installed
	$(if $(RETRAIN),$(BIN)/python tests/retrain.py train $(STUDY))
	echo $(SHOW) | xargs -n 1 -P 2 sh -c '$(BIN)/jupyter nbconvert --to notebook --inplace --execute --log-level ERROR $$0 && echo $$0' \
	  | $(BIN)/tqdm --total $(words $(SHOW)) --unit notebook
	$(BIN)/nbdev_clean
	$(BIN)/python tests/gallery.py
	$(BIN)/python tests/readme.py
	$(if $(RETRAIN),$(BIN)/python tests/retrain.py compare $(STUDY))

# make costs    measures what each figure costs, for the README
costs: .venv/installed
	$(BIN)/python tests/retrain.py time
	$(BIN)/jupyter nbconvert --to notebook --inplace --execute nbs/index.ipynb && $(BIN)/nbdev_clean
	$(BIN)/python tests/readme.py

# make explore serves the explorer of committed results in a browser
explore: .venv/installed
	$(BIN)/voila nbs/explore.ipynb

# The documentation as a site that needs no network; its links are checked, by one process, as each would build the site again.
docs: .venv/installed
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[docs]'
	$(BIN)/mkdocs build --strict -q
	$(PYTEST)/test_docs.py -m slow -n 0
	@echo "The documentation: build/site/index.html"

readme: .venv/installed
	$(BIN)/python tests/readme.py

# A folder that was copied or moved is no longer an environment: a new one is made. Its JupyterLab saves notebooks as they are
# committed, without the metadata that Lab adds on opening one (`jupyter_hooks` in settings.ini).
.venv/installed: settings.ini setup.py constraints.txt jupyter_server_config.json
	test "$$($(BIN)/python -c 'import sys; print(sys.prefix)' 2>/dev/null)" = "$(CURDIR)/.venv" || rm -rf .venv
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[lab,dev]'
	cp jupyter_server_config.json .venv/etc/jupyter/
	touch $@

clean:
	rm -rf .venv build *.egg-info

.PHONY: figures costs explore fig2 test avx2 slow bench gpu cifar docs readme clean
