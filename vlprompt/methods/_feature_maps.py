"""What streams share that add a linear map of the frozen image feature and one of the text feature in each lesson."""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlprompt.core.batch import Batch, Split
from vlprompt.core.class_names import Names
from vlprompt.core.method import Method
from vlprompt.core.stage import Lesson
from vlprompt.core.towers import Clip, VisionTower
from vlprompt.layers.class_texts import TemplateChoice, fill_class_texts, load_templates
from vlprompt.layers.initial_values import make_linear
from vlprompt.methods._alignment import compute_features
from vlprompt.methods._support import draw_seed, extend_names, find_rows
from vlprompt.runtime.seeding import make_generator


class FeatureMapMethod(Method):
    """A method whose features are sums over the maps of all lessons, with rows of classes that grow with the stream."""

    needs_single_labels = True
    needs_whole_batch = True  # images and texts of a batch are compared with one another
    depends_on_class_set = True
    clip: Clip
    template: TemplateChoice
    names: Names = ()
    draw_seed: int
    training_inputs: Any  # texts of all classes that a lesson's training reads; None where there are none yet

    def begin_maps(self, lesson: Lesson, generator: torch.Generator, trains_earlier_texts: bool) -> None:
        """Add the maps and the classes of a lesson; earlier maps are frozen, those of texts perhaps not."""
        if not lesson.index:
            self.image_maps, self.text_maps, self.names = nn.ModuleList(), nn.ModuleList(), ()
        self.image_maps.requires_grad_(False)
        self.text_maps.requires_grad_(trains_earlier_texts)
        for maps in (self.image_maps, self.text_maps):
            maps.append(make_linear(self.clip.feature_dim, self.clip.feature_dim, generator, self.clip.device))
        self.names, self.draw_seed = extend_names(self.names, lesson.train.names), draw_seed(generator)

    def end_lesson(self, lesson: Lesson) -> None:
        self.training_inputs = None

    def grow_buffer(self, name: str, *size: int, dtype: torch.dtype = torch.float32) -> None:
        """Give a buffer (C, *size) a row of zeros for each new class; a method that begins anew has none yet."""
        earlier: Tensor | None = self._buffers.get(name) if len(self.image_maps) > 1 else None
        n_added = len(self.names) - (0 if earlier is None else len(earlier))
        zeros = torch.zeros(n_added, *size, dtype=dtype, device=self.clip.device)
        self.register_buffer(name, zeros if earlier is None else torch.cat([earlier, zeros]))

    @torch.no_grad()
    def group_features(self, train: Split, output: str = "pooled") -> dict[int, Tensor]:
        """Compute an output (n, E) of the image tower for the images of each class, by its row."""
        if not len(train):
            return {}
        x, labels = compute_features(lambda images: self.clip.image(images, output=output), train)
        rows = find_rows(self.names, train.names, x.device)
        return {int(rows[label]): x[labels == label] for label in sorted(set(train.labels))}

    def encode_texts(self, names: Names) -> Tensor:
        """Encode the texts (K, C, E) of classes with each of K templates."""
        with torch.no_grad(), torch.autocast(self.clip.device.type, enabled=False):
            texts = [fill_class_texts(template, names) for template in load_templates(self.template)]
            return torch.stack([self.clip.text(text)[0] for text in texts])

    def find_labels(self, batch: Batch) -> Tensor:
        """Return the row (B,) of the class of each image."""
        device = self.clip.device
        return find_rows(self.names, batch.names, device)[batch.labels.to(device)]

    def project(self, row: Tensor) -> Tensor:
        """Project class tokens (.., D) to features (.., E)."""
        return cast(VisionTower, self.clip.image).project_rows(row)

    def draw_noise(self, purpose: str, step: int, *shape: int) -> Tensor:
        """Draw standard normal noise of a step, on the CPU, so that every device draws the same."""
        return torch.randn(*shape, generator=make_generator(self.draw_seed, purpose, step)).to(self.clip.device)

    def map_texts(self, text: Tensor) -> Tensor:
        """Map texts (K, C, E) of K templates, and return their normalised mean (C, E)."""
        return self.clip.unit(self.clip.unit(self.map_features(text, self.text_maps)).mean(0))

    def map_features(self, x: Tensor, maps: nn.ModuleList) -> Tensor:
        """Return the sum of the maps of all lessons, (.., E) -> (.., E)."""
        return torch.stack([one(x) for one in maps]).sum(0)


def compute_contrast(similarity: Tensor, both: bool = True) -> Tensor:
    """Compute the cross-entropy of pairs (B, B) whose matches are on the diagonal, of rows or the mean of both ways."""
    own = torch.arange(len(similarity), device=similarity.device)
    rows = F.cross_entropy(similarity.float(), own)
    return (rows + F.cross_entropy(similarity.float().T, own)) / 2 if both else rows
