"""Methods that need the blocks of a tower refuse an opaque one, instead of training less than their name says."""

import pytest
import torch
from open_clip.model import CLIP
from written_out import library

from vlprompt.backbones.open_clip.towers import wrap_clip
from vlprompt.core.batch import Split
from vlprompt.core.stage import Lesson
from vlprompt.layers.heads import LinearHead, TextHead
from vlprompt.methods import (
    IVLP,
    SSF,
    VPT,
    Adapter,
    AdaptFormer,
    BitFit,
    CLIPLoRA,
    Convpass,
    Full,
    LoRA,
    MaPLe,
    Partial,
    PromptSRC,
)

RN = {"vision_cfg": {"image_size": 64, "layers": [1, 2, 1, 1], "width": 16, "patch_size": None}}
ON_CLIP = {
    "maple": MaPLe,
    "ivlp": IVLP,
    "ivlp, image only": lambda clip: IVLP(clip, n_text_tokens=0),
    "promptsrc": lambda clip: PromptSRC(IVLP(clip)),
    "clip_lora": CLIPLoRA,
}
ON_TOWERS = (VPT, LoRA, SSF, BitFit, Adapter, AdaptFormer, Convpass, Partial, Full)
LESSON = Lesson(Split((), (), ("cat", "dog")))


@pytest.fixture(scope="module")
def resnet():
    return wrap_clip(*library(RN, CLIP), "resnet")


@pytest.mark.parametrize("name", ON_CLIP)
def test_methods_on_both_towers(name, resnet):
    with pytest.raises(ValueError, match=r"image tower of resnet: expected a block-wise tower"):
        ON_CLIP[name](resnet).begin_lesson(LESSON, torch.Generator())


@pytest.mark.parametrize("method", ON_TOWERS)
@pytest.mark.parametrize("head", [LinearHead, None])
def test_methods_on_the_image_tower(method, head, resnet):
    with pytest.raises(ValueError, match=r"image tower of resnet: expected a block-wise tower"):
        method(resnet.image, LinearHead() if head else TextHead(resnet)).begin_lesson(LESSON, torch.Generator())


@pytest.mark.parametrize("deep", [True, False])
def test_vpt(deep, resnet):
    with pytest.raises(ValueError, match=r"image tower of resnet: expected a block-wise tower"):
        VPT(resnet.image, LinearHead(), deep=deep).begin_lesson(LESSON, torch.Generator())


def test_tokens_in_the_text_tower_alone_need_no_blocks_of_the_image_tower(resnet):
    IVLP(resnet, n_image_tokens=0).begin_lesson(LESSON, torch.Generator())
