"""Small forms of the methods of streams, for tests of what all of them must do."""

from pathlib import Path

from vlprompt import methods as m
from vlprompt.layers.heads import CosineHead, LinearHead

PAIRS = str(Path(__file__).parent / "pairs_of_digits.json")
SLOW_LEARNER = {"draws_per_class": 4, "alignment_epochs": 2}
ALIGN = {"align_epochs": 2, "align_samples": 8}
MAKERS = {  # of a CLIP
    "simplecil": lambda clip: m.SimpleCIL(clip.image),
    "aper": lambda clip: m.APER(m.AdaptFormer(clip.image, CosineHead(), 4)),
    "fecam": lambda clip: m.FeCAM(clip.image),
    "slca": lambda clip: m.SLCA(clip.image, 0.5, **SLOW_LEARNER),
    "slcapp": lambda clip: m.SLCApp(clip.image, 2, **SLOW_LEARNER),
    "ease": lambda clip: m.EASE(clip.image, 4),
    "mos": lambda clip: m.MOS(clip.image, LinearHead(), 4, **ALIGN),
    "tuna": lambda clip: m.TUNA(clip.image, 4, orthogonality_weight=0.1, **ALIGN),
    "inflora": lambda clip: m.InfLoRA(clip.image, LinearHead(), 2),
    "sdlora": lambda clip: m.SDLoRA(clip.image, LinearHead(), 2),
    "hideprompt": lambda clip: m.HiDePrompt(
        clip.image, LinearHead(), 2, (0, 1), n_centroids=2, alignment_epochs=2, draws=10
    ),
    "lae": lambda clip: m.LAE(clip.image, LinearHead(), n_layers=2, decay=0.9, frozen_fraction=0.4),
    "rapf": lambda clip: m.RAPF(clip, threshold=2.0, draws_per_class=3, draws_per_pair=2),
    "proof": lambda clip: m.PROOF(clip, n_exemplars=2),
    "engine": lambda clip: m.ENGINE(clip, PAIRS),
    "gda": lambda clip: m.GDA(clip),
    "maple": lambda clip: m.MaPLe(clip, depth=2),
}
