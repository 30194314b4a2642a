# make demo and make test install what is missing; every target is safe to repeat.
.PHONY: help setup setup-browser demo test lint format clean

help:
	@echo "make demo    stream over emulated links, print a table, write an HTML report"
	@echo "make test    run the whole test suite"
	@echo "make setup   install what is missing, nothing else"
	@echo "make setup-browser   what a real player needs: Chromium, playwright, dash.js"
	@echo "make lint    ruff and mypy --strict"
	@echo "make format  let ruff format the code"
	@echo "make clean   remove .venv and caches; results stay"

setup:
	@./setup.sh

setup-browser: setup
	@./setup-browser.sh

demo: setup
	@.venv/bin/testbed run examples/demo.toml

# First what computes, on all cores; then what moves packets, alone, so that links are as fast as asked.
# These measure real time: where another process held the machine up they are tried again, at most twice, and
# pytest's closing line counts it.
# Exit status 5: PYTEST_ARGS leave nothing of that kind.
PYTEST = .venv/bin/python -m pytest
test: setup
	@$(PYTEST) -m "not emulation" --numprocesses auto $(PYTEST_ARGS) || [ $$? -eq 5 ]
	@$(PYTEST) -m emulation --reruns 2 --reruns-delay 2 $(PYTEST_ARGS) || [ $$? -eq 5 ]

lint: setup
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

format: setup
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist *.egg-info
