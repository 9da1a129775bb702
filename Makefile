# `make sample` animates the bundled pictures, by prompts and by MIVAs; `make page` serves a page to animate pictures on;
# `make test` runs every test; `make small-world` trains the bundled model anew (hours). Each makes .venv when it is
# missing or stale; the page has an environment of its own, .venv-page. `make test-newest` runs the suite's core on the
# newest release of every library (requirements-newest.txt), in an environment of its own, of Python 3.12 or later.
PYTHON ?= python3
NEWEST_PYTHON ?= $(firstword $(foreach it,python3.13 python3.12 $(wildcard $(HOME)/.pyenv/versions/3.1[2-9]*/bin/python) \
	$(PYTHON),$(shell $(it) -c 'import sys; sys.version_info < (3, 12) or print("$(it)")' 2>/dev/null)))
BIN := .venv/bin

# What reads and writes the libraries' files and computes as they do, but for their Flax models, which newer ones lack.
NEWEST_TESTS := $(addprefix tests/test_,convert.py data.py diffusion.py finishing.py formats_diffusers.py formats_original.py \
	image_projection.py ip_adapter.py lora.py orbax.py samplers.py tokenizer.py weights.py media.py showing.py)

.PHONY: sample page test environments test-newest lint clean small-world

sample: .venv/.installed
	$(BIN)/python sample.py --config configs/sample/default.py
	for motion in swing bounce sway; do $(BIN)/python sample.py --config configs/sample/miva.py:$$motion || exit; done

page: .venv-page/.installed
	.venv-page/bin/python -m i2v_jax.page $(OPTIONS)

test:
	@$(MAKE) --no-print-directory --jobs=3 environments
	$(BIN)/ruff check .
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

environments: .venv/.installed-test .venv/.installed-plan .venv-page/.installed

test-newest: .venv-newest/.installed
	.venv-newest/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(NEWEST_TESTS) -k "not flax_models and not flax_folder"

small-world: .venv/.installed
	$(BIN)/python -m assets.make_small_world

lint: .venv/.installed-test
	$(BIN)/ruff check .

clean:
	rm -rf .venv .venv-newest .venv-page .cache output

.venv/bin/python .venv-page/bin/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and f"Python >= 3.11 is wanted, {sys.executable} is {v[0]}.{v[1]}. Mend: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(@:/bin/python=)

.venv/.installed: requirements.txt | .venv/bin/python
	$(BIN)/python -m pip install -q -r requirements.txt
	@touch $@

.venv/.installed-test: requirements-test.txt requirements.txt | .venv/bin/python
	$(BIN)/python -m pip install -q -r requirements-test.txt
	@touch .venv/.installed $@

.venv/.installed-plan: requirements-plan.txt | .venv/bin/python
	$(BIN)/python -m pip install -q --upgrade --target .venv/libtpu -r requirements-plan.txt
	@touch $@

.venv-page/.installed: requirements-page.txt | .venv-page/bin/python
	.venv-page/bin/python -m pip install -q -r requirements-page.txt
	@touch $@

.venv-newest/.installed: requirements-newest.txt
	@test -n "$(NEWEST_PYTHON)" || { echo "Python >= 3.12 is wanted. Mend: make NEWEST_PYTHON=/path/to/python3.12 ..."; exit 1; }
	test -x .venv-newest/bin/python || $(NEWEST_PYTHON) -m venv .venv-newest
	.venv-newest/bin/python -m pip install -q -r requirements-newest.txt
	@touch $@
