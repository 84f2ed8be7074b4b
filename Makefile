# Everything starts here; CI calls the same targets. Needs Python 3.11 or newer and a package registry.
#
#   make serve     install the service (no torch) and run it with the starter bundle
#   make test      install and run every test: serving without torch, then training and export with it
#   make check     lint, format, strict types, import rules, docs
#   make docs      the documentation site, in build/site
#   make starter   rebuild the starter bundle from scratch (needs DATA, about ten minutes on two cores)

PYTHON ?= $(shell command -v python3.11 || command -v python3)
DATA ?= ../shared/data
# No bytecode for what is never imported: compiling all of it takes longer than all else that pip does.
PIP = -m pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt

.PHONY: serve test test-serving test-training check docs starter clean

serve: .venv/.serve
	.venv/bin/python -m app

test: test-serving test-training

# No torch in this environment: one of the three locks on the import rules.
test-serving: .venv/.dev .venv-triton/.server
	EXPECT_NO_TORCH=1 .venv/bin/python -m pytest tests/contract tests/app tests/client tests/architecture tests/deploy

test-training: .venv-train/.train .venv-triton/.server
	.venv-train/bin/python -m pytest tests/training tests/export

check: .venv/.dev .venv-train/.train docs
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv-train/bin/mypy --package training --package export
	.venv/bin/lint-imports

# Needs every room's parsers, so it has the environment of training.
docs: .venv-train/.docs
	NO_MKDOCS_2_WARNING=1 .venv-train/bin/python -m mkdocs --quiet build --strict

starter: .venv-train/.train
	.venv-train/bin/python -m training run starter --data $(DATA) --out runs/starter
	rm -rf build/starter
	.venv-train/bin/python -m export bundle runs/starter --data $(DATA) --out build/starter \
		--golden docs/photos/cat.jpg docs/photos/raccoon.jpg docs/photos/rocket.jpg docs/photos/coffee.jpg
	rm -rf app/starter && mv build/starter app/starter
	.venv-train/bin/python -m export card app/starter > docs/starter.md

.venv/.serve: pyproject.toml constraints.txt
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	.venv/bin/python $(PIP) --editable '.[cpu]'
	touch $@

.venv/.dev: .venv/.serve
	.venv/bin/python $(PIP) --editable '.[cpu,triton,otel,bulk,retrieval-langchain,retrieval-llamaindex,dev]'
	touch $@

.venv-train/.train: pyproject.toml constraints.txt
	test -x .venv-train/bin/python || $(PYTHON) -m venv .venv-train
	.venv-train/bin/python $(PIP) --editable '.[cpu,triton,otel,bulk,dev,evaluation,hub,train]'
	touch $@

.venv-train/.docs: .venv-train/.train
	.venv-train/bin/python $(PIP) --editable '.[docs]'
	touch $@

# The real Triton server for the tests, 98 MB; apart from .venv because it wants numpy 1. Its wheel is for
# Linux on x86-64 with glibc 2.35; elsewhere its tests are skipped, unless EXPECT_TRITON is set, as in CI.
.venv-triton/.server: tests/triton-server.txt
	test -x .venv-triton/bin/python || $(PYTHON) -m venv .venv-triton
	.venv-triton/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --requirement $< \
		&& touch $@ || echo 'no Triton server for this machine; its tests will be skipped'

clean:
	rm -rf .venv .venv-train .venv-triton build dist .mypy_cache .ruff_cache .pytest_cache
