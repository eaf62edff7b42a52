"""PromptKD: Li et al., "PromptKD: Unsupervised Prompt Distillation for Vision-Language Models", CVPR 2024.

arXiv:2403.02781. A CLIP with learned image tokens and a projector learns the answers of a larger, trained teacher on
unlabelled images of all classes, new ones included; its classifier are the teacher's class texts, its own text tower is
never used. Sites: soft tokens at layers 0 to depth - 1 of the image tower. Use: a teacher and unlabelled images.

Differs from the authors' code in: the last epoch is used (theirs takes the best of 20 on the test images of the base
classes, or of the target); teacher and student each read an image with their own preprocessing, of the same crop;
float32 (theirs is half precision alone). From the paper in: the loss is divided by the number of classes too, as in the
code, so that one weight is weaker with many classes. Unlabelled images and names of the new classes are seen: the
numbers do not compare with those of methods that see the base classes alone.

Expected (base-to-new, ViT-B/16, teacher PromptSRC on ViT-L/14 with 16 shots, mean of 11 sets): base 86.96, new 80.73,
harmonic mean 83.73; on unlabelled images of ten targets, teacher trained on ImageNet: 71.33.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlprompt.core.batch import Batch
from vlprompt.core.class_names import Names, class_ids, extend_ids
from vlprompt.core.head import Fixed, Prepared
from vlprompt.core.images import Images
from vlprompt.core.method import LossTerms, Method, Output
from vlprompt.core.prompt import Prompt
from vlprompt.core.stage import Lesson
from vlprompt.core.teacher import Teacher
from vlprompt.core.towers import Clip
from vlprompt.layers.heads import find_class_indices, find_known_classes
from vlprompt.layers.initial_values import make_linear
from vlprompt.runtime.errors import UnknownClassError


class PromptKD(Method):
    """Image tokens and a projector that learn a teacher's answers to unlabelled images.

    Args:
        clip: frozen CLIP, the student's.
        teacher: a second CLIP, as it is or with a run of a method that has one text for each class, such as promptsrc;
            settings are {backbone: ..., run: FOLDER}.
        n_tokens: image tokens at each layer.
        depth: number of layers that have them, clipped to the tower's depth.
        weight: of the divergence (kd).
        temperature: of both softmaxes (tau).
    """

    texts: Tensor  # (C, E), the teacher's
    class_ids: Names = ()  # of their rows
    uses = ("teacher", "unlabelled_images")
    needs_whole_batch = True  # the projector's batch norm
    parameters_without_grad = ("projector.0.bias",)  # which the batch norm takes away

    def __init__(
        self,
        clip: Clip,
        teacher: Teacher,
        n_tokens: int = 4,
        depth: int = 9,
        weight: float = 1000.0,
        temperature: float = 1.0,
    ):
        super().__init__()
        self.clip, self.teacher, self.n_tokens, self.depth = clip, teacher, n_tokens, depth
        self.weight, self.temperature = weight, temperature

    @property
    def needs_unlabelled(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return True  # of any task that has them, not of another domain alone

    def begin_lesson(self, lesson: Lesson, generator: torch.Generator) -> None:
        self.require_at_least(n_tokens=1, weight=0)
        if self.temperature <= 0:
            raise ValueError(f"method.temperature: expected a value above 0, got {self.temperature}. Set it to 1.")
        known: Names = self.class_ids if lesson.index else ()
        new = tuple(n for n, i in zip(lesson.train.names, class_ids(lesson.train.names), strict=True) if i not in known)
        texts = [self.texts] if known else []
        self._begin(lesson, generator, torch.cat([*texts, self.teacher.encode_classes(new)]) if new else self.texts)

    def _begin(self, lesson: Lesson, generator: torch.Generator, texts: Tensor) -> None:
        """Begin a lesson with the teacher's texts (C, E) of all classes up to it."""
        image, dim = self.clip.image, texts.shape[-1]
        if not lesson.index:
            image.require_blocks()
            self.tokens = nn.ParameterList()
            for _ in range(self.clip_to_depth("depth", image.depth)):
                tokens = torch.randn(self.n_tokens, image.dim, generator=generator) * 0.02
                self.tokens.append(tokens.to(image.device))  # (P, D)
            first, last = (make_linear(n, dim, generator, image.device) for n in (self.clip.feature_dim, dim))
            self.projector = nn.Sequential(first, nn.BatchNorm1d(dim, device=image.device), nn.ReLU(), last)
        self.class_ids = extend_ids(self.class_ids if lesson.index else (), lesson.train.names)
        self.register_buffer("texts", texts.clone())  # the student answers without its teacher

    def restore(self, lessons: Sequence[Lesson], state: dict[str, Tensor]) -> None:
        for lesson in lessons:  # without the teacher, whose texts are in the state
            self._begin(lesson.without_items(), torch.Generator(), state["texts"])
        self.load_state_dict(state)

    def training_lesson(self, lesson: Lesson) -> Lesson:
        """Return the lesson without what has labels."""
        if not lesson.unlabelled:
            raise ValueError(
                "promptkd: expected unlabelled images, got a lesson without any. Set task.unlabelled=true in few_shot, "
                "base_to_new or online, or run it with --source and --target."
            )
        return replace(lesson, train=lesson.train.select([]), val=None, memory=None)

    def precompute(self, names: Names) -> Tensor:
        """Return the teacher's texts (C, E): those of the state, and for new classes the teacher is asked."""
        known = find_known_classes(self.class_ids, names)
        new = tuple(name for name, is_known in zip(names, known, strict=True) if not is_known)
        try:
            texts = torch.cat([self.texts, self.teacher.encode_classes(new)]) if new else self.texts
        except (ValueError, OSError) as error:
            raise UnknownClassError(
                f"promptkd: no text of class {str(new[0])!r}, which is not among those that it was trained on, and the "
                f"teacher can't encode it ({error}) Give it its teacher, or ask for the classes of its training."
            ) from error
        return texts[find_class_indices(extend_ids(self.class_ids, new), names, "promptkd").to(texts.device)]

    def forward(self, inputs: Images, prepared: Prepared) -> Output:
        image = self.clip.image(inputs, Prompt(tokens={i: t[None] for i, t in enumerate(self.tokens)}))  # (B, E)
        image = self.projector(image)  # (B, E of the teacher)
        return Output(self.clip.logits(image, prepared), image_features=image, text_features=prepared)

    def loss_terms(self, batch: Batch, fixed: Fixed) -> tuple[LossTerms, Output]:
        images: Images = batch.inputs if batch.unlabelled is None else batch.unlabelled.inputs
        if len(images) < 2:
            raise ValueError(
                f"train.batch_size: expected at least 2 images in a step of promptkd, whose batch norm compares them, "
                f"got {len(images)}. Set train.batch_size to 2 or more, and give it at least 2 images."
            )
        out, answers = self(images, self.prepare(batch.names, fixed)), self.teacher.answer(images, batch.names)
        log_p, teacher_log_p = ((z.float() / self.temperature).log_softmax(-1) for z in (out.logits, answers))
        divergence = F.kl_div(log_p, teacher_log_p, reduction="none", log_target=True).mean()  # over (B, C)
        return {"kd": (self.weight * self.temperature**2 * divergence, len(images))}, out
