"""Banks of confident features of classes, and the attention of an image feature to them."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vlprompt.core.batch import Split, Unlabelled
from vlprompt.core.class_names import Names, class_ids
from vlprompt.core.towers import Clip
from vlprompt.layers.initial_values import make_linear
from vlprompt.methods._adaptation import zero_shot_probabilities

ATTENTION_SCALE = 0.1


class FeatureBank(nn.Module):
    """The features of the images that a frozen CLIP classifies most confidently, in slots of each class.

    Args:
        size: slots of each class (K); empty ones are zero.
        dim: width of a feature (E).
        device: of the slots.
    """

    slots: Tensor  # (C, K, E), normalised
    confidence: Tensor  # (C, K)

    def __init__(self, size: int, dim: int, device: torch.device):
        super().__init__()
        self.size, self.class_ids = size, ()
        self.register_buffer("slots", torch.zeros(0, size, dim, device=device))
        self.register_buffer("confidence", torch.zeros(0, size, device=device))

    def add_classes(self, names: Names) -> None:
        """Add empty slots of the classes that have none yet."""
        added_ids = [i for i in class_ids(names) if i not in self.class_ids]
        self.class_ids = (*self.class_ids, *added_ids)
        self.slots = torch.cat([self.slots, self.slots.new_zeros(len(added_ids), *self.slots.shape[1:])])
        self.confidence = torch.cat([self.confidence, self.confidence.new_zeros(len(added_ids), self.size)])

    @torch.no_grad()
    def add_images(self, images: Split | Unlabelled, clip: Clip, text: Tensor) -> None:
        """Let images take the slots of less confident ones; of labelled images, those that are classified correctly.

        Args:
            images: as a test sees them; the earlier one stays at a tie.
            clip: the frozen CLIP.
            text: features (C, E) of the images' classes.
        """
        ids = class_ids(images.names)
        for batch in images.batches(100):
            confidence, c = zero_shot_probabilities(clip, batch.inputs, text, 1.0).max(-1)
            is_used = c == batch.labels.to(c.device) if isinstance(images, Split) else torch.ones_like(c).bool()
            features = clip.unit(clip.image(batch.inputs))
            for k in c[is_used].unique().tolist():
                row, of_class = self.class_ids.index(ids[k]), is_used & (c == k)
                scores = torch.cat([self.confidence[row], confidence[of_class]])
                best = scores.argsort(descending=True, stable=True)[: self.size]
                self.slots[row] = torch.cat([self.slots[row], features[of_class]])[best]
                self.confidence[row] = scores[best]

    def class_features(self) -> Tensor:
        """Average all slots of each class, the empty ones too: (C, E)."""
        return self.slots.mean(1)


class BankAttention(nn.Module):
    """Add to image features what they read from the class features of a bank.

    Args:
        dim: width of a feature (E).
        generator: of the initial values.
        device: of the maps.
    """

    def __init__(self, dim: int, generator: torch.Generator, device: torch.device):
        super().__init__()
        width = max(dim // 8, 1)
        self.into = nn.Sequential(
            make_linear(dim, width, generator, device),
            nn.BatchNorm1d(width, device=device),
            nn.ReLU(),
            make_linear(width, width, generator, device),
            nn.BatchNorm1d(width, device=device),
            nn.ReLU(),
            make_linear(width, 3 * dim, generator, device),
        )
        self.out = make_linear(dim, dim, generator, device)

    def forward(self, image: Tensor, banks: Sequence[Tensor]) -> list[Tensor]:
        """Return normalised image features (B, E) of each bank (C, E)."""
        if self.training and len(image) == 1:
            raise ValueError(
                "train.batch_size: expected batches of at least 2 images, because batch norm normalises over a batch, "
                "got a batch of 1. Set another train.batch_size, or train.drop_last=true."
            )
        image, aligned = Clip.unit(image), list[Tensor]()
        query, *_ = self._project(image)
        for bank in banks:
            _, key, value = self._project(bank)
            attention = (ATTENTION_SCALE * query @ key.T).softmax(-1)  # (B, C)
            aligned.append(Clip.unit(image + self.out(attention @ value)))
        return aligned

    def _project(self, x: Tensor) -> Sequence[Tensor]:
        return self.into(x).unflatten(-1, (-1, 3)).unbind(-1)  # query, key and value take turns
