# make demo and make test set up .venv by themselves; PYTHON and VENV can be given: make test PYTHON=python3.12 VENV=.venv312
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO := runs/demo

.PHONY: demo demo-full test test-all lint docs bench clean

$(BIN)/.installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("vlprompt needs Python 3.11 or newer; name one: make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	touch $@

$(BIN)/.ready: $(BIN)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

demo: $(BIN)/.installed
	$(BIN)/vlprompt run zero_shot,linear,nearest_mean,coop digits --shots 1,4,16 --seed 1,2,3 --out $(DEMO)/few_shot
	$(BIN)/vlprompt run cocoop digits --shots 1 --seed 1,2,3 --out $(DEMO)/few_shot
	$(BIN)/vlprompt run linear digits --backbone pixels --shots 1,4,16 --seed 1,2,3 --out $(DEMO)/few_shot
	$(BIN)/vlprompt run vpt digits --backbone glyph-vit --shots 16 --seed 1,2,3 --out $(DEMO)/image_tower
	$(BIN)/vlprompt run zero_shot,coop,cocoop digits --task base_to_new --seed 1,2,3 --out $(DEMO)/base_to_new
	$(BIN)/vlprompt eval $(DEMO)/few_shot/coop-digits-16shot-seed1-* digits --figure $(DEMO)/predictions.png
	$(BIN)/vlprompt plot $(DEMO)/few_shot --figure $(DEMO)/shots.png
	$(BIN)/vlprompt table $(DEMO) --markdown $(DEMO)/table.md
	@echo "$$DEMO_END"

define DEMO_END

This was the main job on real handwritten digits, with the CLIP that is inside the package: prompts and classifiers learned
from 1, 4 and 16 images a class, three draws each (few_shot), from base to new digits (base_to_new), and on an image tower alone.
  $(DEMO)/table.md          the tables above
  $(DEMO)/shots.png         accuracy over shots
  $(DEMO)/predictions.png   test images with the answers of a learned prompt
  $(DEMO)/*/*/              a folder for each run: configuration, steps, learned prompt, result
Try next (after: source $(VENV)/bin/activate):
  vlprompt run coop path/to/your/photos --shots 4 --backbone open_clip:ViT-B-16/openai
                                                       a folder with a sub-folder for each class; a CLIP that knows photographs is downloaded
  vlprompt run maple digits --seed 1,2,3               another method; vlprompt list methods gives all
  vlprompt show coop                                   the paper, the settings, the recipes and their expected numbers
endef
export DEMO_END

# the tables of docs/results/methods.md: all shot numbers, both splits, CoCoOp everywhere
demo-full: $(BIN)/.installed
	$(BIN)/vlprompt run zero_shot,linear,nearest_mean,coop,cocoop digits --shots 1,2,4,8,16 --seed 1,2,3 --out $(DEMO)/few_shot
	$(BIN)/vlprompt run linear digits --backbone pixels --shots 1,2,4,8,16 --seed 1,2,3 --out $(DEMO)/few_shot
	$(BIN)/vlprompt run zero_shot,coop,cocoop digits --task base_to_new --seed 1,2,3 --out $(DEMO)/base_to_new
	$(BIN)/vlprompt run zero_shot,coop,cocoop digits --task base_to_new --seed 1,2,3 --out $(DEMO)/base_to_new 'task.base_classes=["0","2","4","6","8"]'
	$(BIN)/vlprompt run linear,vpt,lora digits --backbone glyph-vit --shots 1,4,16 --seed 1,2,3 --out $(DEMO)/image_tower
	$(BIN)/vlprompt table $(DEMO) --markdown $(DEMO)/table.md
	$(BIN)/vlprompt plot $(DEMO)/few_shot --figure $(DEMO)/shots.png
	$(BIN)/vlprompt eval $(DEMO)/few_shot/coop-digits-16shot-seed1-* digits --figure $(DEMO)/predictions.png

test: export PYTHONDONTWRITEBYTECODE =  # tests and their processes load at once the next time
test: $(BIN)/.ready
	$(BIN)/pytest -n auto --maxprocesses 4 --dist worksteal

test-all: $(BIN)/.ready
	$(BIN)/pytest -m 'not gpu and not weights'

lint: $(BIN)/.ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python

docs: $(BIN)/.ready
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	$(BIN)/pytest -m page -n auto --maxprocesses 4 --dist worksteal tests/docs
	@echo "open it with its search: $(BIN)/python -m http.server --directory site"

bench: $(BIN)/.ready
	$(BIN)/python tools/bench all --short

clean:
	rm -rf $(VENV) build dist site *.egg-info
