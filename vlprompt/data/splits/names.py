"""Split names and their synonyms, shared by the readers of images, texts, lists and tables."""

import re
from collections.abc import Iterable

SPLIT_NAMES = ("train", "val", "test")
SPLIT_ALIASES = {
    **dict.fromkeys(("train", "training", "trn"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "validate", "dev", "development"), "val"),
    **dict.fromkeys(("test", "testing", "tst", "eval", "evaluation"), "test"),
}
SPLIT_CHOICES = "train, val (valid, validation, dev) or test"  # as error messages list them
FILLER_WORDS = {"set", "data", "dataset", "split", "images", "image", "imgs", "img", "seg"}  # train_set, seg_train
FOLD_WORDS = {"fold", "kfold", "cv", "split", "part", "subset", "shard", "chunk", "batch"}  # fold1, part_b


def _split_words(name: object) -> list[str]:
    """Return the words and numbers of a name: ["train", "2017"] of train2017, ["train", "a"] of trainA."""
    text = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", str(name).strip())
    return re.findall(r"[^\W\d_]+|\d+", re.sub(r"(?i)\b(train|test|val|valid)set\b", r"\1", text.casefold()))


def parse_split_name(name: object) -> str | None:
    """Return "train", "val" or "test" for any of its synonyms (Training, test_set, val2017), None for anything else."""
    if str(name).strip().startswith("."):
        return None
    words = [w for w in _split_words(name) if w not in FILLER_WORDS and not re.fullmatch(r"(19|20)\d\d", w)]
    return SPLIT_ALIASES.get(words[0]) if len(words) == 1 else None


def mentions_split(name: str) -> bool:
    """Whether a word of a name is that of a split: trainA, dogs_test, train1."""
    return any(word in SPLIT_ALIASES for word in _split_words(name))


def is_fold_name(name: str) -> bool:
    """Whether a name counts parts of a dataset: fold1, split_2, part-b."""
    words = _split_words(name)
    return len(words) == 2 and words[0] in FOLD_WORDS and (words[1].isdecimal() or len(words[1]) == 1)


def assign_splits(names: Iterable[str], where: str) -> dict[str, str]:
    """Return {split: name} of the names that are those of splits.

    Raises:
        ValueError: for two names of one split.
    """
    names_by_split: dict[str, str] = {}
    for name in names:
        if (part := parse_split_name(name)) is None:
            continue
        if part in names_by_split:
            raise ValueError(
                f"{where}: expected one {part} split, got {names_by_split[part]!r} and {name!r}. Rename or remove one."
            )
        names_by_split[part] = name
    return names_by_split
