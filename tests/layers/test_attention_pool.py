"""Features of all places of an image, of ResNets and ViTs, against open_clip's own modules and authors' codes."""

import pytest
import torch
import torch.nn.functional as F
from open_clip.modified_resnet import ModifiedResNet
from shared import golden, golden_cases, images, relative
from written_out import double, library, near  # noqa: F401  # a fixture

from vlprompt.backbones.open_clip.towers import wrap_clip, wrap_image_tower
from vlprompt.core.prompt import NOTHING, Prompt

RN = {"vision_cfg": {"image_size": 96, "layers": [1, 2, 1, 1], "width": 8, "patch_size": None}}


@pytest.fixture(scope="module")
def resnet():
    model, tokenizer = library(RN)
    for module in model.visual.modules():  # means and variances of a trained net
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    model = model.double()
    return model, wrap_clip(model, tokenizer, "open_clip:RN50/x")


def pixels_of(n, size):
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(3)).double()


def grid_written_out(visual, pixels):
    return visual.layer4(visual.layer3(visual.layer2(visual.layer1(visual.stem(pixels)))))


def pool_written_out(pool, grid, attends=True, has_positions=True):
    """Rows (B, 1 + N, E), with every row as a query, by torch's own multi-head attention or by single rows."""
    x = grid.flatten(2).permute(2, 0, 1)
    x = torch.cat([x.mean(0, keepdim=True), x])
    x = x + pool.positional_embedding[:, None] if has_positions else x
    if not attends:
        return torch.stack([pool.c_proj(pool.v_proj(row)) for row in x], 1)
    names = {f"{n}_proj_weight": getattr(pool, f"{n}_proj").weight for n in "qkv"}
    bias = torch.cat([getattr(pool, f"{n}_proj").bias for n in "qkv"])
    plain = (None, bias, None, None, False, 0.0, pool.c_proj.weight, pool.c_proj.bias, False)
    made, _ = F.multi_head_attention_forward(
        x, x, x, x.shape[-1], pool.num_heads, *plain, need_weights=False, use_separate_proj_weight=True, **names
    )
    return made.transpose(0, 1)


def test_features_of_patches_of_a_resnet(resnet):
    model, clip = resnet
    pixels = pixels_of(3, 96)
    grid, pool = grid_written_out(model.visual, pixels), model.visual.attnpool
    inputs = images(pixels, "rn")
    patches, pooled, local = clip.image.read(inputs, NOTHING, ("patches", "pooled", "local"))
    assert patches.shape == (3, 9, clip.feature_dim)
    near(patches, pool_written_out(pool, grid)[:, 1:], 1e-12)
    near(local, pool_written_out(pool, grid, False, False)[:, 1:], 1e-12)
    assert torch.equal(pooled, model.visual(pixels))
    near(clip.image.rows.read_rows(grid)[:, 0], pooled, 1e-12)
    for output, rows in (("patches", patches), ("local", local)):
        assert torch.equal(clip.image(inputs, output=output), rows)


@pytest.mark.parametrize("attends", [True, False])
@pytest.mark.parametrize("has_positions", [True, False])
def test_gradients_of_an_attention_pool(resnet, attends, has_positions):
    model, clip = resnet
    grid = grid_written_out(model.visual, pixels_of(2, 96)).detach().requires_grad_()
    found = clip.image.rows.read_rows(grid, attends, has_positions)
    expected = pool_written_out(model.visual.attnpool, grid, attends, has_positions)
    near(found, expected, 1e-12)
    a, b = (torch.autograd.grad(rows.pow(3).sum(), grid)[0] for rows in (found, expected))
    near(a, b, 1e-11)


def test_features_of_patches_of_a_vit(double):  # noqa: F811
    model, clip = double
    visual, pixels = model.visual, pixels_of(3, 32)
    tokens = (0.1 * torch.randn(1, 2, 64, generator=torch.Generator().manual_seed(4)).double()).requires_grad_()
    x = visual.conv1(pixels).flatten(2).transpose(1, 2)
    x = visual.ln_pre(torch.cat([visual.class_embedding.expand(3, 1, -1), x], 1) + visual.positional_embedding)
    for prompt in (NOTHING, Prompt({0: tokens})):
        rows = torch.cat([x, visual.ln_pre(tokens).expand(3, -1, -1)], 1) if prompt else x
        for block in visual.transformer.resblocks:
            rows = block(rows)
        rows = visual.ln_post(rows) @ visual.proj
        expected = rows[:, 1 : x.shape[1]]
        inputs = images(pixels)
        patches, pooled = clip.image.read(inputs, prompt, ("patches", "pooled"))
        near(patches, expected, 1e-12)
        near(pooled, rows[:, 0], 1e-12)
        near(clip.image(inputs, prompt, output="patches"), expected, 1e-12)
        near(clip.image.project_rows(clip.image(inputs, prompt, output="tokens")), expected, 1e-12)
    a, b = (torch.autograd.grad(t.pow(3).sum(), tokens)[0] for t in (patches, expected))
    near(a, b, 1e-11)


def test_features_of_images_keep_their_bits(resnet):
    """Beside features of patches, and after them, from the cache."""
    model, clip = resnet
    inputs = images(pixels_of(2, 96), "bits")
    before = clip.image(inputs)
    clip.image(inputs, output="patches")
    assert torch.equal(clip.image(inputs), before)
    assert torch.equal(clip.image.encode(pixels_of(2, 96)), model.visual(pixels_of(2, 96)))


def test_what_a_resnet_does_not_have(resnet):
    _, clip = resnet
    inputs = images(pixels_of(2, 96), "refused")
    clip.image.require_patch_features()
    for refused in (
        lambda: clip.image(inputs, output="tokens"),
        lambda: clip.image(inputs, Prompt({0: torch.zeros(1, 2, 64)}), "patches"),
        lambda: clip.image.read(inputs, NOTHING, ("patches", "prompts")),
        lambda: clip.image.read(inputs, Prompt({0: torch.zeros(1, 2, 64)}), ("patches",)),
    ):
        with pytest.raises(ValueError, match="open_clip:RN50/x: expected a block-wise tower"):
            refused()


# --- the authors' codes on their tiny ResNet ---


@pytest.fixture(scope="module")
def authors_resnet():
    told, weights = golden("clip-rn-tiny")
    config = told["open_clip_vision"]
    visual = ModifiedResNet(
        config["layers"], config["output_dim"], config["heads"], config["image_size"], config["width"]
    )
    missing = visual.load_state_dict(
        {k.removeprefix("visual."): v for k, v in weights.items() if k.startswith("visual.")}, strict=False
    )
    assert not missing.unexpected_keys
    assert all(key.endswith("num_batches_tracked") for key in missing.missing_keys)
    visual.ln_post = torch.nn.LayerNorm(config["output_dim"])  # whose width an image tower of open_clip is asked for
    tower = wrap_image_tower(visual.eval(), "open_clip:golden/rn")
    assert relative(tower.encode(weights["check.images"]), weights["check.features"]) < 1e-5
    return tower


ON_RESNETS = golden_cases(
    "dualcoop", "taidpt", suits=lambda told: "dense_raw" in told["arrays"] and "image_weights" in told
)


@pytest.mark.parametrize("case", ON_RESNETS)
def test_dense_features_are_the_authors(authors_resnet, case):
    """DualCoOp's have positions and the mean's row, TaI-DPT's have neither; its pooled feature has no positions."""
    _, arrays = golden(case)
    inputs = images(arrays["images"], case)
    grid = authors_resnet.trunk(arrays["images"])
    if case.startswith("dualcoop"):
        rows = authors_resnet.rows.read_rows(grid, attends=False)
        assert relative(rows.transpose(1, 2), arrays["dense_raw"]) < 1e-4
        return
    assert relative(authors_resnet(inputs, output="local"), arrays["dense_raw"]) < 1e-4
    pooled = authors_resnet.rows.read_rows(grid, has_positions=False)[:, 0]
    assert relative(pooled, arrays["image_features_raw"]) < 1e-4
