# Every target sets up what it needs inside .venv; nothing else is asked of the machine than python3.11+ and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# pip resolves everything from constraints.txt, so that a new machine gets what this one was tested with.
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt

# Bytecode is kept even where the environment forbids it: the next `make test` saves nine seconds in each process.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo demo-reach test test-all compat setup check format coverage docs notebooks bench zoo export-zoo trackers release-check \
  deepsparse faults sanitize ranks results lock locked clean

demo: $(VENV)/.core
	@rm -rf build/demo
	$(BIN)/swamp run --method imp --out build/demo/imp
	$(BIN)/swamp run --method swamp --out build/demo/swamp
	$(BIN)/swamp compare build/demo/imp build/demo/swamp --out build/demo/comparison

# A tiny form of each domain in docs/explanation/reach.md.
demo-reach: $(VENV)/.dev
	@rm -rf build/reach
	$(BIN)/swamp run breast-cancer-mlp --method imp --out build/reach/table --quiet
	$(BIN)/swamp run mnist1d-lstm --task mnist1d --examples 1000 --epochs 4 --method imp --out build/reach/series --quiet
	$(BIN)/swamp run digits-mlp --classes 0-4 --method imp --out build/reach/source --quiet
	$(BIN)/swamp transfer build/reach/source --task digits --classes 5-9 --keep mask --out build/reach/mask --quiet
	$(BIN)/swamp transfer build/reach/source --task digits --classes 5-9 --keep sparsity --out build/reach/sparsity --quiet
	$(BIN)/swamp run cartpole-ppo --method imp --epochs 2 --sparsity 0.5 --cycles 1 --out build/reach/agent --quiet
	$(BIN)/swamp compare build/reach/mask build/reach/sparsity --out build/reach/comparison
	$(BIN)/swamp run digits-autoencoder --epochs 8 --ticket-epochs 2 --particles 2 --out build/reach/autoencoder --quiet
	$(BIN)/swamp run digits-clustering --particles 2 --out build/reach/clustering --quiet
	$(BIN)/swamp run --task digits-few-labels --model mlp-64-32 --labelled 200 --epochs 8 --particles 2 \
	  --sparsity 0.8 --prune-fraction 0.5 --out build/reach/few-labels --quiet

# The tests below about a second each; `make test-all` adds those marked slow.
test: $(VENV)/.dev
	$(BIN)/pytest -n auto --dist worksteal -m "not slow"

test-all: $(VENV)/.dev
	$(BIN)/pytest -n auto --dist worksteal

# The fast tests on the oldest, a middle and the newest supported Python and torch: see .ci/compat.
compat:
	.ci/compat

setup: $(VENV)/.dev

check: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports --no-cache

format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

coverage: $(VENV)/.dev
	$(BIN)/pytest -n 2 --cov --cov-report=term-missing:skip-covered --cov-report=json:build/coverage.json

docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet --site-dir build/site

# The outputs of the notebooks and the pictures of docs/reference/figures.md: a quarter of an hour on two cores.
notebooks: $(VENV)/.dev
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/jupyter execute --inplace docs/tutorials/*.ipynb
	$(BIN)/python benchmarks/gallery.py

bench: $(VENV)/.dev
	$(BIN)/python benchmarks/run.py $(PARTS)

# The table of docs/reference/zoo.md, in an environment of its own: timm needs a torchvision that pip would pair with a
# GPU build.
ZOO := build/zoo
zoo: $(ZOO)/ready
	$(ZOO)/bin/python zoo/run.py --out docs/reference/zoo.md

# The table of docs/reference/export_zoo.md: networks are exported with that environment, and loaded with one that
# has only what swamp.load needs. Finished steps are not repeated: remove build/export-zoo to start again.
BARE := build/runtime-only
export-zoo: $(ZOO)/ready $(BARE)/ready
	$(ZOO)/bin/python zoo/export.py --out docs/reference/export_zoo.md

$(BARE)/ready: pyproject.toml constraints.txt
	$(PYTHON) .ci/venv $(BARE)
	$(BARE)/bin/pip install --quiet --constraint constraints.txt torch numpy safetensors
	$(BARE)/bin/pip install --quiet --no-deps --editable .
	@touch $@

$(ZOO)/ready: pyproject.toml constraints.txt
	$(PYTHON) .ci/venv $(ZOO)
	$(ZOO)/bin/pip install --quiet --constraint constraints.txt --editable '.[export]' transformers accelerate huggingface_hub \
	  pillow requests tqdm psutil aiohttp xxhash pyparsing jinja2 importlib_metadata regex
	$(ZOO)/bin/pip install --quiet --no-deps torchvision==0.28.0 timm==1.0.31 torch_geometric==2.8.1 \
	  diffusers==0.42.1 segmentation_models_pytorch==0.6.0
	@touch $@

# Builds the wheel and the sdist into build/release, and tries each in a clean environment: see .ci/release.
release-check: $(BIN)/pip
	.ci/release $(BIN)/python

# The trackers with their own libraries, in an environment of its own: two of them need older pillow and pyarrow.
TRACKERS := build/trackers
trackers: $(TRACKERS)/ready
	$(TRACKERS)/bin/python -m pytest -q tests/tracking -p no:cacheprovider

$(TRACKERS)/ready: pyproject.toml constraints.txt tests/tracking/constraints.txt
	$(PYTHON) .ci/venv $(TRACKERS)
	@grep -vE '^(pillow|pyarrow|python-dateutil|certifi)==' constraints.txt > $(TRACKERS)/constraints.txt
	@cat tests/tracking/constraints.txt >> $(TRACKERS)/constraints.txt
	$(TRACKERS)/bin/pip install --quiet --constraint $(TRACKERS)/constraints.txt \
	  --editable '.[tensorboard,wandb,mlflow,trackio,digits]' pytest pytest-xdist hypothesis
	@touch $@

# Other sparse runtimes for benchmarks/sparse_runtimes.py, outside the environment of the project. DeepSparse has wheels
# up to Python 3.11, and analytics that NM_DISABLE_ANALYTICS=1 switches off.
DEEPSPARSE_PYTHON ?= python3.11
deepsparse: build/deepsparse/ready

build/deepsparse/ready: benchmarks/deepsparse.txt $(BIN)/pip
	$(DEEPSPARSE_PYTHON) -m venv build/deepsparse
	build/deepsparse/bin/pip install --quiet --no-deps --requirement benchmarks/deepsparse.txt
	NM_DISABLE_ANALYTICS=1 build/deepsparse/bin/python -c "import deepsparse"
	$(BIN)/pip install --quiet --no-deps --upgrade --target build/sparselab sparselab==0.2.2
	@touch $@

# What docs/explanation/reliability.md counts: hours on two busy cores, each campaign alone has --cases and --seed.
faults: $(VENV)/.dev
	@for campaign in kill signals disk power memory reader frozen clock leak load; do \
	  $(BIN)/python faults/$$campaign.py || exit; done
	$(BIN)/python faults/damage.py --cases 5000
	$(BIN)/python faults/inputs.py --cases 10000
	$(BIN)/python faults/loaders.py --cases 20000

# The kernels with 4, 8 and 16 SIMD lanes under AddressSanitizer and UndefinedBehaviorSanitizer: hours on two busy cores.
sanitize: $(VENV)/.dev
	@for lanes in 4 8 16; do \
	  $(BIN)/python faults/sanitize.py --lanes $$lanes -m pytest -q -p no:xdist tests/runtime || exit; done
	$(BIN)/python faults/sanitize.py --lanes 16 faults/networks.py --cases 2000 --lanes 4,8,16

# Runs over two hosts, which are network namespaces of this machine: as root, with iproute2.
ranks: $(VENV)/.dev
	$(BIN)/python benchmarks/hosts.py

# The studies of docs/explanation/results.md: hours on two cores; finished runs are skipped.
results: $(VENV)/.core
	@for study in mnist1d fashion-mnist mnist1d-long mnist1d-long-late baselines-mnist1d-rates \
	    baselines-fashion-mnist-rates; do \
	  $(BIN)/swamp study benchmarks/studies/$$study.toml --out build/results/$$study --workers 2 || exit; done
	$(BIN)/swamp study baselines --out build/results/baselines-mnist1d --workers 2
	$(BIN)/swamp study baselines-fashion-mnist --out build/results/baselines-fashion-mnist --workers 2

# The development environment with the SHA-256 of every file that this machine's index gives for it, in
# build/requirements.lock; kept somewhere safe, it makes `make locked` refuse a file that was exchanged since.
lock: $(BIN)/pip
	@mkdir -p build
	$(BIN)/pip install --quiet --disable-pip-version-check --dry-run --ignore-installed --report build/lock.json \
	  --constraint constraints.txt '.[dev]'
	@$(BIN)/python -c 'import json; found = json.load(open("build/lock.json"))["install"]; \
	  print(*sorted("{}=={} --hash=sha256:{}".format(one["metadata"]["name"], one["metadata"]["version"], \
	  one["download_info"]["archive_info"]["hashes"]["sha256"]) for one in found \
	  if "archive_info" in one["download_info"]), sep="\n")' > build/requirements.lock

locked: $(BIN)/pip
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes --no-deps --requirement build/requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $(VENV)/.core $(VENV)/.dev

clean:
	rm -rf build $(VENV)

$(BIN)/pip:
	@$(PYTHON) .ci/venv $(VENV)

$(VENV)/.core: $(BIN)/pip pyproject.toml constraints.txt
	$(INSTALL) --editable .
	@touch $@

$(VENV)/.dev: $(BIN)/pip pyproject.toml constraints.txt
	$(INSTALL) --editable '.[dev]'
	@touch $@ $(VENV)/.core

$(VENV)/.docs: $(BIN)/pip pyproject.toml constraints.txt
	$(INSTALL) --editable '.[docs]'
	@touch $@ $(VENV)/.core
