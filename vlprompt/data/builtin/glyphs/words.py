"""Glyph names (75 classes), colours, and a small caption grammar."""

import random

DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
LETTERS = list("abcdefghijklmnopqrstuvwxyz")
SAME_IN_BOTH_CASES = set("cijkopsuvwxz")  # upper and lower case look the same once the size is normalised
SYMBOLS = {  # name -> the characters that draw it
    "star": "★☆",
    "heart": "♥♡",
    "spade": "♠",
    "club": "♣",
    "diamond": "♦◇",
    "circle": "●○",
    "square": "■□",
    "triangle": "▲△",
    "right arrow": "→➔",
    "left arrow": "←",
    "up arrow": "↑",
    "down arrow": "↓",
    "sun": "☀",
    "umbrella": "☂",
    "telephone": "☎",
    "music note": "♪",
    "anchor": "⚓",
    "airplane": "✈",
    "scissors": "✂",
    "skull": "☠",
    "smiley face": "☺",
    "moon": "☾",
    "snowflake": "❄",
    "crown": "♛",
    "horse": "♞",
    "flag": "⚑",
    "envelope": "✉",
    "flower": "✿",
    "plus sign": "+",
    "question mark": "?",
    "exclamation mark": "!",
    "ampersand": "&",
    "at sign": "@",
    "hash sign": "#",
    "dollar sign": "$",
    "percent sign": "%",
    "infinity sign": "∞",
    "cross": "✗",
    "check mark": "✓",
}
NAMES = [f"digit {w}" for w in DIGITS] + [f"letter {c}" for c in LETTERS] + list(SYMBOLS)  # 75, in class order
KINDS = ["digit"] * 10 + ["letter"] * 26 + ["symbol"] * len(SYMBOLS)

COLOURS = {
    "red": (0.85, 0.1, 0.1),
    "green": (0.1, 0.65, 0.15),
    "blue": (0.1, 0.2, 0.85),
    "yellow": (0.95, 0.9, 0.1),
    "orange": (0.98, 0.55, 0.05),
    "purple": (0.5, 0.1, 0.65),
    "pink": (0.98, 0.55, 0.7),
    "cyan": (0.1, 0.85, 0.9),
    "brown": (0.5, 0.3, 0.12),
    "white": (0.96, 0.96, 0.96),
    "black": (0.04, 0.04, 0.04),
    "gray": (0.5, 0.5, 0.5),
}
MEDIUM_WORDS = (("printed", "typed", "typeset"), ("handwritten", "hand drawn", "hand written"))
QUALITY_WORDS = (
    ("clean", "sharp", "clear"),
    ("blurry", "blurred", "out of focus"),
    ("noisy", "grainy"),
    ("low resolution", "pixelated", "low quality"),
)
STROKE_WORDS = {-1: ("thin",), 1: ("thick", "bold")}
SIZE_WORDS = {-1: ("small", "tiny"), 1: ("large", "big")}
CAPTION_OPENINGS = (
    "a photo of {}",
    "a photo of {}",
    "a photo of {}",
    "a picture of {}",
    "an image of {}",
    "{}",
    "{}",
    "this is {}",
    "a photo showing {}",
    "a drawing of {}",
    "an illustration of {}",
    "the picture shows {}",
    "there is {} in this image",
    "a cropped photo of {}",
    "a close-up photo of {}",
    "you can see {} here",
    "an example of {}",
    "a good photo of {}",
    "a rendering of {}",
    "it is {}",
)


def make_simple_caption(kind: int) -> str:
    """Return the fixed caption of a class, used in the first training steps: "a photo of the digit seven."."""
    return f"a photo of the {NAMES[kind]}."


def make_noun_phrase(attributes: dict, rng: random.Random) -> tuple[str, dict]:
    """Sample a noun phrase for a glyph.

    Returns:
        The phrase, and the attributes that it mentions.
    """
    kind, mentioned = attributes["kind"], {"kind": attributes["kind"]}
    if KINDS[kind] == "digit":
        word = DIGITS[kind] if rng.random() < 0.65 else str(kind)
        noun = rng.choice(("digit", "digit", "number", "number", "", "", "numeral", "figure"))
        return f"{noun} {word}".strip(), mentioned
    if KINDS[kind] == "letter":
        letter = LETTERS[kind - 10]
        if attributes["case"] and rng.random() < 0.4:
            mentioned["case"] = attributes["case"]
            cases = ("lowercase letter", "small letter", "lowercase"), ("uppercase letter", "capital letter", "capital")
            return f"{rng.choice(cases[attributes['case'] - 1])} {letter}", mentioned
        return f"{rng.choice(('letter', 'letter', 'letter', 'character', ''))} {letter}".strip(), mentioned
    return (f"{rng.choice(('symbol', 'shape'))} " if rng.random() < 0.2 else "") + NAMES[kind], mentioned


def make_caption(attributes: dict, rng: random.Random, detail: float) -> tuple[str, dict]:
    """Sample a caption.

    Args:
        attributes: the attributes of a glyph, by name.
        rng: draws the words.
        detail: 0..1, scales the probability of each optional attribute.

    Returns:
        The caption, and the attributes that it mentions.
    """
    colours = list(COLOURS)
    words, mentioned = make_noun_phrase(attributes, rng)
    adjectives = []

    def mention(attribute: str, probability: float, choices: tuple[str, ...] | None) -> None:
        if choices and rng.random() < probability * detail:
            mentioned[attribute] = attributes[attribute]
            adjectives.append(rng.choice(choices))

    mention("hand", 0.30, MEDIUM_WORDS[attributes["hand"]])
    mention("ink", 0.30, (colours[attributes["ink"]],))
    mention("stroke", 0.15, STROKE_WORDS.get(attributes["stroke"]))
    mention("size", 0.15, SIZE_WORDS.get(attributes["size"]))
    rng.shuffle(adjectives)
    article = rng.choice(("a", "the", "the", "", "one", "this"))
    opening, suffix = rng.choice(CAPTION_OPENINGS), ""
    if rng.random() < 0.22 * detail:
        mentioned["quality"], word = attributes["quality"], rng.choice(QUALITY_WORDS[attributes["quality"]])
        if opening.startswith("a photo") and word != "out of focus" and rng.random() < 0.6:
            opening = opening.replace("a photo", f"a {word} photo", 1)
        else:
            suffix = rng.choice((", ", ", it is ")) + word
    text = opening.format(" ".join(w for w in (article, *adjectives, words) if w))
    if rng.random() < 0.22 * detail:
        mentioned["ground"] = attributes["ground"]
        text += rng.choice((" on a {} background", " on {}", " with a {} background", ", {} background")).format(
            colours[attributes["ground"]]
        )
    return text + suffix + ("." if rng.random() < 0.5 else ""), mentioned
