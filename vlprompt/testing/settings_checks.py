"""The check of a constructor: it stores its arguments, which are the method's configuration."""

from vlprompt.config.describe import describe
from vlprompt.experiments.learned.prompt import build_run_method
from vlprompt.testing.case import MethodCase
from vlprompt.testing.failures import CheckFailure, require
from vlprompt.testing.learning_checks import join_names


def check_constructor(case: MethodCase) -> None:
    """The constructor only stores its arguments, under their own names, and creates no parameters."""
    method = case.build()
    if parameters := [name for name, _ in method.named_parameters()]:
        raise CheckFailure(
            f"__init__: expected no parameters, got {join_names(parameters)}. Create them in begin_lesson, which knows "
            "the classes and the generator."
        )
    settings = describe(method)
    require(settings["name"] == case.name, f"__init__: expected the name {case.name}, got {settings['name']}.")
    changed = [key for key, value in case.arguments.items() if settings.get(key) != value]
    require(
        not changed,
        f"__init__: expected its arguments as they are, got other values in {join_names(changed)}. Store them "
        "unchanged (self.NAME = NAME), and derive other values in begin_lesson.",
    )
    require(
        build_run_method(settings, case.backbone) is not method, "__init__: expected a new object, got the same one."
    )
