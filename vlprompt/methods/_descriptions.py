"""Files of texts about classes, such as a language model's: about each, or what it has and another one has not."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from vlprompt.core.class_names import Names
from vlprompt.core.towers import Clip
from vlprompt.layers.class_descriptions import load_mapping, normalize_name, normalize_names

PairTexts = dict[tuple[int, int], list[str]]  # (class, other class) -> texts
PAIR_FORM = "{class name: {other class name: text or [texts]}}"


def read_pair_descriptions(file: str | None, names: Names) -> PairTexts:
    """Read what each class has and another one has not, of the pairs of these classes that a file has.

    Args:
        file: JSON or YAML file {class name or id: {other name or id: text or [texts]}}; ~ is the home folder.
        names: the classes; others of the file are left out.

    Returns:
        "cat with a long tail" and its like, by the places of both classes in `names`.

    Raises:
        ValueError: if there is no such file, it is broken, or has another form.
    """
    if file is None:
        raise ValueError(
            "method.descriptions: expected a file of what each class has and another one has not, such as a language "
            f"model's, got none. Write JSON {PAIR_FORM}, or set method.text_weight=0 and method.rerank_weight=0."
        )
    path, pairs = Path(file).expanduser(), PairTexts()
    content = normalize_names(load_mapping(path, PAIR_FORM), path)
    for i, name in enumerate(names):
        others = _find(content, name)
        if others is not None and not isinstance(others, dict):
            raise ValueError(
                f"method.descriptions: expected {{other class name: text}} for {str(name)!r} in {str(path)!r}, got a "
                f"{type(others).__name__}. Write what it has against each other class."
            )
        by_name = normalize_names({str(key): value for key, value in (others or {}).items()}, path)
        for j, other in enumerate(names):
            if (value := _find(by_name, other)) is None:
                continue
            texts = [value] if isinstance(value, str) else value
            if not isinstance(texts, list) or not all(isinstance(text, str) and text.strip() for text in texts):
                raise ValueError(
                    f"method.descriptions: expected texts for {str(name)!r} against {str(other)!r} in {str(path)!r}, "
                    f"got {value!r}. Write a text or a list of texts in quotes."
                )
            pairs[i, j] = [f"{name.replace('_', ' ')} with {text.strip().lower()}" for text in texts]
    return {pair: texts for pair, texts in pairs.items() if texts}


class PairSentences:
    """Features, not normalised, of what each class has and each other one has not.

    Args:
        clip: the CLIP.
        file: of the sentences, as `read_pair_descriptions` reads it.
        names: the classes.
    """

    def __init__(self, clip: Clip, file: str | None, names: Names):
        self.file, self.names, texts = file, names, read_pair_descriptions(file, names)
        alone = [name.replace("_", " ") for name in names]  # of a class without a sentence
        with torch.no_grad(), torch.autocast(clip.device.type, enabled=False):
            features = clip.text([*alone, *(text for pair in texts.values() for text in pair)])[0]
        self.alone, sentences = features.split([len(alone), len(features) - len(alone)])
        self.by_pair = dict(zip(texts, sentences.split([len(pair) for pair in texts.values()]), strict=True))

    def stack_by_class(self) -> list[Tensor]:
        """Return the features (S, E) of all sentences about each class; of one without any, of its name alone."""
        by_class = [[x for (i, _), x in self.by_pair.items() if i == row] for row in range(len(self.names))]
        return [torch.cat(x) if x else self.alone[row : row + 1] for row, x in enumerate(by_class)]

    def stack_pairs(self) -> Tensor:
        """Return the mean feature (C, C, E) of each pair, and zeros for a class and itself.

        Raises:
            ValueError: for a pair of two classes without a sentence.
        """
        n, zeros = len(self.names), torch.zeros_like(self.alone[0])
        for i, j in ((i, j) for i in range(n) for j in range(n) if i != j and (i, j) not in self.by_pair):
            raise ValueError(
                f"method.descriptions: expected a text for each pair of classes in {self.file!r}, got none for "
                f"{str(self.names[i])!r} against {str(self.names[j])!r}. Add it, or set method.rerank_weight=0."
            )
        rows = [zeros if i == j else self.by_pair[i, j].mean(0) for i in range(n) for j in range(n)]
        return torch.stack(rows).unflatten(0, (n, n))


def draw_sentences(sentences: Sequence[Tensor], labels: Tensor, generator: torch.Generator) -> Tensor:
    """Draw for each of B labels one of the sentences (S, E) about its class: (B, E)."""
    numbers = torch.rand(len(labels), generator=generator).tolist()
    pairs = zip(labels.tolist(), numbers, strict=True)
    return torch.stack([sentences[row][int(number * len(sentences[row]))] for row, number in pairs])


def rank_again(scores: Tensor, image: Tensor, pairs: Tensor, n: int) -> Tensor:
    """Score the n best classes of an image by sentences that tell each from the others; all other classes have 0.

    Args:
        scores: (B, C), by which the n best are chosen.
        image: (B, E), normalised.
        pairs: (C, C, E), of a class against another one.
        n: of one class there is nothing to compare.

    Returns:
        (B, C), cosines of the image and a class's mean sentence.
    """
    best = scores.topk(min(n, scores.shape[1])).indices  # (B, n)
    against = (
        pairs[best[:, :, None], best[:, None]]
        * ~torch.eye(best.shape[1], dtype=torch.bool, device=best.device)[..., None]
    )
    cosines = (Clip.unit(against.sum(2)) @ image[..., None])[..., 0]
    return torch.zeros_like(scores).scatter(1, best, cosines.to(scores.dtype))


def _find(content: Mapping[str, object], name: str) -> object:
    """Return what a mapping has for a class, by its id or its name."""
    keys = map(normalize_name, (getattr(name, "id", name), name))
    return next((content[key] for key in keys if key in content), None)
