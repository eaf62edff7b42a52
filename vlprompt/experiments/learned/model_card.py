"""The model card of a model folder, made from its config.json."""

from vlprompt.experiments.learned.folder_schema import ModelConfig


def build_model_card(config: ModelConfig) -> str:
    """Return the README.md of a model folder."""
    return f"# {config.method.name}\n"
