"""Zero-shot CLIP: Radford et al., ICML 2021, arXiv:2103.00020.

The paper is "Learning Transferable Visual Models From Natural Language Supervision". The class whose text is nearest to
the image. With several templates the class vector is the mean of their normalised features; so it is with descriptions
of each class from a file (Menon and Vondrick, ICLR 2023, arXiv:2210.07183; Pratt et al., ICCV 2023, arXiv:2209.03320).
Nothing is trained. Sites: none.

Differs from the authors' notebook in: the mean over templates is left un-normalised until the cosine (the same
numbers).

Expected (base-to-new, ViT-B/16, hand-written templates, mean of 11 sets): base 69.34, new 74.22 (the CoCoOp paper's
Table 1).
"""

from pathlib import Path

import torch
from torch import Tensor

from vlprompt.core.class_names import Names
from vlprompt.core.images import Images
from vlprompt.core.method import Method, Output
from vlprompt.core.towers import Clip
from vlprompt.layers.class_texts import Template, hand


class ZeroShot(Method):
    """A frozen CLIP as it is.

    template: a text with {name} in it, several that are averaged, or a set by name ("imagenet-80", "imagenet-7");
    default: the dataset's own. descriptions: a JSON or YAML file {class name or id: [texts]}; a class then has its own
    texts, as they are, or put into a template that has a {description}.
    """

    def __init__(self, clip: Clip, template: Template = None, descriptions: str | None = None):
        super().__init__()
        self.clip, self.template, self.descriptions = clip, template, descriptions

    def fixed(self, names: Names) -> Tensor:
        if self.descriptions is None:
            return hand(self.clip, names, self.template, unit=True)
        every = described(Path(self.descriptions), names, self.template if isinstance(self.template, str) else None)
        features = self.clip.unit(self.clip.text([text for texts in every for text in texts])[0])
        return torch.stack([part.mean(0) for part in features.split([len(texts) for texts in every])])  # (C, E)

    def forward(self, inputs: Images, prepared: Tensor) -> Output:
        image = self.clip.image(inputs)  # (B, E)
        return Output(self.clip.logits(image, prepared), image=image, text=prepared)


def described(path: Path, names: Names, template: str | None) -> list[list[str]]:
    """The texts of each class in a file of descriptions; ValueError for a class without any."""
    import yaml

    if not path.is_file():
        raise ValueError(f"there is no file of descriptions {str(path)!r}; it holds {{class name: [texts]}} as JSON")
    found = yaml.safe_load(path.read_text("utf-8"))  # JSON is YAML
    if not isinstance(found, dict):
        raise ValueError(f"{str(path)!r} must hold {{class name: [texts]}}, not a {type(found).__name__}")
    texts = {str(k).replace("_", " ").lower(): [v] if isinstance(v, str) else v for k, v in found.items()}
    made = []
    for name in names:
        keys = (getattr(name, "id", name), name)
        mine = next((texts[k] for k in (key.replace("_", " ").lower() for key in keys) if texts.get(k)), None)
        if mine is None:
            raise ValueError(f"{str(path)!r} has no description of {str(name)!r}; add one or leave descriptions out")
        form = template if template and "{description}" in template else "{description}"
        whole = form.replace("{name}", name.replace("_", " "))
        made.append([whole.replace("{description}", str(t)).replace("{", "{{").replace("}", "}}") for t in mine])
    return made
