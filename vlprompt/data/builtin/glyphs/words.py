"""What the glyphs are called: 75 classes, colours, and a small grammar of captions."""

import random

DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
LETTERS = list("abcdefghijklmnopqrstuvwxyz")
ALIKE = set("cijkopsuvwxz")  # upper and lower case look the same once the size is normalised
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
MEDIUM = (("printed", "typed", "typeset"), ("handwritten", "hand drawn", "hand written"))
QUALITY = (
    ("clean", "sharp", "clear"),
    ("blurry", "blurred", "out of focus"),
    ("noisy", "grainy"),
    ("low resolution", "pixelated", "low quality"),
)
STROKE = {-1: ("thin",), 1: ("thick", "bold")}
SIZE = {-1: ("small", "tiny"), 1: ("large", "big")}
OPENINGS = (
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


def simple(kind: int) -> str:
    """The one caption of the first training steps: "a photo of the digit seven."."""
    return f"a photo of the {NAMES[kind]}."


def noun(look: dict, rng: random.Random) -> tuple[str, dict]:
    """A noun phrase for the glyph, and which attributes it has told."""
    kind, told = look["kind"], {"kind": look["kind"]}
    if KINDS[kind] == "digit":
        word = DIGITS[kind] if rng.random() < 0.65 else str(kind)
        first = rng.choice(("digit", "digit", "number", "number", "", "", "numeral", "figure"))
        return f"{first} {word}".strip(), told
    if KINDS[kind] == "letter":
        letter = LETTERS[kind - 10]
        if look["case"] and rng.random() < 0.4:
            told["case"] = look["case"]
            cases = ("lowercase letter", "small letter", "lowercase"), ("uppercase letter", "capital letter", "capital")
            return f"{rng.choice(cases[look['case'] - 1])} {letter}", told
        return f"{rng.choice(('letter', 'letter', 'letter', 'character', ''))} {letter}".strip(), told
    return (f"{rng.choice(('symbol', 'shape'))} " if rng.random() < 0.2 else "") + NAMES[kind], told


def caption(look: dict, rng: random.Random, detail: float) -> tuple[str, dict]:
    """A caption of a look and the attributes that it mentions; `detail` 0..1 scales how much it says."""
    colours = list(COLOURS)
    words, told = noun(look, rng)
    adjectives = []

    def mention(attribute, chance, choices):
        if choices and rng.random() < chance * detail:
            told[attribute] = look[attribute]
            adjectives.append(rng.choice(choices))

    mention("hand", 0.30, MEDIUM[look["hand"]])
    mention("ink", 0.30, (colours[look["ink"]],))
    mention("stroke", 0.15, STROKE.get(look["stroke"]))
    mention("size", 0.15, SIZE.get(look["size"]))
    rng.shuffle(adjectives)
    article = rng.choice(("a", "the", "the", "", "one", "this"))
    opening, late = rng.choice(OPENINGS), ""
    if rng.random() < 0.22 * detail:
        told["quality"], word = look["quality"], rng.choice(QUALITY[look["quality"]])
        if opening.startswith("a photo") and word != "out of focus" and rng.random() < 0.6:
            opening = opening.replace("a photo", f"a {word} photo", 1)
        else:
            late = rng.choice((", ", ", it is ")) + word
    text = opening.format(" ".join(w for w in (article, *adjectives, words) if w))
    if rng.random() < 0.22 * detail:
        told["ground"] = look["ground"]
        text += rng.choice((" on a {} background", " on {}", " with a {} background", ", {} background")).format(
            colours[look["ground"]]
        )
    return text + late + ("." if rng.random() < 0.5 else ""), told
