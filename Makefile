# Targets: make help. With PY=python3 an existing interpreter is used and nothing is installed.

VENV := .venv
ifeq ($(origin PY),undefined)
PY := $(VENV)/bin/python
READY := $(VENV)/requirements.installed
TOOLS := $(VENV)/tools.installed
endif

SCALE := paper
SEEDS := 0 1 2
DATASETS := cifar10 cifar100
DATA := data
JOBS := 1
GPUS := 1
TABLES := table2 table1 barlow directclr-tables sparsehead-table weights
# Without this a misspelt name would set nothing, and other runs would start.
NAMES := VENV PY SCALE SEEDS DATASETS DATA JOBS GPUS BUDGET TABLES
GIVEN := $(foreach name,$(.VARIABLES),$(if $(filter command,$(origin $(name))),$(name)))
$(if $(filter-out $(NAMES),$(GIVEN)),$(error no variable is called $(filter-out $(NAMES),$(GIVEN)): there are $(NAMES)))
# One deadline for all that a make does: a budget counts from here.
NOW := $(shell date +%s)
RUNS = --scale="$(SCALE)" --seeds="$(SEEDS)" --datasets="$(DATASETS)" --data="$(DATA)" --jobs="$(JOBS)" --gpus="$(GPUS)" \
	$(if $(BUDGET),--budget="$(BUDGET)" --since=$(NOW))
# What all three runs of the demo share: 45 s each on 2 idle cores. Its decay horizon, 4.5, is what collapse takes.
DEMO := simclr.py --dataset shapes --image-size 16 --arch mlp --epochs 60 --weight-decay 6.4e-3 --crop-scale 0.3 1 --resume

demo: | $(READY)  ## (default) three SimCLR rows on drawn images, and their spectra; 3 minutes
	$(PY) $(DEMO) --out runs/demo-simclr
	$(PY) $(DEMO) --out runs/demo-noproj --no-projector
	$(PY) $(DEMO) --out runs/demo-noproj-lastlayer --no-projector --reg lastlayer
	$(PY) plot_spectra.py runs/demo-simclr runs/demo-noproj runs/demo-noproj-lastlayer -o figures/demo.png

toy: | $(READY)  ## figures/toy-*.png and results/toy.json: DirectCLR's and WERank's theory; 5 minutes
	$(PY) toy_linear.py

table2:  ## LL table 2; SCALE=paper|short|compressed|mlp|mini SEEDS="0 1 2" DATASETS=... DATA=<folder> BUDGET=9m JOBS=2 GPUS=8
table1:  ## LL table 1, constant subvectors; variables as for table2
barlow:  ## LL figure 1b, Barlow Twins without projector; beside it with one, and with the penalties
directclr-tables:  ## DirectCLR tables 1, 2, appendix F, figure 12, on CIFAR; DATASETS=imagenet: data/imagenet/{train,val}
sparsehead-table:  ## SparseHead table 1, figures 1 and 3, with its own recipe
weights:  ## other weights of the penalties, other readings of the papers
clock: SCALE := compressed
clock:  ## SCALE=compressed: does collapse follow weight decay · learning rate · steps?
finetune-table: SHOW = finetune.py --table $(SCALE)
finetune-table:  ## SparseHead table 2: 1 % and 10 % of the labels; variables as for table2
SHOW = report.py --table $@ --scale $(SCALE)
$(TABLES) clock finetune-table: | $(READY)
	@exec $(PY) plan.py run $@ $(RUNS)
	-@$(PY) report.py
	-@$(PY) report.py --figures
	@$(PY) $(SHOW)

all: | $(READY)  ## every table but clock and finetune-table, toy where its results are gone, report and figures
	exec $(PY) plan.py run $(TABLES) $(RUNS)
	test -f results/toy.json || $(PY) toy_linear.py
	-$(PY) report.py
	$(PY) report.py --figures

plan: | $(READY)  ## the runs of those tables, done or not, minutes left; variables as for table2
	@exec $(PY) plan.py list $(TABLES) $(RUNS)

report: | $(READY)  ## RESULTS.md from results/, without training: tables, verdicts
	$(PY) report.py

figures: | $(READY)  ## figures/<scale>/ from results/, without training
	$(PY) report.py --figures

bench: | $(READY)  ## time what docs/performance.md claims on this machine: results/bench-<device>.json
	$(PY) tests/bench.py --data "$(DATA)"

test: $(TOOLS)  ## run the tests; DATA=<folder with cifar10.npz> adds the one on real images
	$(PY) -m pytest -q $(if $(TOOLS),-n 2 --dist worksteal) tests --data "$(DATA)"

lint: $(TOOLS)  ## ruff: format of 110 columns, default rules, import order
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .

format: $(TOOLS)  ## ruff format
	$(PY) -m ruff format .

$(VENV)/requirements.installed: requirements.txt
	$(VENV)/bin/python -m pip --version >/dev/null 2>&1 || python3 -m venv $(VENV)
	$(VENV)/bin/python -m pip install -q --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/tools.installed: $(READY) Makefile
	$(VENV)/bin/python -m pip install -q --disable-pip-version-check pytest pytest-xdist ruff==0.17.6
	touch $@

clean:  ## remove the demo's runs and figure; .venv, data and other runs stay
	rm -rf runs/demo-* figures/demo.png

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "%-18s %s\n", $$1 ":", $$2}' $(MAKEFILE_LIST)

.NOTPARALLEL:  # JOBS=2 trains two rows at a time
.PHONY: demo toy $(TABLES) clock finetune-table all plan report figures bench test lint format clean help
