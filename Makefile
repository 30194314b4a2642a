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

# Four at once, on two cores as well: most of the time goes by while real packets are under way.
test: setup
	@.venv/bin/python -m pytest --numprocesses 4 $(PYTEST_ARGS)

lint: setup
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

format: setup
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist *.egg-info
