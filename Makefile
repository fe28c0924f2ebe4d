# `make demo` and `make test` set everything up on a fresh Debian or Ubuntu; `make help` lists all targets.
SHELL := /bin/bash
PYTHON ?= python3
UV_VERSION := 0.13.9
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
ARGS ?=
# A run starts hundreds of processes; share their bytecode, even if PYTHONDONTWRITEBYTECODE is set.
PYTEST := env -u PYTHONDONTWRITEBYTECODE PYTHONPYCACHEPREFIX=$(CURDIR)/$(VENV)/pycache $(BIN)/pytest --dist worksteal
# Two for each core, because tests wait for other processes half of the time.
PARALLEL := -n $(shell echo $$((2 * $$(nproc))))

.PHONY: help demo demo-region demo-rollout demo-life test test-long test-faults coverage test-images mutants fuzz images release notice audit check format lint types bench lock clean
help: ## List the targets.
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

demo: ready-for-demo ## Run the demo: a real broker, a node, real models on real frames. ARGS="--seconds 20 --json"
	@$(BIN)/hedgerow demo $(ARGS)

demo-region: ready-for-demo ## Run three sites and their region; one site is offline for a while. ARGS="--seconds 60 --json"
	@$(BIN)/hedgerow demo region $(ARGS)

demo-rollout: ready-for-demo ## Roll out a good, a bad and a forged version of a model to three sites. ARGS="--json"
	@$(BIN)/hedgerow demo rollout $(ARGS)

demo-life: ready-for-demo ## Enrol three nodes; clone, replace and forget one each; restore their region. ARGS="--json"
	@$(BIN)/hedgerow demo life $(ARGS)

test: $(READY) ## Run the tests of every module; takes minutes.
	$(PYTEST) $(PARALLEL) -m "not slow and not long" $(ARGS)

test-long: $(READY) ## Run longer tests: demos, long documents, faults, benchmarks, properties with more examples.
	$(PYTEST) $(PARALLEL) -m "not slow and (long or hypothesis)" --hypothesis-profile=full --timeout 600 $(ARGS)

test-faults: $(READY) ## Run the fault and stress tests at full size; takes an hour.
	$(PYTEST) -n auto -m slow --timeout 3600 $(ARGS)

coverage: $(READY) ## Run `test` and `test-long` and report uncovered lines.
	$(PYTEST) $(PARALLEL) -m "not slow" --hypothesis-profile=full --timeout 600 --cov --cov-report=term $(ARGS)

mutants: $(READY) ## Run mutation tests of the pure modules; takes an hour. ONLY=pipeline.intake.queue
	nice env -u PYTHONDONTWRITEBYTECODE $(BIN)/python tests/mutants/run.py $(if $(ONLY),--only $(ONLY)) $(ARGS)

fuzz: $(READY) ## Fuzz what reads bytes of strangers; ten minutes of processor time. MINUTES=240 ONLY=reader,parse ARGS=--keep
	@PYTHONPATH=tests $(BIN)/python -P -m fuzz.run $(if $(MINUTES),--minutes $(MINUTES)) $(if $(ONLY),--only $(ONLY)) $(ARGS)

check: format-check lint types ## Check format, lint, import layers and types.

format: $(READY) ## Format the code.
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

format-check: $(READY)
	$(BIN)/ruff format --check .

lint: $(READY) ## Lint, and check import layers.
	$(BIN)/ruff check .
	$(BIN)/lint-imports

types: $(READY) ## Check types.
	$(BIN)/mypy

bench: $(READY) ## Run the benchmarks of the node and its peers. ONLY=1,9 or ONLY=vad, ARGS="--quick"
	$(BIN)/python -m benchmarks $(if $(ONLY),--only $(ONLY)) $(ARGS)

images: ## Build the images of the node and the region's service. ENGINE=podman ARCH=arm64 BASE=… ONLY="onnx region"
	@containers/build.sh $(ONLY)

test-images: $(READY) ## Build the images and run them against a real broker; takes minutes the first time.
	$(BIN)/pytest -m "slow or not slow" --timeout 3600 tests/containers $(ARGS)

release: $(READY) ## Build a signed release of HEAD in dist/: wheels, images, bills of materials. KEY=release.pem ARGS=--no-images
	@$(BIN)/python release/build.py --key "$(or $(KEY),$(error KEY is missing: make release KEY=release.pem; `hedgerow trust key release.pem` makes one))" $(ARGS)

notice: $(READY) ## Write NOTICE: the licences of what the images ship.
	@$(BIN)/python release/notice.py

audit: $(READY) ## Look for known vulnerabilities of all locked packages, where an index of advisories can be reached.
	@$(BIN)/python release/audit.py

COMPILE := $(BIN)/uv pip compile --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
	  --no-emit-index-url -q
PEERS := benchmarks/peers/requirements
SETS := containers/requirements
lock: $(READY) ## Update all lock files: of the project, the demos, the benchmarks' peers and the images.
	$(COMPILE) --excludes requirements.excludes requirements.in -o requirements.lock >/dev/null
	sed -i '/^\./d' requirements.lock
	$(COMPILE) --excludes requirements.excludes --excludes requirements-demo.excludes requirements-demo.in \
	  --constraints <(grep -E '^[a-z].*==' requirements.lock | tr -d '\\') -o requirements-demo.lock >/dev/null
	sed -i '/^\./d' requirements-demo.lock
	$(COMPILE) --excludes $(PEERS).excludes $(PEERS).in -o $(PEERS).lock >/dev/null \
	  --constraints <(grep -E '^(numpy|onnxruntime|openvino)==' requirements.lock | tr -d '\\')
	for set in onnx openvino region build; do \
	  $(COMPILE) --excludes requirements.excludes $(SETS)/$$set.in -o $(SETS)/$$set.lock >/dev/null \
	    --constraints <(grep -E '^[a-z].*==' requirements.lock | tr -d '\\'; echo uv==$(UV_VERSION)) && \
	  sed -i '/^\./d' $(SETS)/$$set.lock || exit; \
	done

clean: ## Remove all generated files.
	rm -rf $(VENV) .venv-peers .fuzz configs/models demo-out demo-region-out demo-rollout-out demo-life-out .pytest_cache .mypy_cache .ruff_cache .hypothesis

# Both do nothing if everything is up to date.
.PHONY: ready-for-demo $(READY)
SETUP := PYTHON=$(PYTHON) UV_VERSION=$(UV_VERSION) ./setup.sh
ready-for-demo:
	@$(SETUP) demo
$(READY):
	@$(SETUP) test
