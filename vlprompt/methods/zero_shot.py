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
from vlprompt.core.templates import PromptTemplate
from vlprompt.core.towers import Clip
from vlprompt.layers.class_texts import TemplateChoice, encode_class_texts
from vlprompt.methods._descriptions import load_description_file, normalize_name, normalize_names


class ZeroShot(Method):
    """A frozen CLIP that classifies by hand-written texts.

    Args:
        clip: frozen CLIP.
        template: a text with {name} in it, several that are averaged, or a set by name ("imagenet-80", "imagenet-7");
            default the dataset's own.
        descriptions: path of a JSON or YAML file {class name or id: [texts]} (~ is the home folder); a class then has
            these texts, verbatim or put into a template that has a {description}.
    """

    def __init__(self, clip: Clip, template: TemplateChoice = None, descriptions: str | None = None):
        super().__init__()
        self.clip, self.template, self.descriptions = clip, template, descriptions

    def precompute(self, names: Names) -> Tensor:
        if self.descriptions is None:
            return encode_class_texts(self.clip, names, self.template, normalize=True)
        template = self.template if isinstance(self.template, str) else None
        class_texts = read_descriptions(Path(self.descriptions).expanduser(), names, template)
        features = self.clip.unit(self.clip.text([text for texts in class_texts for text in texts])[0])
        return torch.stack([part.mean(0) for part in features.split([len(texts) for texts in class_texts])])  # (C, E)

    def forward(self, inputs: Images, prepared: Tensor) -> Output:
        image = self.clip.image(inputs)  # (B, E)
        return Output(self.clip.logits(image, prepared), image_features=image, text_features=prepared)


def read_descriptions(path: Path, names: Names, template: str | None) -> list[list[str]]:
    """Read the texts of each class from a file of descriptions.

    Args:
        path: JSON or YAML file {class name or id: [texts]}.
        names: the classes, in the order of the result.
        template: may have {name} and {description}; without a {description} the texts are used verbatim.

    Raises:
        ValueError: if there is no such file, it is broken, or a class has no description.
    """
    descriptions = _load_descriptions(path)
    pattern = template if template and "{description}" in template else "{description}"
    parsed = PromptTemplate.parse(pattern)
    parsed.require_fields(f"method.template {pattern!r}", ("name", "description"))
    class_texts = []
    for name in names:
        keys = map(normalize_name, (getattr(name, "id", name), name))
        texts = next((descriptions[key] for key in keys if descriptions.get(key)), None)
        if texts is None:
            raise ValueError(
                f"{str(path)!r}: expected a description of {str(name)!r}, got none. Add one, or leave "
                "method.descriptions out."
            )
        shown_name = name.replace("_", " ")
        class_texts.append([str(parsed.fill({"name": shown_name, "description": text})) for text in texts])
    return class_texts


def _load_descriptions(path: Path) -> dict[str, list[str]]:
    """Return {normalized class name or id: texts}."""
    content = load_description_file(path, "{class name: [texts]}")
    descriptions = dict[str, list[str]]()
    for key, value in content.items():
        texts = [value] if isinstance(value, str) else value
        if not isinstance(texts, list) or not all(isinstance(text, str) and text.strip() for text in texts):
            raise ValueError(
                f"method.descriptions: expected a list of texts for {key!r} in {str(path)!r}, got {texts!r}. Write its "
                "texts in quotes."
            )
        descriptions[key] = texts
    return normalize_names(descriptions, path)
