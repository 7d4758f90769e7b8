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
# A data set that is a folder of images, as README's "Your own data" says: DATASETS=tiny-imagenet
dataset-tiny-imagenet = $(DATA)/tiny-imagenet --image-size 64

paper :=
short := --epochs 50
mini := --train-size 5000 --width 8 --epochs 5 --batch-size 128
# Of D dimensions (512, mini 64): LL's d_r of 312, 112, 32 and k = 1/√D, DirectCLR's d0 of figure 12.
D := $(if $(filter mini,$(SCALE)),64,512)
of = $(shell expr $1 \* $D / 512)
inverse-512 := 0.0441942
inverse-64 := 0.125

# The rows: a script and its flags. Names are the papers' numbers, whatever D is.
simclr := simclr.py
noproj := simclr.py --no-projector
directclr := directclr.py
cs = simclr.py --no-projector --fixed-dims $(call of,32)
barlow := barlow.py
barlow-noproj := barlow.py --no-projector

VALUES := k0 kinv k1
value-k0 := 0
value-kinv := $(inverse-$D)
value-k1 := 1
define constant
cs-d$1-$2 = simclr.py --no-projector --fixed-dims $$(call of,$3) --fixed-value $(value-$2)
endef
$(foreach v,$(VALUES),$(eval $(call constant,200,$v,312))$(eval $(call constant,400,$v,112))$(eval $(call constant,480,$v,32)))

KINDS := linear orthogonal diagonal lowrank lowrank-diagonal
$(foreach kind,$(KINDS),$(eval simclr-$(kind) := simclr.py --projector $(kind)))
directclr-random := directclr.py --subvector random
SWEEP := 8 32 128 256 512
$(foreach d,$(SWEEP),$(eval directclr-d$d = directclr.py --dim $$(call of,$d)))

# SparseHead's recipe, rows sh-*: 3e-3 and 1000 epochs on CIFAR, 2e-3 elsewhere, 2000 epochs on STL-10; the paper is
# silent about the batch size. SimCLR's z is as wide as h (d = m in its section 4).
sh = --batch-size 512 --optimizer adam --lr $(if $(filter cifar%,$(data)),3e-3,2e-3) --weight-decay 1e-6 \
	--epochs $(if $(filter stl10,$(data)),2000,1000) --crop-scale 0.2 1 --grey-p 0.1
sh-noproj = simclr.py --no-projector --temperature 0.5 $(sh)
sh-simclr-linear = simclr.py --projector linear --embedding $D --temperature 0.5 $(sh)
sh-simclr = simclr.py --embedding $D --temperature 0.5 $(sh)
sh-resnet50 = simclr.py --arch resnet50 --embedding $(call of,2048) --temperature 0.5 $(sh)
sh-byol = byol.py $(sh)
sh-barlow = barlow.py $(sh)

penalised = $(foreach row,$1,$(row) $(2:%=$(row)-%))
runs = $(foreach k,$(SEEDS),$(foreach data,$(DATASETS),$(1:%=results/$(SCALE)/$(data)/%/seed$k.json)))
TABLE1 = $(call runs,$(foreach d,200 400 480,$(VALUES:%=cs-d$d-%)))
TABLE2 = $(call runs,$(call penalised,simclr noproj directclr cs,lastlayer werank))
# Not barlow-lastlayer, which diverges: see README, "Where the papers are silent".
BARLOW = $(call runs,$(call penalised,barlow,werank) $(call penalised,barlow-noproj,lastlayer werank))
DIRECTCLR = $(call runs,simclr noproj directclr $(KINDS:%=simclr-%) directclr-random $(SWEEP:%=directclr-d%))
SPARSEHEAD = $(call runs,sh-noproj $(call penalised,sh-simclr sh-byol sh-barlow sh-simclr-linear sh-resnet50,sparsehead))

table2: $(TABLE2)  ## LL table 2; SCALE=paper|short|mini SEEDS="0 1 2" DATASETS=... DATA=<folder> BUDGET=9m
	@$(PY) plan.py list --brief $^

table1: $(TABLE1)  ## LL table 1, constant subvectors; variables as for table2
	@$(PY) plan.py list --brief $^

barlow: $(BARLOW)  ## LL figure 1b, Barlow Twins with and without projector, with the penalties
	@$(PY) plan.py list --brief $^

directclr-tables: $(DIRECTCLR)  ## DirectCLR tables 1, 2, appendix F, figure 12, on CIFAR with LL's recipe
	@$(PY) plan.py list --brief $^

sparsehead-table: $(SPARSEHEAD)  ## SparseHead table 1, figures 1 and 3, with its own recipe
	@$(PY) plan.py list --brief $^

plan: | $(READY)  ## the runs of the tables, done or not, minutes left
	@$(PY) plan.py list $(TABLE2) $(TABLE1) $(BARLOW) $(DIRECTCLR) $(SPARSEHEAD)

report: | $(READY)  ## RESULTS.md from results/, without training: tables, verdicts
	$(PY) report.py

figures: | $(READY)  ## figures/<scale>/ from results/, without training
	$(PY) report.py --figures

all: toy table2 table1 barlow directclr-tables sparsehead-table  ## every table, then the report and its figures
	$(PY) report.py
	$(PY) report.py --figures

# results/<scale>/<dataset>/<row>[-<penalty>]/seed<k>.json
part = $(word $1,$(subst /, ,$*))
data = $(call part,2)
row = $(firstword $(foreach reg,lastlayer werank sparsehead,$(if $(filter %-$(reg),$(call part,3)),$(patsubst %-$(reg),%,$(call part,3)))) $(call part,3))
reg = $(patsubst $(row)-%,%,$(filter-out $(row),$(call part,3)))
results/%.json: | $(READY)
	$(if $(filter $(SCALE),$(call part,1)),,$(error $@ is not of SCALE=$(SCALE)))
	$(if $($(row)),,$(error $@: there is no row $(call part,3)))
	@$(PY) plan.py run $@ -- $(PY) $($(row)) $(if $(reg),--reg $(reg)) $($(SCALE)) --dataset $(or $(dataset-$(data)),$(data)) \
		--data-dir $(DATA) --seed $(patsubst seed%,%,$(call part,4)) --out runs/$* --resume

ifneq ($(words $(SCALE))$(filter-out paper short mini,$(SCALE)),1)
$(error SCALE=$(SCALE) is none of paper, short, mini)
endif
ifeq ($(strip $(SEEDS)),)
$(error SEEDS= names no seed)
endif
ifneq ($(shell echo '$(subst ','\'',$(SEEDS))' | grep -cE '^ *(0|[1-9][0-9]{0,8})( +(0|[1-9][0-9]{0,8}))* *$$'),1)
$(error SEEDS=$(SEEDS) must be whole numbers, such as 0 1 2)
endif
KNOWN := cifar10 cifar100 stl10 shapes tiny-imagenet
ifneq ($(words $(DATASETS)),$(words $(filter $(KNOWN),$(DATASETS))))
$(error DATASETS=$(DATASETS) must be of $(KNOWN))
endif
ifeq ($(strip $(DATASETS)),)
$(error DATASETS= names no data set)
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

.PHONY: demo toy table1 table2 barlow directclr-tables sparsehead-table report figures all plan bench test lint clean help
