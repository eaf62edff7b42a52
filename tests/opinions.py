"""Texts that are good or bad, by the names that tests call them."""

from vlprompt.testing.texts import TEMPLATE as SHOWN  # noqa: F401
from vlprompt.testing.texts import draw_text_data as data  # noqa: F401
from vlprompt.testing.texts import draw_texts as texts  # noqa: F401
