"""tools/bench icl: learning in context with 16 demonstrations, read once, against read again for every test text.

The model is a Llama of 6 layers, 256 wide, with random weights and byte tokens. Written out: transformers' own model
takes demonstrations, text and (where choices have several tokens) each choice as one row, right-padded, in the same
batches of 16 rows, and the vocabulary is met only where an answer stands. Scores of 32 texts (16 where choices have
several tokens), reading the demonstrations included; `same` compares the scores. The last case writes 16 tokens for
each of 16 texts, greedily, written out by transformers' `generate`; `same` is the share of unlike texts.
"""

import tempfile

import torch

from vlprompt.core.batch import Split
from vlprompt.core.class_names import ClassName
from vlprompt.core.stage import Lesson
from vlprompt.core.texts import TextItem
from vlprompt.engine.evaluate import iter_logits
from vlprompt.methods import InContext
from vlprompt.methods._demonstration_items import decode_items
from vlprompt.runtime.seeding import make_generator

FOUR_CHOICES = ("aaaa", "bbbb", "cccc", "dddd")
CASES = {
    "one token, 2 classes": (32, ("x", "y")),
    "four tokens, 4 classes": (16, FOUR_CHOICES),
    "written, 16 tokens": (16, FOUR_CHOICES),
}
SINGLE_THREADED = ON_CPU_ALONE = True
TARGETS = {"written, 16 tokens": ("ratio >= 5",)}
GENERATION_OPTIONS = {"max_new_tokens": 16, "min_new_tokens": 16, "do_sample": False, "pad_token_id": 0}
N_DEMONSTRATIONS, TEXT_LENGTH, BATCH_SIZE = 16, 48, 16  # demonstrations, characters of a text, rows of a pass


def build_byte_tokenizer():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE({c: i for i, c in enumerate(["</s>", *alphabet])}, []))
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="</s>", model_max_length=4096)


class InContextBenchmark:
    """One case: texts, choices, and the model as a tower and as the plain transformers model."""

    def __init__(self, case, device, dtype):
        import transformers

        from vlprompt.backbones.hf.loading import wrap_language_model

        (self.n_texts, self.choices), self.is_generation = CASES[case], case.startswith("written")
        self.tokenizer, self.device = build_byte_tokenizer(), torch.device(device)
        torch.manual_seed(0)
        config = transformers.LlamaConfig(
            vocab_size=len(self.tokenizer),
            hidden_size=256,
            intermediate_size=688,
            num_hidden_layers=6,
            num_attention_heads=8,
            num_key_value_heads=8,
            max_position_embeddings=4096,
        )
        net = transformers.LlamaForCausalLM(config).to(device, dtype)
        for p in net.parameters():  # the usual 0.02 makes all answers alike
            p.data.mul_(3.0 if p.ndim > 1 else 1.0)
        with tempfile.TemporaryDirectory() as folder:  # a twin with its own attention, as transformers loads it
            net.save_pretrained(folder)
            self.reference_model = transformers.LlamaForCausalLM.from_pretrained(folder, attn_implementation="sdpa").to(
                device
            )
        self.reference_model.eval()
        names = tuple(ClassName(choice) for choice in self.choices)
        letters = "abcdefghijklmnopqrstuvwxyz     "

        def items(tag, n):
            drawn = torch.randint(len(letters), (n, TEXT_LENGTH), generator=make_generator("icl", tag)).tolist()
            words = ["q" + "".join(letters[k] for k in row).strip() for row in drawn]
            return tuple(TextItem(f"{tag}/{i}", {"text": t}, "{text}:{mask}", "{text}") for i, t in enumerate(words))

        self.train_split = Split(items("train", 64), tuple(i % len(names) for i in range(64)), names)
        self.test_split = Split(items("test", self.n_texts), (0,) * self.n_texts, names)
        self.method = InContext(
            wrap_language_model(net, self.tokenizer, "causal", "bench", device),
            N_DEMONSTRATIONS,
            demonstration_selection="balanced",
        )
        self.method.begin_lesson(Lesson(self.train_split), make_generator(0))

    def fast(self):
        self.method._demonstrations = None  # the demonstrations are read anew
        if self.is_generation:
            return self.method.eval().generate(next(self.test_split.batches(self.n_texts)).inputs, **GENERATION_OPTIONS)
        return torch.cat(list(iter_logits(self.method, self.test_split)))

    @torch.no_grad()
    def reference(self):
        ids = lambda text: self.tokenizer(text, add_special_tokens=False)["input_ids"]  # noqa: E731
        before = ids(
            "\n\n".join(
                f"{item.fields['text']}:{item.response}" for item in decode_items(self.method.encoded_demonstrations)
            )
        )
        if self.is_generation:
            return self._generate_reference(before, ids)
        said = self.method.lm.tokenize_answers(self.choices, "{text}:{mask}")
        every = [[]] if all(len(tokens) == 1 for tokens in said) else said
        rows = [
            (before + ids(f"\n\n{item.fields['text']}:"), tokens) for item in self.test_split.items for tokens in every
        ]
        found = []
        for begin in range(0, len(rows), BATCH_SIZE):
            some = rows[begin : begin + BATCH_SIZE]
            n = max(len(context) + len(tokens) for context, tokens in some)
            padded = [[*context, *tokens, *[0] * (n - len(context) - len(tokens))] for context, tokens in some]
            mask = [[1] * (len(context) + len(tokens)) for context, tokens in some]
            mask = torch.tensor([[*row, *[0] * (n - len(row))] for row in mask], device=self.device)
            input_ids = torch.tensor(padded, device=self.device)
            x = self.reference_model.model(input_ids=input_ids, attention_mask=mask, use_cache=False).last_hidden_state
            for (context, tokens), states in zip(some, x, strict=True):
                at = len(context) - 1
                p = self.reference_model.lm_head(states[at : at + max(1, len(tokens))]).log_softmax(-1)
                if tokens:
                    found.append(sum(p[k, token] for k, token in enumerate(tokens)))
                else:
                    found += [p[0, one[0]] for one in said]
        return torch.stack(found).view(len(self.test_split), len(self.choices)).cpu()

    def _generate_reference(self, context_ids, encode):
        rows = [context_ids + encode(f"\n\n{item.fields['text']}:") for item in self.test_split.items]
        n = max(map(len, rows))
        given = torch.tensor([[0] * (n - len(row)) + row for row in rows], device=self.device)
        mask = torch.tensor([[0] * (n - len(row)) + [1] * len(row) for row in rows], device=self.device)
        made = self.reference_model.generate(input_ids=given, attention_mask=mask, **GENERATION_OPTIONS)[:, n:]
        texts = self.tokenizer.batch_decode(made, skip_special_tokens=True)
        return [text.strip().split(self.method.separator)[0].strip() for text in texts]

    def measure_difference(self):
        mine, theirs = self.fast(), self.reference()
        if self.is_generation:
            return sum(a != b for a, b in zip(mine, theirs, strict=True)) / len(mine)
        return float((mine - theirs).abs().max() / theirs.abs().max())

    def run_variant(self, variant):
        getattr(self, variant)()


build_benchmark = InContextBenchmark
