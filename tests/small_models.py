"""Tiny random language models, by the names that tests call them."""

from vlprompt.testing.language_models import FAMILIES as FAMILIES
from vlprompt.testing.language_models import TRAINING_TEXTS as TEXTS  # noqa: F401
from vlprompt.testing.language_models import build_model as model  # noqa: F401
from vlprompt.testing.language_models import build_tokenizer as tokenizer  # noqa: F401
from vlprompt.testing.language_models import write_language_model as written  # noqa: F401
