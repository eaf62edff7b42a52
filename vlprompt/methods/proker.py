"""ProKeR: Bendou et al., "ProKeR: A Kernel Perspective on Few-Shot Adaptation of Large VLMs", CVPR 2025.

arXiv:2501.11175. A kernel regression of what the zero-shot cosines lack to the one-hot labels of the training images is
added to them; nothing is trained. With M views of training images a solution takes M^3 / 3 operations, one for each
point of the grid that is searched, and three matrices of M^2 numbers, 3 GB at 16,000. Sites: none.

Differs from the authors' code in: the system is solved by Cholesky, in float64 up to 4,096 views and above in float32
(error 5e-6 at 16,000); ImageNet's validation images are not its test; the logits are multiplied by
the CLIP's scale, which changes no ranking (theirs are cosines). As there, and unlike a ridge, a small lambda gives
zero-shot: the coefficients are lambda times those of the proximal ridge. From the paper in: a class without images
answers by its text (the formula would push it down by all images of the others).

Expected (ViT-B/16, mean of 11 sets, 1 2 4 8 16 shots, re-run by CLIP-SVD): 71.32 73.74 76.23 79.84 82.01.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from vlprompt.core.batch import Split
from vlprompt.core.class_names import Names
from vlprompt.core.images import Images
from vlprompt.core.method import Output
from vlprompt.core.stage import Lesson
from vlprompt.core.towers import Clip
from vlprompt.layers.class_texts import TemplateChoice
from vlprompt.methods import _support as support
from vlprompt.runtime import memory

Grid = tuple[float, float, int]  # first and last value, and their number
BY_SHOTS = {1: (3.0, 0.05), 2: (2.6, 0.05), 4: (1.5, 0.05), 8: (1.66, 0.07), 16: (1.7, 0.1)}  # theirs for ImageNet
EXACT_VIEWS = 4096  # that are solved in float64


class ProKeR(support.SupportMethod):
    """A kernel regression on the training images, added to zero-shot CLIP.

    Args:
        clip: frozen CLIP.
        beta: sharpness of the kernel where it is not searched; None: the authors' for ImageNet, by the number of shots.
        lmbda: weight of the images (lambda in the authors' code), likewise.
        beta_grid: first value, last value and number of those that are searched on validation images; None: no search.
        lmbda_grid: likewise of lambda.
        augmentations: views of each image (1 where the data is not augmented).
        logit_scale: of all logits; default the CLIP's own.
        template: of the class texts; default the dataset's own.
    """

    tensors_by_image = ("features", "values", "coefficients")
    features: Tensor
    values: Tensor
    coefficients: Tensor
    beta_lmbda: Tensor

    def __init__(
        self,
        clip: Clip,
        beta: float | None = None,
        lmbda: float | None = None,
        beta_grid: Grid | None = (0.1, 10.0, 20),
        lmbda_grid: Grid | None = (0.01, 10.0, 10),
        augmentations: int = 10,
        logit_scale: float | None = None,
        template: TemplateChoice = None,
    ):
        super().__init__()
        self.clip, self.beta, self.lmbda, self.beta_grid, self.lmbda_grid = clip, beta, lmbda, beta_grid, lmbda_grid
        self.augmentations, self.logit_scale, self.template = augmentations, logit_scale, template

    @torch.no_grad()
    def begin_lesson(self, lesson: Lesson, generator: torch.Generator) -> None:
        self.require_at_least(augmentations=1)
        chosen, grids = self._list_values(lesson)
        self.names = support.extend_names(self.names if lesson.index else (), lesson.train.names)
        x, labels = support.compute_features(self.clip, lesson.train, self.augmentations, support.draw_seed(generator))
        values = support.find_rows(self.names, lesson.train.names, x.device)[labels]
        if lesson.index:
            x, values = torch.cat([self.features, x]), torch.cat([self.values, values])
        options = {"dtype": torch.float64, "device": x.device}
        coefficients, beta_lmbda = torch.zeros(len(x), len(self.names), **options), torch.tensor(chosen, **options)
        state = zip((*self.tensors_by_image, "beta_lmbda"), (x, values, coefficients, beta_lmbda), strict=True)
        for name, tensor in state:  # (M, E), (M,), (M, C), (2,)
            self.register_buffer(name, tensor)
        if len(x):
            self._solve(lesson.val, grids)

    def _list_values(self, lesson: Lesson) -> tuple[list[float], list[list[float]]]:
        """Return beta and lambda without a search, and the values of each that are searched."""
        shots = max(1, round(len(lesson.train) / max(1, len(lesson.train.names))))
        defaults = BY_SHOTS[max(n for n in BY_SHOTS if n <= shots)]
        chosen = [b if a is None else a for a, b in zip((self.beta, self.lmbda), defaults, strict=True)]
        grids = [
            [value] if grid is None else torch.linspace(*grid, dtype=torch.float64).tolist()
            for value, grid in zip(chosen, (self.beta_grid, self.lmbda_grid), strict=True)
        ]
        for setting, values in zip(("beta", "lmbda"), grids, strict=True):
            if min(values, default=0) <= 0:
                raise ValueError(f"method.{setting}: expected values above 0, got {values}. Set greater ones.")
        return chosen, grids

    def _solve(self, val: Split | None, grids: list[list[float]]) -> None:
        least = torch.float64 if len(self.features) <= EXACT_VIEWS else torch.float32  # half has no Cholesky
        precision = torch.promote_types(self.features.dtype, least)
        features, text = self.features.to(precision), self.encode_texts(self.names).to(precision)
        needed = 3 * features.element_size() * len(features) ** 2 / 2**20  # MB
        available = memory.measure_available(features.device)
        if needed > available:
            told = f"expected a kernel of {len(features)} views within {available:.0f} MB, got one of {needed:.0f} MB"
            raise ValueError(f"method.augmentations: {told}. Set method.augmentations=1, or take fewer shots.")
        residual = F.one_hot(self.values, len(self.names)) - features @ text.T  # (M, C)
        if val is not None and len(val):
            self._search(val, grids, residual, text)
        beta, lmbda = self.beta_lmbda.tolist()
        self.coefficients.copy_(solve(support.compute_kernel(features, features, beta).div_(lmbda), residual))

    def _search(self, val: Split, grids: list[list[float]], residual: Tensor, text: Tensor) -> None:
        """Choose beta and lambda on validation images, the first of a tie; lambda changes faster."""
        (x, labels), features = support.compute_features(self.clip, val), self.features.to(text.dtype)
        x, rows = x.to(text.dtype), support.find_rows(self.names, val.names, x.device)
        text_logits, residual, best = x @ text[rows].T, residual[:, rows], -1
        for beta in grids[0]:
            kernel, val_kernel = (support.compute_kernel(part, features, beta) for part in (features, x))
            for lmbda in grids[1]:
                solved = solve(kernel / lmbda, val_kernel.T if len(x) < len(rows) else residual)  # the fewer columns
                added = solved.T @ residual if len(x) < len(rows) else val_kernel @ solved
                if (n_correct := int(support.count_correct(text_logits + added, labels))) > best:
                    best, self.beta_lmbda[:] = n_correct, self.beta_lmbda.new_tensor([beta, lmbda])

    def precompute(self, names: Names) -> tuple[Tensor, Tensor, Tensor]:
        text, rows = self.encode_texts(names), support.find_rows(self.names, names, self.values.device)
        columns = F.pad(self.coefficients, (0, 1))  # the last one is of classes that are not known: zeros
        has_images = F.pad(torch.bincount(self.values, minlength=len(self.names)) > 0, (0, 1))
        return text, self.features.double(), columns[:, rows] * has_images[rows]  # (C, E), (M, E), (M, C)

    def forward(self, inputs: Images, prepared: tuple[Tensor, Tensor, Tensor]) -> Output:
        text, features, coefficients = prepared
        image, scale = self.clip.image(inputs), self.clip.scale if self.logit_scale is None else self.logit_scale
        kernel = support.compute_kernel(self.clip.unit(image).double(), features, float(self.beta_lmbda[0]))  # (B, M)
        logits = self.clip.logits(image, text, self.logit_scale) + scale * (kernel @ coefficients)
        return Output(logits.to(image.dtype), image_features=image, text_features=text)


def solve(system: Tensor, right: Tensor) -> Tensor:
    """Solve (system + I) A = right; the system is overwritten."""
    system.diagonal().add_(1)
    return torch.cholesky_solve(right, torch.linalg.cholesky(system))
