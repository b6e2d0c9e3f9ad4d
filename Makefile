# make setup | check | test | demo | format | docs | dist | mutants | families.  Everything runs in .venv; nothing needs the network after set-up.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.set-up
EXTRAS := test,dev,gguf,lora,qlora,label

export HF_HUB_OFFLINE = 1
export OMP_NUM_THREADS = 1
export TOKENIZERS_PARALLELISM = false
# Where the environment forbids bytecode, every process of a test would compile the package again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup check lint test demo format docs dist mutants families
.DEFAULT_GOAL := check

setup: $(STAMP)

# torch first and alone: it is by far the largest download, and the rest must not choose another build of it.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet torch==2.13.0 -c constraints.txt
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[$(EXTRAS)]"
	touch $(STAMP)

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# Under three minutes: lint, the examples in docstrings, and all tests that neither inject faults, nor run whole commands or
# what the pages show, nor start ranks, nor try thirty families of models, nor train for long.
LONG = tests/faults tests/end_to_end tests/benchmarks tests/models/test_families.py tests/modules/test_exact_optimum.py \
	tests/modules/test_invariances.py tests/modules/test_by_length.py tests/callbacks/test_tensorboard_page.py tests/stages/test_rounds.py \
	tests/stages/test_added.py tests/modules/test_sample_ahead.py $(wildcard tests/people/test_*page*.py) \
	$(wildcard tests/modules/test_bug_museum*.py)
LONG_ONES = gates/test_docs.py::test_python_in_the_documentation_runs \
	gates/test_docs.py::test_command_in_the_documentation_composes \
	metrics/test_means.py::test_two_ranks_have_one_mean_and_one_that_trains_alone_waits_for_none \
	scoring/test_sources_in_training.py::test_two_ranks_share_their_running_statistics \
	scoring/test_remote.py::test_a_run_that_lost_its_service_goes_on_and_ends_with_the_same_bits \
	stages/test_loggers.py::test_config_curves_samples_figures_and_last_metrics_of_each_stage_are_in_each_logger \
	stages/test_server.py::test_a_run_that_samples_from_a_server_learns_and_ends_the_same_in_pieces_with_servers_elsewhere
check: lint
	$(BIN)/python -m pytest -q -n 2 tests rlhf_lightning $(LONG:%=--ignore=%) $(LONG_ONES:%=--deselect=tests/%)

test: lint
	$(BIN)/python -m pytest -q -n 2

demo: $(STAMP)
	$(BIN)/python train.py

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The pages as a site in site/; a link that leads nowhere is an error. `.venv/bin/mkdocs serve` shows them while you write.
docs: $(STAMP)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[docs]"
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# Wheel and source archive in dist/, each tried in an environment of its own, and the steps of the Dockerfile; `make dist TAG=v0.1.0`
# also compares the versions.
TAG ?=
dist: $(STAMP)
	rm -rf dist
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[release]"
	$(BIN)/python -m build --outdir dist
	$(BIN)/python -m twine check --strict dist/*
	$(BIN)/python -m benchmarks.distribution dist $(if $(TAG),--tag $(TAG))
	$(BIN)/python -m benchmarks.dockerfile

# Not in CI: about 20 minutes on one core. `make mutants MUTANTS="--rooms optim,rollout --sample 50 --seed 1"`
MUTANTS ?=
mutants: $(STAMP)
	$(BIN)/python -m benchmarks.mutants $(MUTANTS)

# Not in CI: every language model that transformers knows, for docs/models.md. `make families FAMILIES="--only llama,mamba"`
FAMILIES ?= --out docs/models_matrix.md
families: $(STAMP)
	$(BIN)/python -m benchmarks.families $(FAMILIES)
