"""Random descriptors in place of a language model's: Roth et al., "Waffling around for Performance", ICCV 2023.

arXiv:2306.07282. What descriptions of a language model bring, random words bring too: a control for every method that
has such texts. Differs from the authors' code in: the words are those of CLIP's tokenizer (theirs a list of common
words); all blocks of letters have one length; Python's random numbers.
"""

import random
import string
from collections.abc import Sequence
from statistics import fmean

MIN_WORD_LENGTH = 3


def draw_random_descriptors(names: Sequence[str], n_pairs: int, seed: int) -> list[str]:
    """Draw descriptors that all classes share: pairs of random words and of random letters.

    Args:
        names: of the classes; the descriptors have as many words as a name has on average, and words of their length.
        n_pairs: half as many as descriptors.
        seed: of the draw.

    Raises:
        ValueError: without names, or for fewer than one pair.
    """
    if not names or n_pairs < 1:
        raise ValueError(
            f"--samples: expected 1 or more pairs of random descriptors for 1 or more classes, got {n_pairs} for "
            f"{len(names)}. Set --samples 15."
        )
    split_names = [name.replace("_", " ").split() or [name] for name in names]
    n_words = max(1, round(fmean(len(words) for words in split_names)))
    length = max(1, round(fmean(fmean(map(len, words)) for words in split_names)))
    generator, words = random.Random(seed), list_words()
    descriptors = list[str]()
    for _ in range(n_pairs):
        descriptors.append(" ".join(word[:length] for word in generator.choices(words, k=n_words)))
        blocks = ("".join(generator.choices(string.ascii_lowercase, k=length)) for _ in range(n_words))
        descriptors.append(" ".join(blocks))
    return descriptors


def list_words() -> list[str]:
    """Return the words of CLIP's tokenizer in their order, without those of other letters than a to z."""
    from open_clip.tokenizer import SimpleTokenizer

    words = (token.removesuffix("</w>") for token in SimpleTokenizer().encoder if token.endswith("</w>"))
    letters = set(string.ascii_lowercase)
    return [word for word in words if len(word) >= MIN_WORD_LENGTH and set(word) <= letters]
