"""Texts of classes: templates filled with class names, and their features."""

import warnings
from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from vlprompt.core.class_names import DEFAULT_TEMPLATE, class_ids
from vlprompt.core.templates import PromptTemplate
from vlprompt.core.towers import Clip
from vlprompt.layers.class_descriptions import is_description_file, read_descriptions

# a template, several, the name of a set, or a file of descriptions; None: the template of each name's dataset
TemplateChoice: TypeAlias = str | list[str] | None
TEMPLATE_SETS = {"imagenet-80": 80, "imagenet-60": 60, "imagenet-7": 7}


def fill_class_texts(template: str | None, names: Sequence[str], n_tokens: int = 0) -> list[str]:
    """Fill a template with class names: "{ctx} {name}." with 16 tokens -> "{16} dog.", a TemplatedText each.

    Underscores in names become spaces.

    Args:
        template: a template with {name}; None for that of each name's dataset, or "a photo of a {name}.".
        names: class names.
        n_tokens: soft tokens that all k {ctx} share: n // k each, and the rest for the last one.

    Raises:
        ValueError: if a template has no {name}, or a placeholder that is not known.
    """
    if template is None:
        templates = [getattr(name, "template", None) or DEFAULT_TEMPLATE for name in names]
    else:
        templates = [template] * len(names)
    parsed = {t: _parse_class_template(t, n_tokens) for t in dict.fromkeys(templates)}
    texts: list[str] = [
        parsed[t].fill({"name": name.replace("_", " ")}) for t, name in zip(templates, names, strict=True)
    ]
    _warn_of_equal_texts(names, texts)
    return texts


def _warn_of_equal_texts(names: Sequence[str], texts: Sequence[str]) -> None:
    """Warn of classes with different names and one text, as "fire_truck" and "fire truck" have."""
    first_name = dict[str, str]()
    for name, text in zip(names, texts, strict=True):
        other = first_name.setdefault(text, name)
        if other != name:
            warnings.warn(
                f"text: classes {str(other)!r} and {str(name)!r} have the same text {str(text)!r}, so they get equal "
                "logits. Rename one of them.",
                stacklevel=3,
            )
            return


def _parse_class_template(template: str, n_tokens: int) -> PromptTemplate:
    parsed = PromptTemplate.parse(template, n_tokens)
    if "name" not in parsed.fields:
        raise ValueError(
            f"template: expected a place for the class, {{name}}, got {template!r}. "
            'Write for example "a photo of a {name}.".'
        )
    parsed.require_fields(f"template {template!r}", ("name",), n_tokens)
    return parsed


def encode_class_texts(clip: Clip, names: Sequence[str], template: TemplateChoice, normalize: bool = False) -> Tensor:
    """Compute the mean text features (C, E) over templates and descriptions.

    Args:
        clip: the CLIP.
        names: class names.
        template: a template, several, the name of a set, or a file of descriptions, which may be one of several: all
            texts of a class then have the same weight.
        normalize: take the mean of normalised features.
    """
    if any(map(is_description_file, _list_choices(template))):
        groups = encode_text_groups(clip, list_class_texts(names, template))
        return torch.stack([(clip.unit(group) if normalize else group).mean(0) for group in groups])
    features = [clip.text(fill_class_texts(t, names))[0] for t in load_templates(template)]
    _warn_of_equal_features([name.replace("_", " ") for name in names], clip.unit(features[0]))
    return torch.stack([clip.unit(x) for x in features] if normalize else features).mean(0)


def list_class_texts(names: Sequence[str], template: TemplateChoice) -> list[list[str]]:
    """Return all texts of each class: in each template, and from each file of descriptions."""
    columns = list[list[list[str]]]()
    for choice in _list_choices(template):
        if is_description_file(choice):
            columns.append(read_descriptions(choice, names))
        else:
            columns += [[[text] for text in fill_class_texts(t, names)] for t in load_templates(choice)]
    return [[text for column in columns for text in column[i]] for i in range(len(names))]


def encode_text_groups(clip: Clip, class_texts: Sequence[Sequence[str]]) -> list[Tensor]:
    """Compute the features (S, E) of the texts of each class, not normalised."""
    features = clip.text([text for texts in class_texts for text in texts])[0]
    return list(features.split([len(texts) for texts in class_texts]))


def _list_choices(template: TemplateChoice) -> Sequence[str | None]:
    return [template] if template is None or isinstance(template, str) else template


def _warn_of_equal_features(names: Sequence[str], features: Tensor) -> None:
    """Warn of different names with equal normalised features (C, E), as "dog" and "Dog" have in most towers."""
    direction = torch.linspace(-1, 1, features.shape[1], device=features.device, dtype=features.dtype)
    order = (features @ direction).argsort()  # equal rows are neighbours
    differences = (features[order[1:]] - features[order[:-1]]).abs().amax(-1)
    for i in (differences < 1e-6).nonzero()[:, 0].tolist():
        first, second = (names[int(order[j])] for j in (i, i + 1))
        if first != second:
            warnings.warn(
                f"text: classes {min(first, second)!r} and {max(first, second)!r} have the same text features, so they "
                "get equal logits. Rename one of them.",
                stacklevel=3,
            )
            return


def select_class_rows(table: Tensor, known_ids: Sequence[str], names: Sequence[str], default: Tensor) -> Tensor:
    """Select rows (C, E) of a table by class.

    Args:
        table: (M, E), a row for each of `known_ids`.
        known_ids: ids of the table's classes.
        names: the classes to select.
        default: (C, E), the rows of classes that the table does not have.
    """
    row_of_id = {i: row for row, i in enumerate(known_ids)}
    rows = torch.tensor([row_of_id.get(i, -1) for i in class_ids(names)], device=table.device)
    if len(table) == 0:
        return default
    return torch.where((rows >= 0)[:, None], table[rows], default)


def load_templates(choice: TemplateChoice) -> Sequence[str | None]:
    """Return one template, several, or those of a set; None stays None.

    imagenet-80: the 80 of Radford et al., 2021 (arXiv:2103.00020); imagenet-7: the seven that its authors found to do
    as well; imagenet-60: the first 60 of the 80, which PromptSRC's code uses.

    Raises:
        ValueError: for a file of descriptions, which has other texts for each class.
    """
    if files := [one for one in _list_choices(choice) if is_description_file(one)]:
        raise ValueError(
            f"template: expected templates with {{name}}, got the file of descriptions {files[0]!r}. Give templates to "
            "a method that encodes its class texts anew at each step, or whose templates are counted."
        )
    if choice is None or (isinstance(choice, str) and choice not in TEMPLATE_SETS):
        return [choice]
    if not isinstance(choice, str):
        return list(choice)
    from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES, SIMPLE_IMAGENET_TEMPLATES

    writers = SIMPLE_IMAGENET_TEMPLATES if choice == "imagenet-7" else OPENAI_IMAGENET_TEMPLATES
    return [write("{name}") for write in writers[: TEMPLATE_SETS[choice]]]
