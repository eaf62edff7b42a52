"""vlprompt: prompt learning on frozen vision-language models.

clip = vlprompt.load("glyph")
task = vlprompt.tasks.FewShot("digits", shots=16, seed=1)
print(vlprompt.run(vlprompt.methods.CoOp(clip), task).summary)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vlprompt import data as data
    from vlprompt import methods as methods
    from vlprompt import metrics as metrics
    from vlprompt import tasks as tasks
    from vlprompt import testing as testing
    from vlprompt.backbones import load as load
    from vlprompt.core.batch import Batch as Batch
    from vlprompt.core.batch import Split as Split
    from vlprompt.core.class_names import ClassName as ClassName
    from vlprompt.core.head import Head as Head
    from vlprompt.core.images import Augmentation as Augmentation
    from vlprompt.core.images import ImageItem as ImageItem
    from vlprompt.core.images import Images as Images
    from vlprompt.core.images import Preprocessing as Preprocessing
    from vlprompt.core.method import Method as Method
    from vlprompt.core.method import Output as Output
    from vlprompt.core.method import TowerMethod as TowerMethod
    from vlprompt.core.method_wrapper import MethodWrapper as MethodWrapper
    from vlprompt.core.prompt import Prompt as Prompt
    from vlprompt.core.stage import Lesson as Lesson
    from vlprompt.core.stage import Stage as Stage
    from vlprompt.core.texts import TextBatch as TextBatch
    from vlprompt.core.texts import TextItem as TextItem
    from vlprompt.core.towers import Clip as Clip
    from vlprompt.core.towers import LanguageTower as LanguageTower
    from vlprompt.core.towers import Tower as Tower
    from vlprompt.core.towers import VisionTower as VisionTower
    from vlprompt.engine.loop import fit as fit
    from vlprompt.engine.train_config import TrainConfig as TrainConfig
    from vlprompt.experiments.estimator.image_classifier import PromptClassifier as PromptClassifier
    from vlprompt.experiments.estimator.text_classifier import PromptTextClassifier as PromptTextClassifier
    from vlprompt.experiments.learned.model_folder import save_prompt as save_prompt
    from vlprompt.experiments.learned.prompt import LearnedPrompt as LearnedPrompt
    from vlprompt.experiments.learned.prompt import load_prompt as load_prompt
    from vlprompt.experiments.learned.publish import push_prompt as push_prompt
    from vlprompt.experiments.runner import run as run
    from vlprompt.layers.heads import CosineHead as CosineHead
    from vlprompt.layers.heads import LinearHead as LinearHead
    from vlprompt.layers.heads import TextHead as TextHead
    from vlprompt.layers.verbalizers import ResponseHead as ResponseHead
    from vlprompt.layers.verbalizers import SentenceHead as SentenceHead
    from vlprompt.layers.verbalizers import SoftVerbalizer as SoftVerbalizer
    from vlprompt.layers.verbalizers import TagHead as TagHead
    from vlprompt.layers.verbalizers import Verbalizer as Verbalizer
    from vlprompt.results import plots as plots

_MODULES = {  # public name -> the module
    **{name: name for name in ("data", "methods", "metrics", "tasks", "testing")},
    "plots": "results.plots",
}
_HOMES = {  # public name -> the module that defines it
    "load": "backbones",
    "Batch": "core.batch",
    "Split": "core.batch",
    "ClassName": "core.class_names",
    "Head": "core.head",
    "Augmentation": "core.images",
    "ImageItem": "core.images",
    "Images": "core.images",
    "Preprocessing": "core.images",
    "Method": "core.method",
    "Output": "core.method",
    "TowerMethod": "core.method",
    "MethodWrapper": "core.method_wrapper",
    "Prompt": "core.prompt",
    "Lesson": "core.stage",
    "Stage": "core.stage",
    "TextBatch": "core.texts",
    "TextItem": "core.texts",
    "Clip": "core.towers",
    "LanguageTower": "core.towers",
    "Tower": "core.towers",
    "VisionTower": "core.towers",
    "fit": "engine.loop",
    "TrainConfig": "engine.train_config",
    "PromptClassifier": "experiments.estimator.image_classifier",
    "PromptTextClassifier": "experiments.estimator.text_classifier",
    "save_prompt": "experiments.learned.model_folder",
    "LearnedPrompt": "experiments.learned.prompt",
    "load_prompt": "experiments.learned.prompt",
    "push_prompt": "experiments.learned.publish",
    "run": "experiments.runner",
    "CosineHead": "layers.heads",
    "LinearHead": "layers.heads",
    "TextHead": "layers.heads",
    "ResponseHead": "layers.verbalizers",
    "SentenceHead": "layers.verbalizers",
    "SoftVerbalizer": "layers.verbalizers",
    "TagHead": "layers.verbalizers",
    "Verbalizer": "layers.verbalizers",
}
__all__ = sorted([*_HOMES, *_MODULES])  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `import vlprompt` itself costs nothing."""
    if name in _HOMES:
        value = getattr(import_module(f"vlprompt.{_HOMES[name]}"), name)
        globals()[name] = value
        return value
    if name in _MODULES:
        return import_module(f"vlprompt.{_MODULES[name]}")
    raise AttributeError(f"module 'vlprompt' has no attribute {name!r}; it has {', '.join(__all__)}")
