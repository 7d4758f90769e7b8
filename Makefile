# Targets: make help. With PY=python3 an existing interpreter is used and nothing is installed.

VENV := .venv
ifeq ($(origin PY),undefined)
PY := $(VENV)/bin/python
READY := $(VENV)/requirements.installed
TOOLS := $(VENV)/tools.installed
endif

# What all three runs of the demo share: about 50 s each on 2 cores.
DEMO := --dataset shapes --width 8 --epochs 8 --crop-scale 0.5 1 --resume
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

test: $(TOOLS)  ## run the tests; DATA=<folder with cifar10.npz> adds the one on real images
	$(PY) -m pytest -q tests $(if $(DATA),--data $(DATA))

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

.PHONY: demo toy test lint clean help
