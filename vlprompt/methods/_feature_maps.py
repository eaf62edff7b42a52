"""What streams share that add a linear map of the frozen image feature and one of the text feature in each lesson."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlprompt.core.batch import Batch, Split
from vlprompt.core.class_names import Names
from vlprompt.core.method import Method
from vlprompt.core.stage import Lesson
from vlprompt.core.towers import Clip
from vlprompt.layers.adapters import make_linear
from vlprompt.methods._alignment import compute_features
from vlprompt.methods._support import extend_names, find_rows


class FeatureMapMethod(Method):
    """A method whose features are sums over the maps of all lessons, with rows of classes that grow with the stream."""

    needs_whole_batch = True  # images and texts of a batch are compared with one another
    depends_on_class_set = True
    clip: Clip
    names: Names = ()

    def begin_maps(self, lesson: Lesson, generator: torch.Generator, trains_earlier_texts: bool) -> None:
        """Add the maps and the classes of a lesson; earlier maps are frozen, those of texts perhaps not."""
        if not lesson.index:
            self.image_maps, self.text_maps, self.names = nn.ModuleList(), nn.ModuleList(), ()
        self.image_maps.requires_grad_(False)
        self.text_maps.requires_grad_(trains_earlier_texts)
        for maps in (self.image_maps, self.text_maps):
            maps.append(make_linear(self.clip.feature_dim, self.clip.feature_dim, generator, self.clip.device))
        self.names = extend_names(self.names, lesson.train.names)

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

    def find_labels(self, batch: Batch) -> Tensor:
        """Return the row (B,) of the class of each image."""
        device = self.clip.device
        return find_rows(self.names, batch.names, device)[batch.labels.to(device)]

    def map_features(self, x: Tensor, maps: nn.ModuleList) -> Tensor:
        """Return the sum of the maps of all lessons, (.., E) -> (.., E)."""
        return torch.stack([one(x) for one in maps]).sum(0)


def compute_contrast(similarity: Tensor, both: bool = True) -> Tensor:
    """Compute the cross-entropy of pairs (B, B) whose matches are on the diagonal, of rows or the mean of both ways."""
    own = torch.arange(len(similarity), device=similarity.device)
    rows = F.cross_entropy(similarity.float(), own)
    return (rows + F.cross_entropy(similarity.float().T, own)) / 2 if both else rows
