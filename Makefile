# make dev test lint bench demo: the only commands to learn. make docs builds the site, after pip install -e ".[docs]".
.PHONY: dev test lint bench demo docs

PYTHON ?= python3
NATIVE := $(shell git ls-files 'csrc/*.h' 'csrc/*.cpp' 'csrc/*.cu' 'csrc/*.cuh' 'tests/emulator/*.h' 'tests/emulator/*.cpp')

dev:
	$(PYTHON) -m pip install -e ".[dev]" -c constraints.txt

test:
	$(PYTHON) -m pytest

lint:
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy
	clang-format --dry-run --Werror $(NATIVE)

bench:
	$(PYTHON) -m pytest bench/ --benchmark

demo:
	asyncthink demo

docs:
	NO_MKDOCS_2_WARNING=1 $(PYTHON) -m mkdocs build --strict
