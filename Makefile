# Targets: make help. With PY=python3 an existing interpreter is used and nothing is installed.

VENV := .venv
ifeq ($(origin PY),undefined)
PY := $(VENV)/bin/python
READY := $(VENV)/requirements.installed
TOOLS := $(VENV)/tools.installed
endif

# What all three runs of the demo share: about 50 s each on 2 cores.
DEMO := --dataset shapes --image-size 24 --width 8 --epochs 14 --crop-scale 0.3 1 --resume
DEMO_RUNS := simclr noproj noproj-lastlayer

demo: $(DEMO_RUNS:%=runs/demo-%/result.json) runs/toy-quick/toy.json  ## (default) three SimCLR rows and a quick look at the toy models
	$(PY) plot_spectra.py $(DEMO_RUNS:%=runs/demo-%) -o figures/demo.png

runs/demo-simclr/result.json: | $(READY)
	$(PY) simclr.py $(DEMO) --out $(@D)
runs/demo-noproj/result.json: | $(READY)
	$(PY) simclr.py $(DEMO) --out $(@D) --no-projector
runs/demo-noproj-lastlayer/result.json: | $(READY)
	$(PY) simclr.py $(DEMO) --out $(@D) --no-projector --reg lastlayer

runs/toy-quick/toy.json: toy_linear.py | $(READY)
	$(PY) toy_linear.py --quick

toy: | $(READY)  ## figures/toy-*.png and results/toy.json: DirectCLR's and WERank's theory; 2 minutes
	$(PY) toy_linear.py

# Tables of the papers. A run is results/<scale>/<dataset>/<row>/seed<k>.json; make skips those that exist.
SCALE := paper
SEEDS := 0 1 2
DATASETS := cifar10 cifar100
DATA := data

paper :=
short := --epochs 50
mini := --train-size 5000 --width 8 --epochs 5
constant-paper := 32
constant-short := 32
constant-mini := 4

simclr := simclr.py
noproj := simclr.py --no-projector
directclr := directclr.py
cs = simclr.py --no-projector --fixed-dims $(constant-$(SCALE))

with-penalties = $(foreach row,$1,$(row) $(row)-lastlayer $(row)-werank)
runs = $(foreach k,$(SEEDS),$(foreach data,$(DATASETS),$(1:%=results/$(SCALE)/$(data)/%/seed$k.json)))
TABLE2 = $(call runs,$(call with-penalties,simclr noproj directclr cs))

table2: $(TABLE2)  ## LL table 2; SCALE=paper|short|mini SEEDS="0 1 2" DATASETS=... DATA=<folder> BUDGET=9m
	@$(PY) plan.py list --brief $^

plan: | $(READY)  ## the runs of the tables, done or not, minutes left
	@$(PY) plan.py list $(TABLE2)

# results/<scale>/<dataset>/<row>[-<penalty>]/seed<k>.json
part = $(word $1,$(subst /, ,$*))
row = $(firstword $(foreach reg,lastlayer werank,$(if $(filter %-$(reg),$(call part,3)),$(patsubst %-$(reg),%,$(call part,3)))) $(call part,3))
reg = $(patsubst $(row)-%,%,$(filter-out $(row),$(call part,3)))
results/%.json: | $(READY)
	@$(PY) plan.py run $@ -- $(PY) $($(row)) $(if $(reg),--reg $(reg)) $($(SCALE)) --dataset $(call part,2) \
		--data-dir $(DATA) --seed $(patsubst seed%,%,$(call part,4)) --out runs/$* --resume

ifneq ($(words $(SCALE))$(filter-out paper short mini,$(SCALE)),1)
$(error SCALE=$(SCALE) is none of paper, short, mini)
endif
ifeq ($(strip $(SEEDS)),)
$(error SEEDS= names no seed)
endif
ifdef BUDGET
BUDGET_SECONDS := $(shell echo '$(subst ','\'',$(BUDGET))' | \
	sed -nE 's/^0*([0-9]{1,7})s?$$/\1/p; s/^0*([0-9]{1,6})m$$/\1*60/p; s/^0*([0-9]{1,4})h$$/\1*3600/p')
ifeq ($(BUDGET_SECONDS),)
$(error BUDGET=$(BUDGET) is no duration, such as 90s, 9m or 2h)
endif
export DEADLINE := $(shell echo $$(($$(date +%s) + $(BUDGET_SECONDS))))
endif

bench: | $(READY)  ## time what the README claims on this machine: results/bench-<device>.json
	$(PY) tests/bench.py --data $(DATA)

test: $(TOOLS)  ## run the tests; DATA=<folder with cifar10.npz> adds the one on real images
	$(PY) -m pytest -q tests --data $(DATA)

lint: $(TOOLS)  ## ruff: line length 110, default rules and import order
	$(PY) -m ruff check .

$(VENV)/requirements.installed: requirements.txt
	test -x $(VENV)/bin/python || python3 -m venv $(VENV)
	$(VENV)/bin/python -m pip install -q --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/tools.installed: $(READY)
	$(VENV)/bin/python -m pip install -q --disable-pip-version-check pytest ruff
	touch $@

clean:  ## remove the demo's runs and figure; .venv, data and other runs stay
	rm -rf $(DEMO_RUNS:%=runs/demo-%) runs/toy-quick figures/demo.png

help:  ## list the targets
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /:\t/' | expand -t 12

.PHONY: demo toy table2 plan bench test lint clean help
