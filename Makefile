# make demo and make test set up .venv by themselves; PYTHON and VENV can be given: make test PYTHON=python3.12 VENV=.venv312
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO := runs/demo

.PHONY: demo test test-all lint docs bench clean

$(BIN)/.ready: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("vlprompt needs Python 3.11 or newer; name one: make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

demo: $(BIN)/.ready
	$(BIN)/vlprompt run zero_shot,linear,nearest_mean,coop,cocoop digits --shots 1,2,4,8,16 --seed 1,2,3 --out $(DEMO)/few_shot
	$(BIN)/vlprompt run linear digits --backbone pixels --shots 1,2,4,8,16 --seed 1,2,3 --out $(DEMO)/few_shot
	$(BIN)/vlprompt run zero_shot,coop,cocoop digits --task base_to_new --seed 1,2,3 --out $(DEMO)/base_to_new
	$(BIN)/vlprompt run zero_shot,coop,cocoop digits --task base_to_new --seed 1,2,3 --out $(DEMO)/base_to_new 'task.base_classes=["0","2","4","6","8"]'
	$(BIN)/vlprompt run linear,vpt,lora digits --backbone glyph-vit --shots 1,4,16 --seed 1,2,3 --out $(DEMO)/image_tower
	$(BIN)/vlprompt table $(DEMO) --markdown $(DEMO)/table.md
	$(BIN)/vlprompt plot $(DEMO)/few_shot --figure $(DEMO)/shots.png
	$(BIN)/vlprompt eval $(DEMO)/few_shot/coop-digits-16shot-seed1-* digits --figure $(DEMO)/predictions.png

test: $(BIN)/.ready
	$(BIN)/pytest -n auto --maxprocesses 4

test-all: $(BIN)/.ready
	$(BIN)/pytest -m 'not gpu and not weights'

lint: $(BIN)/.ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python

docs: $(BIN)/.ready
	$(BIN)/mkdocs build --strict --quiet

bench: $(BIN)/.ready
	$(BIN)/python tools/bench all --short

clean:
	rm -rf $(VENV) build dist site *.egg-info
