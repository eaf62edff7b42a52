"""Train the embedded CLIP from nothing but rendered glyphs and captions: tools/pretrain_glyph.py --seed 0 --out FILE.

Symmetric InfoNCE (Radford et al. 2021, arXiv:2103.00020) in which pairs that fit by construction are no negatives. One
thread, fixed steps and seeds: the same machine gives the same file, bit for bit. It looks at no digit of the test half.
"""

import argparse
import json
import math
import random
import time

import open_clip
import torch
import torch.nn.functional as F
from open_clip.model import CLIP
from safetensors.torch import save_file
from torchvision.transforms.functional import InterpolationMode, pil_to_tensor, resize

from vlprompt.data.builtin import digits
from vlprompt.data.builtin.glyphs.render import GlyphRenderer
from vlprompt.data.builtin.glyphs.words import COLOURS, DIGITS, NAMES, make_caption, make_simple_caption

N_UNKNOWN_ROWS = 64  # rows that stand for words it will never meet
MEAN, STD = 0.5, 0.5
CONFIG = {
    "embed_dim": 128,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 128, "layers": 6, "head_width": 32, "mlp_ratio": 2.0},
    "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 128, "heads": 4, "layers": 4, "mlp_ratio": 2.0},
}
EXTRA_WORDS = [
    "style",
    "domain",
    "word",
    "handwriting",
    "printed",
    "background",
    "photo",
    "sketch",
    "painting",
    "clipart",
    "real",
    "0",
    "1",
    "2",
    "3",
    "4",
    "5",
    "6",
    "7",
    "8",
    "9",
]


class CaptionTokenizer:
    """Tokenize captions to compact ids: only words of the grammar have a trained embedding."""

    def __init__(self, rng):
        self.encode, self.rng = open_clip.get_tokenizer("ViT-B-32").encode, rng
        glyphs, grammar = GlyphRenderer(1), random.Random(1)
        texts = (
            [make_caption(glyphs.sample_attributes(), grammar, 1.0)[0] for _ in range(6000)]
            + NAMES
            + DIGITS
            + list(COLOURS)
            + EXTRA_WORDS
        )
        ids = {i for text in texts for i in self.encode(text)}
        self.ids = [*sorted(ids), 49406, 49407]  # the last two begin and end a text
        self.row_of_id = {i: k for k, i in enumerate(self.ids)}

    def __call__(self, texts, with_unknown_words=True):
        """Padded ids (n, L) and where the end stands; `with_unknown_words` puts unknown words in, also a run of them
        in front.
        """
        rows, rng, spare = [], self.rng, lambda: len(self.ids) + self.rng.randrange(N_UNKNOWN_ROWS)
        for text in texts:
            row = [self.row_of_id[i] for i in self.encode(text)][:29]
            if (
                with_unknown_words and rng.random() < 0.2
            ):  # what a learned context looks like; trains the later positions
                row = [spare() for _ in range(rng.randint(1, 16))] + row
            while with_unknown_words and rng.random() < 0.1:
                row.insert(rng.randint(0, len(row)), spare())
            rows.append([self.row_of_id[49406], *row[:30], self.row_of_id[49407]])
        longest = max(map(len, rows))
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
        return ids, torch.tensor([len(row) - 1 for row in rows])


def encode_text(model, unknown_rows, ids, end):
    table = torch.cat([model.token_embedding.weight, unknown_rows])
    x = table[ids] + model.positional_embedding[: ids.shape[1]]
    x = model.transformer(x, attn_mask=model.attn_mask[: ids.shape[1], : ids.shape[1]])
    return F.normalize(model.ln_final(x)[torch.arange(len(ids)), end] @ model.text_projection, dim=-1)


def encode_image(model, pixels):
    return F.normalize(model.encode_image((pixels - MEAN) / STD), dim=-1)


def draw_batch(glyphs, rng, size, detail, caption_fraction):
    looks = [glyphs.sample_attributes() for _ in range(size)]
    told = [
        make_caption(look, rng, detail)
        if rng.random() < caption_fraction
        else (make_simple_caption(look["kind"]), {"kind": look["kind"]})
        for look in looks
    ]
    fits = torch.tensor([[all(look[a] == v for a, v in says.items()) for _, says in told] for look in looks])
    return glyphs.render(looks), [text for text, _ in told], fits


def load_development_digits():
    """Load the real digits of the development half, for monitoring only."""
    places = digits.split_indices()["train"] + digits.split_indices()["val"]
    x = torch.stack([pil_to_tensor(digits.open_digit(i)) for i in places])
    x = resize(x, [32, 32], InterpolationMode.BICUBIC).float() / 255
    return x, torch.tensor(digits.load_digit_arrays()[1][places])


@torch.no_grad()
def evaluate_on_digits(model, unknown_rows, tokenizer, pixels, labels):
    model.eval()
    image, found = encode_image(model, pixels), {}
    for template in ("a photo of the digit {}.", "a photo of a {}.", "a handwritten digit {}."):
        text = encode_text(
            model, unknown_rows, *tokenizer([template.format(w) for w in DIGITS], with_unknown_words=False)
        )
        found[template] = round((image @ text.T).argmax(1).eq(labels).float().mean().item(), 4)
    model.train()
    return found


def save_checkpoint(model, tokenizer, args, accuracies, path):
    """Save the weights in half precision, with only the trained rows of the token embedding and their ids."""
    state = {
        k: v.half().contiguous()
        for k, v in model.state_dict().items()
        if k not in ("attn_mask", "token_embedding.weight")
    }
    state["logit_scale"] = model.logit_scale.detach().float()
    state["token_embedding.rows"] = model.token_embedding.weight.detach().half()
    state["token_embedding.ids"] = torch.tensor(tokenizer.ids, dtype=torch.int32)
    told = {k: v for k, v in vars(args).items() if k != "out"}
    made = {"config": CONFIG, "args": told, "development": accuracies, "mean": MEAN, "std": STD}
    save_file(state, path, metadata={"glyph": json.dumps(made)})  # one key: several would come in any order


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1e-3)
    return parser.parse_args()


def main():
    args = parse_arguments()
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    rng = random.Random(args.seed)
    glyphs, words, real = GlyphRenderer(args.seed), CaptionTokenizer(rng), load_development_digits()
    model = CLIP(**{**CONFIG, "text_cfg": {**CONFIG["text_cfg"], "vocab_size": len(words.ids)}})
    spare = torch.randn(N_UNKNOWN_ROWS, 128) * 0.02
    with torch.no_grad():  # the cold start: let the words, not the end or the position, decide at first
        model.positional_embedding.mul_(0.1)
        model.token_embedding.weight[-2:] *= 0.05
    plain = [p for n, p in model.named_parameters() if p.ndim > 1 and "embedding" not in n]
    rest = [p for n, p in model.named_parameters() if not (p.ndim > 1 and "embedding" not in n)]
    groups = [{"params": plain, "weight_decay": 0.05}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.98))
    began = time.process_time()
    for step in range(args.steps):
        done = step / args.steps
        lr = args.lr * min(1, (step + 1) / 60) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))
        for group in optimizer.param_groups:
            group["lr"] = lr
        glyphs.detail = min(1.0, max(0.0, (done - 0.12) / 0.35))  # one template and plain images first, then all of it
        wordy = min(1.0, 1.3 * glyphs.detail)
        pixels, texts, fits = draw_batch(glyphs, rng, args.batch, glyphs.detail, wordy)
        logits = model.logit_scale.exp() * encode_image(model, pixels) @ encode_text(model, spare, *words(texts)).T
        own = torch.eye(len(logits), dtype=torch.bool)
        logits, labels = logits.masked_fill(fits & ~own, -1e4), torch.arange(len(logits))
        loss = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
        if step % 200 == 199:
            spent, hit = time.process_time() - began, logits.argmax(1).eq(labels).float().mean()
            print(
                f"step {step + 1} {spent:.0f} s loss {loss:.3f} batch {hit:.2f}",
                evaluate_on_digits(model, spare, words, *real),
                flush=True,
            )
    save_checkpoint(model, words, args, evaluate_on_digits(model, spare, words, *real), args.out)


if __name__ == "__main__":
    main()
