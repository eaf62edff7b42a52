"""Learning in context and chain of thought: scores against plain transformers, what is shown, what is extracted."""

import pytest
import small_models
import torch

import vlprompt
from vlprompt.evaluate import answers
from vlprompt.methods import InContext
from vlprompt.passages import Passage
from vlprompt.stage import Lesson, Name, Split

TEMPLATE = "{text} It was {mask}."
NAMES = (Name("negative", words=("terrible",)), Name("positive", words=("great",)))
TEXTS = ["the fox", "a lazy dog jumps", "shares fell", "the final after extra time", "warm and funny", "too long",
         "good", "the price of oil rose", "boring", "well played"]  # fmt: skip


def split(texts=TEXTS, tag="train", names=NAMES, template=TEMPLATE):
    items = tuple(Passage(f"{tag}/{i}", {"text": t}, template, "{text}") for i, t in enumerate(texts))
    return Split(items, tuple(i % len(names) for i in range(len(items))), names)


@pytest.fixture(scope="module")
def towers(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {f: vlprompt.load(f"hf:{small_models.written(f, root / f)}") for f in ("llama", "gpt2", "bert", "t5")}


def begun(method, train=None, seed=0):
    method.begin(Lesson(split() if train is None else train), torch.Generator().manual_seed(seed))
    return method.eval()


def scores(method, test, size=100):
    return torch.cat(list(answers(method, test, size)))


def shown(method):
    """The texts of what stands before the test, as the method keeps them."""
    return [(item.fields["text"], item.response) for item in method.prepare(NAMES, method.fixed(NAMES))[0].items]


@torch.no_grad()
def one_by_one(lm, before, texts, choices, after):
    """Sums of the log-probabilities of the choices' tokens, each in a pass of transformers of its own."""
    net, tok, rows = lm.net, lm.tokenizer, []
    ids = lambda text, special=False: tok(text, add_special_tokens=special)["input_ids"]  # noqa: E731
    for text in texts:
        context = [*ids(before, True), *ids(after + text)] if before else ids(text, True)
        row = []
        for choice in choices:
            said = ids(f"a {choice}")[len(ids("a")) :]
            whole = torch.tensor([[*context, *said]])
            made = net(input_ids=whole).logits[0].log_softmax(-1)
            row.append(sum(float(made[len(context) - 1 + k, token]) for k, token in enumerate(said)))
        rows.append(row)
    return torch.tensor(rows)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize(("shots", "instruction"), [(0, ""), (0, "Is it good?"), (3, "Is it good?")])
def test_scores_are_those_of_plain_transformers_one_by_one(towers, family, shots, instruction):
    lm, test = towers[family], split(TEXTS[:4], "test")
    method = begun(InContext(lm, shots, instruction=instruction))
    parts = [*([instruction] if instruction else []), *(f"{text} It was {said}." for text, said in shown(method))]
    texts = [f"{text} It was" for text in TEXTS[:4]]
    twin = one_by_one(lm, "\n\n".join(parts), texts, ["terrible", "great"], "\n\n")
    assert (scores(method, test) - twin).abs().max() < 1e-5
