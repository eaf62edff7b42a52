"""PLOT++: Chen et al., "PLOT: Prompt Learning with Optimal Transport for Vision-Language Models", ICLR 2023.

arXiv:2210.01253; PLOT for ViTs, which the authors published with their code. The set of an image are the features of
several passes, each with tokens of its own. The first half of the steps trains these tokens by the plan's score and the
cosine of the mean features together; the rest trains the contexts of the class texts too, by the plan's score alone.
Sites: soft tokens at layer 0 of both towers, several sets each.

Differs from the authors' code in: the plan of an image and a class stops by itself, as in PLOT; each seed trains its
own first stage (theirs is trained once, on seed 1, and starts the second of seeds 1, 2, 3, so that two of them have
seen other shots too); contexts have the tokens of their words (theirs count words: ImageNet's third sentence, which has
three, takes the end of a text as its fourth token and loses the first token of each name); the momentum of the image
tokens goes on into the second stage; float32 (theirs half precision). From the paper in: it has no PLOT++.

Expected (few-shot, ViT-B/16, mean of 11 sets, the authors' page): 70.71 74.00 76.92 79.65 82.09 at 1 2 4 8 16 shots.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vlprompt.core.class_names import Names
from vlprompt.core.images import Images
from vlprompt.core.method import Method, Output
from vlprompt.core.prompt import Prompt
from vlprompt.core.stage import Lesson
from vlprompt.core.towers import Clip
from vlprompt.layers.class_texts import fill_class_texts
from vlprompt.layers.optimal_transport import MIN_EPSILON, compute_transport_scores


class PLOTpp(Method):
    """Several contexts of both towers, matched by optimal transport.

    Args:
        clip: frozen CLIP.
        init_texts: sentences that the contexts start from, each cut to the number of words of the first; what is cut
            off stands frozen before the class name.
        n_image_prompts: sets of tokens in the image tower, each a pass of its own (M).
        n_image_tokens: tokens of each set.
        share: of the steps in the first stage, which has one at least.
        epsilon: weight of the plan's entropy.
        max_rounds: of Sinkhorn's algorithm.
        threshold: mean change of the factors of an image's features at which the rounds of a pair end.
    """

    parameters_without_grad = ("ctx",)  # in the first stage
    is_joint: Tensor  # whether the second stage has begun

    def __init__(
        self,
        clip: Clip,
        init_texts: tuple[str, ...] = ("a photo of a", "this is a photo", "this is picture of", "one picture of a"),
        n_image_prompts: int = 4,
        n_image_tokens: int = 2,
        share: float = 0.5,
        epsilon: float = 0.1,
        max_rounds: int = 100,
        threshold: float = 0.01,
    ):
        super().__init__()
        self.clip, self.init_texts, self.share = clip, tuple(init_texts), share
        self.n_image_prompts, self.n_image_tokens = n_image_prompts, n_image_tokens
        self.epsilon, self.max_rounds, self.threshold = epsilon, max_rounds, threshold

    def begin_lesson(self, lesson: Lesson, generator: torch.Generator) -> None:
        self.register_buffer("is_joint", torch.tensor(False, device=self.clip.device))
        if lesson.index:
            return
        self.require_at_least(n_image_prompts=1, n_image_tokens=1, share=0)
        self.require_at_least(epsilon=MIN_EPSILON, max_rounds=1, threshold=0)
        self.require_at_most(share=1)
        self.clip.image.require_blocks()
        self.ctx = nn.Parameter(self._init_contexts(generator))  # (N, P, D)
        tokens = torch.randn(self.n_image_prompts, self.n_image_tokens, self.clip.image.dim, generator=generator)
        self.image_ctx = nn.Parameter((0.02 * tokens).to(self.clip.device))  # (M, P, D)

    def _cut_texts(self) -> list[tuple[str, str]]:
        """Return the words of each sentence that are learned, and those that stay."""
        words = [text.split() for text in self.init_texts]
        n = len(words[0]) if words else 0
        return [(" ".join(text[:n]), " ".join(text[n:])) for text in words]

    def _init_contexts(self, generator: torch.Generator) -> Tensor:
        starts = [start for start, _ in self._cut_texts()]
        contexts = [self.clip.text.init_context(None, start, generator) for start in starts if start]
        lengths = [len(context) for context in contexts]
        if len(lengths) < max(1, len(starts)) or len(set(lengths)) > 1:
            raise ValueError(
                "method.init_texts: expected sentences whose first words, as many as the first sentence has, are "
                f"equally many tokens, got {list(self.init_texts)} with {lengths}. Change the sentences."
            )
        return torch.stack(contexts)

    def precompute(self, names: Names) -> list[tuple[list[str], list[int]]]:
        """Texts of the classes, and the contexts that stand before them, for each frozen end of a sentence."""
        rests = [rest for _, rest in self._cut_texts()]
        templates = {rest: f"{{ctx}} {rest} {{name}}." if rest else "{ctx} {name}." for rest in rests}
        return [
            (fill_class_texts(template, names, self.ctx.shape[1]), [i for i, r in enumerate(rests) if r == rest])
            for rest, template in templates.items()
        ]

    def prepare(self, names: Names, fixed: list[tuple[list[str], list[int]]]) -> tuple[Tensor, bool]:
        is_joint, order = bool(self.is_joint), [i for _, indices in fixed for i in indices]
        with torch.set_grad_enabled(torch.is_grad_enabled() and is_joint):
            parts = [self.clip.text(texts, Prompt(tokens={0: self.ctx[indices]})) for texts, indices in fixed]
        return torch.cat(parts)[torch.tensor(order).argsort()], is_joint  # (N, C, E)

    def forward(self, inputs: Images, prepared: tuple[Tensor, bool]) -> Output:
        text, is_joint = prepared
        passes = [self.clip.image(inputs, Prompt(tokens={0: tokens[None]})) for tokens in self.image_ctx]
        image = torch.stack(passes, 1)  # (B, M, E)
        scores = compute_transport_scores(image, text, self.epsilon, self.max_rounds, self.threshold)
        logits, features = self.clip.scale * scores, (image.mean(1), text.mean(0))
        logits = logits if is_joint else logits + self.clip.logits(*features)
        return Output(logits, image_features=features[0], text_features=features[1])

    def idle_parameters(self) -> Sequence[nn.Parameter]:
        return [] if self.is_joint else [self.ctx]

    def schedule_starts(self, steps: int) -> Sequence[int]:
        return 0, max(1, int(self.share * steps))

    def end_step(self, step: int, steps: int) -> None:
        """Begin the second stage, if any steps are left for it."""
        if step == self.schedule_starts(steps)[1] and step < steps:
            self.is_joint.fill_(True)
