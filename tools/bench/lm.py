"""tools/bench lm: a training step on a random Llama, against PEFT doing the same on the same model.

Sixteen texts of 20 to 80 tokens with responses of four; the loss is on the responses, AdamW, float32. PEFT runs as its
documentation says: the model's own forward with `labels` on rows that are padded on the right, which makes logits over
the vocabulary for every row of every text; ours makes those that the loss reads, and without padding (on a CPU packed
or not). `same` compares the gradients after PEFT's adapter was given our values. The models: 27 million parameters
(512 wide, 8 layers, 8192 words).
"""

import copy

import torch

from vlprompt.backbones.hf.loading import build_quantization_config, wrap_language_model
from vlprompt.core.batch import Split
from vlprompt.core.class_names import ClassName
from vlprompt.core.stage import Lesson
from vlprompt.core.texts import TextItem
from vlprompt.engine.loop import Loop
from vlprompt.engine.train_config import TrainConfig
from vlprompt.layers.verbalizers import ResponseHead
from vlprompt.runtime.seeding import make_generator

CASES = {
    "prompt_tuning": None,
    "prefix_tuning": None,
    "lora": "fp32",
    "lora, packed": "fp32",
    "lora, checkpointing": "fp32",
    "qlora": "nf4",
}
SINGLE_THREADED = ON_CPU_ALONE = True
TARGETS = dict.fromkeys(
    ("prompt_tuning", "prefix_tuning", "lora", "lora, packed"), ("ratio >= 1.3", "memory_share <= 0.8")
)
VOCABULARY_SIZE, BATCH_SIZE = 8192, 16


def build_tokenizer():
    """A tokenizer with one token for each word, so that token counts equal word counts."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCABULARY_SIZE)}, unk_token="w0"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="w1", pad_token="w2", unk_token="w0")


def build_llama(precision, device):
    import tempfile

    import transformers

    torch.manual_seed(0)
    shape = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8, "num_attention_heads": 8}
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY_SIZE, num_key_value_heads=8, max_position_embeddings=512, **shape
    )
    net = transformers.LlamaForCausalLM(config).eval()
    if precision == "fp32":
        return net.to(device)
    with tempfile.TemporaryDirectory() as folder:
        net.save_pretrained(folder)
        return transformers.LlamaForCausalLM.from_pretrained(
            folder,
            quantization_config=build_quantization_config("nf4", "bench"),
            device_map={"": device},
            dtype=torch.float32,
        )


class LanguageModelBenchmark:
    """One case: our method and PEFT's on the same weights, texts and initial values."""

    n_repeats = 3

    def __init__(self, case, device, dtype):
        from vlprompt import methods

        self.case, self.device = case, torch.device(device)
        base = CASES[case] or "fp32"
        net = build_llama(base, device)
        self.tokenizer = build_tokenizer()
        self.lm = wrap_language_model(net, self.tokenizer, "causal", "bench", device, base)
        draw = torch.Generator().manual_seed(0)
        number = lambda low, high: int(torch.randint(low, high, (1,), generator=draw))  # noqa: E731
        said = lambda n: " ".join(f"w{number(3, VOCABULARY_SIZE)}" for _ in range(n))  # noqa: E731
        items = tuple(
            TextItem(str(i), {"text": said(number(20, 81))}, "{text} {mask}", "{text}", response=said(4))
            for i in range(BATCH_SIZE)
        )
        self.split = Split(items, (0,) * BATCH_SIZE, (ClassName("response"),))
        self.batch = next(self.split.batches(BATCH_SIZE))
        reader = ResponseHead(self.lm, packing="packed" in case)
        kind = case.partition(",")[0]
        self.method = {
            "prompt_tuning": lambda: methods.PromptTuning(self.lm, reader, 20),
            "prefix_tuning": lambda: methods.PrefixTuning(self.lm, reader, 20, hidden_dim=None),
        }.get(kind, lambda: methods.LoRA(self.lm, reader, rank=8, alpha=16.0, sites=("q", "v")))()
        self.method.begin_lesson(Lesson(self.split), make_generator(0))
        self.method.train()
        how = {
            "epochs": 1,
            "batch_size": BATCH_SIZE,
            "optimizer": "adamw",
            "lr": 1e-9,
            "activation_checkpointing": "checkpointing" in case,
        }
        self.loop = Loop(self.method, Lesson(self.split), TrainConfig(**how), 0)
        self.peft_model = self._build_peft_model(kind, net, "checkpointing" in case)
        self.optimizer = torch.optim.AdamW([p for p in self.peft_model.parameters() if p.requires_grad], lr=1e-9)
        self.inputs = self._pad_inputs()

    def _build_peft_model(self, kind, model, activation_checkpointing):
        import peft
        import transformers

        causal = {"task_type": "CAUSAL_LM"}
        config = {
            "prompt_tuning": lambda: peft.PromptTuningConfig(num_virtual_tokens=20, **causal),
            "prefix_tuning": lambda: peft.PrefixTuningConfig(num_virtual_tokens=20, **causal),
        }.get(kind, lambda: peft.LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], **causal))()
        if kind == "qlora":
            plain = build_llama("nf4", str(self.device))
        else:
            plain = transformers.LlamaForCausalLM(copy.deepcopy(model.config)).to(self.device)
            plain.load_state_dict(model.state_dict())
        plain.set_attn_implementation("sdpa")
        if activation_checkpointing:
            plain.gradient_checkpointing_enable({"use_reentrant": False})
            plain.enable_input_require_grads()
        made = peft.get_peft_model(plain.requires_grad_(False), config)
        with torch.no_grad():
            if kind == "prompt_tuning":
                made.prompt_encoder["default"].embedding.weight.copy_(self.method.tokens)
            elif kind == "prefix_tuning":
                made.prompt_encoder["default"].embedding.weight.copy_(self.method.flat_prefix())
            else:
                for i in range(self.lm.depth):
                    attention = made.base_model.model.model.layers[i].self_attn
                    for name in ("q", "v"):
                        part, to = self.method.adapters[f"{i}/{name}"], getattr(attention, f"{name}_proj")
                        to.lora_A["default"].weight.copy_(part.down)
                        to.lora_B["default"].weight.copy_(part.up)
        return made.train()

    def _pad_inputs(self):
        """Pad rows on the right, with labels on the responses only, as is usual with PEFT."""
        rows, n = (
            [
                self.lm.template_tokenizer.tokenize(self.batch.inputs.with_template(), i, 0, 0)
                for i in range(BATCH_SIZE)
            ],
            0,
        )
        n = max(len(row.ids) for row in rows)
        fill = lambda of, by: torch.tensor([[*of(r), *[by] * (n - len(r.ids))] for r in rows], device=self.device)  # noqa: E731
        labels = fill(lambda r: [-100] * r.answer_start + r.ids[r.answer_start :], -100)
        return {
            "input_ids": fill(lambda r: r.ids, 2),
            "attention_mask": fill(lambda r: [1] * len(r.ids), 0),
            "labels": labels,
        }

    def fast(self):
        self.loop.take_step(self.batch, 1e-9)

    def reference(self):
        self.optimizer.zero_grad()
        self.peft_model(**self.inputs).loss.backward()
        self.optimizer.step()

    def run_variant(self, variant):
        getattr(self, variant)()

    def measure_difference(self):
        """Return the largest relative difference of two gradients."""
        _, mine = self.loop.compute_gradients(self.batch)
        self.optimizer.zero_grad()
        self.peft_model(**self.inputs).loss.backward()
        named = {name: p.grad for name, p in self.peft_model.named_parameters() if p.grad is not None}
        if len(mine) == 1:
            [theirs] = named.values()
            return float((mine[0].reshape(theirs.shape) - theirs).abs().max() / theirs.abs().max())
        own = dict(zip((name for name, _ in self.method.named_parameters()), mine, strict=True))
        worst = 0.0
        for site in self.method.adapters:
            layer, kind = site.split("/")
            theirs = next(g for name, g in named.items() if f"layers.{layer}.self_attn.{kind}_proj.lora_B" in name)
            worst = max(worst, float((own[f"adapters.{site}.up"] - theirs).abs().max() / theirs.abs().max()))
        return worst


def extra(device):
    """Render a second table: memory of the frozen model and the optimizer, and bytes on disk."""
    from safetensors.torch import save

    lines = ["", "| work | frozen model MB | optimizer MB | stored bytes |", "|---|---:|---:|---:|"]
    for case in ("prompt_tuning", "prefix_tuning", "lora", "qlora"):
        setting = LanguageModelBenchmark(case, device, torch.float32)
        setting.fast()
        held = sum(t.nbytes for t in [*setting.lm.net.parameters(), *setting.lm.net.buffers()])
        slots = [
            t for state in setting.loop.optimizer.state.values() for t in state.values() if isinstance(t, torch.Tensor)
        ]
        disk = len(save({k: v.contiguous() for k, v in setting.method.state_dict().items()}))
        cells = f"{held / 2**20:.1f}", f"{sum(t.nbytes for t in slots) / 2**20:.2f}", f"{disk:,}"
        lines.append(f"| {' | '.join([case, *cells])} |")
    return lines


build_benchmark = LanguageModelBenchmark
