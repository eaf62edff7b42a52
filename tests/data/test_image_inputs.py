"""Images as they are in Python become items: arrays, tensors, PIL images, paths, datasets; what is none is refused."""

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from scipy.sparse import csr_matrix

from vlprompt.core.images import Preprocessing
from vlprompt.data.images.image_inputs import build_image_items, is_image_dataset, read_dataset_labels

PLAIN = Preprocessing((6, 6))
GREY = (np.arange(72).reshape(2, 6, 6) * 3).astype(np.uint8)  # 0 .. 213
RGB = np.stack([GREY, GREY // 2, 255 - GREY], -1)


def pixels(images, **ranges):
    return torch.stack([item.pixels(PLAIN, None) for item in build_image_items(images, **ranges)])


def as_tensor(array):
    array = np.repeat(array[..., None], 3, -1) if array.ndim == 3 else array
    return torch.from_numpy(array.transpose(0, 3, 1, 2)).float() / 255


class Pairs:
    """A dataset of torchvision's kind."""

    classes = ("dark", "bright")

    def __init__(self, transform=lambda image: image):
        self.transform = transform

    def __len__(self):
        return 2

    def __getitem__(self, index):
        return self.transform(Image.fromarray(RGB[index])), index


class ClassLabel:
    names = ("dark", "bright")


class Columns:
    """A dataset of Hugging Face's kind."""

    column_names = ("image", "label")

    def __init__(self):
        feature = type("Image", (), {})
        self.features = {"image": feature(), "label": ClassLabel()}
        self.rows = {"image": [Image.fromarray(one) for one in RGB], "label": [0, 1]}

    def __len__(self):
        return 2

    def __getitem__(self, key):
        return self.rows[key] if isinstance(key, str) else {name: column[key] for name, column in self.rows.items()}


def files(folder):
    for k, image in enumerate(RGB):
        Image.fromarray(image).save(folder / f"{k}.png")
    return [folder / "0.png", str(folder / "1.png")]


@pytest.mark.parametrize(
    ("images", "wanted"),
    [
        (GREY, GREY),
        (GREY[..., None], GREY),
        (GREY / 255, GREY),
        (GREY.astype(np.int64), GREY),
        (GREY.astype(np.float32), GREY),
        (GREY > 100, (GREY > 100).astype(np.uint8) * 255),
        (list(GREY), GREY),
        (RGB, RGB),
        (torch.from_numpy(RGB), RGB),
        (torch.from_numpy(RGB).permute(0, 3, 1, 2), RGB),
        (np.concatenate([RGB, np.full_like(RGB[..., :1], 255)], -1), RGB),
        ([Image.fromarray(one) for one in RGB], RGB),
        ([Image.fromarray(RGB[0]), RGB[1]], RGB),
        (build_image_items(RGB), RGB),
        (Pairs(), RGB),
        (Pairs(np.array), RGB),
        (Columns(), RGB),
    ],
)
def test_the_same_images_in_any_form_have_the_same_pixels(images, wanted):
    torch.testing.assert_close(pixels(images), as_tensor(wanted), atol=1e-6, rtol=0)


def test_paths_are_items_of_files(tmp_path):
    paths = files(tmp_path)
    torch.testing.assert_close(pixels(paths), as_tensor(RGB))
    assert [item.file for item in build_image_items(np.array(list(map(str, paths))))] == list(map(str, paths))


def test_transparency_is_white():
    clear = np.concatenate([RGB, np.zeros_like(RGB[..., :1])], -1)
    assert pixels(clear).min() == 1


def test_black_and_white_may_be_named():
    sixteenths = GREY.astype(float) / 255 * 16
    torch.testing.assert_close(pixels(sixteenths, pixel_range=(0, 16)), as_tensor(GREY), atol=1e-6, rtol=0)
    torch.testing.assert_close(pixels(GREY - 0.0 - 100, pixel_range=(-100, 155)), as_tensor(GREY), atol=1e-6, rtol=0)
    assert pixels(np.full((1, 6, 6), 16, np.uint8), pixel_range=(0, 16)).min() == 1  # bytes, too
    dark = np.full((1, 6, 6), 0.5)
    torch.testing.assert_close(pixels(dark, float_range=(0, 255)).max(), torch.tensor(0.0))
    assert pixels(GREY[:1], float_range=(0, 1)).max() > 0.4  # bytes stay bytes


def test_floats_of_several_images_are_of_one_range():
    dark, bright = np.full((4, 4), 1.0), np.full((4, 4), 255.0)
    torch.testing.assert_close(pixels([dark, bright])[:, 0, 0, 0], torch.tensor([1 / 255, 1.0]))


def test_datasets_have_labels():
    assert read_dataset_labels(Pairs()) == ([0, 1], ["dark", "bright"])
    assert read_dataset_labels(Columns()) == ([0, 1], ["dark", "bright"])
    assert not any(map(is_image_dataset, (RGB, list(RGB), torch.from_numpy(RGB), [(RGB[0], 1)], "x")))


def test_items_in_memory_are_hashed_by_content():
    one, same, other = build_image_items([RGB[0], Image.fromarray(RGB[0]), RGB[1]])
    assert one.content_hash() == same.content_hash() != other.content_hash()
    assert one.content_hash() in one.key


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "images: expected at least one image, got none"),
        (RGB[:0], "images: expected at least one image, got none"),
        ("a.png", "images: expected a sequence of images, got one str. Put it into a list"),
        (Image.fromarray(RGB[0]), "images: expected a sequence of images, got one Image"),
        (RGB[0], r"images: expected several images, got the shape \(6, 6, 3\) of one. Write images\[None\]"),
        (GREY[0], r"images: expected an array \(N, H, W\).*got the shape \(6, 6\).*image_shape"),
        (5, "images: expected arrays, PIL images or paths, got a int"),
        ([RGB[0], 5], "image 2: expected an array, a PIL image or a path, got a int"),
        ([RGB[0], np.zeros((6, 6, 2), np.uint8)], r"image 2: expected an image \(H, W\) or \(H, W, 3\), got the shape"),
        ([np.zeros((0, 4), np.uint8)], "image 1: expected an image, got none of its pixels"),
        (["missing.png"], "'missing.png': expected an image, got no such file"),
        (
            GREY / 255 * 16,
            r"expected numbers of 0..1, or of 0..255 with some above 127, got 0..13.3.*pixel_range=\(0, 13",
        ),
        (GREY - 1.0, "expected numbers of 0..1, or of 0..255 .*, got -1..212"),
        (GREY * 2.0, "expected numbers of 0..1, or of 0..255 .*, got 0..426"),
        (np.where(GREY == 9, np.nan, GREY / 255), "images: expected finite numbers, got NaN"),
        (np.where(GREY == 9, np.inf, GREY / 255), "images: expected finite numbers, got infinity"),
        (GREY * 1j, "images: expected numbers, got an array of complex128"),
        (np.array([["a"]], dtype=object), "images: expected numbers, got an array of object"),
    ],
)
def test_what_is_no_image_is_refused(images, message):
    with pytest.raises(ValueError, match=message):
        build_image_items(images)


def test_numbers_outside_of_a_named_range_are_refused():
    with pytest.raises(ValueError, match=r"image 2: expected numbers of 0..1, got 0.5..1.5. Scale all images alike"):
        build_image_items([np.full((4, 4), 1.0), np.linspace(0.5, 1.5, 16).reshape(4, 4)], float_range=(0, 1))


def test_a_column_must_be_clear():
    dataset = Columns()
    dataset.features["other"] = ClassLabel()
    with pytest.raises(ValueError, match="expected a dataset with one column of ClassLabel, got the columns image"):
        read_dataset_labels(dataset)


def test_a_column_of_pandas_and_bfloat16_are_images(tmp_path):
    Image.new("RGB", (4, 4), (255, 0, 0)).save(tmp_path / "red.png")
    [item] = build_image_items(pd.DataFrame({"path": [str(tmp_path / "red.png")]}))
    assert item.file == str(tmp_path / "red.png")
    pixels = torch.rand(1, 3, 4, 4).bfloat16()
    items = [build_image_items(images)[0] for images in (pixels, pixels.float())]
    assert torch.equal(*(item.pixels(Preprocessing((4, 4)), None) for item in items))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ({"a": 1}, "images: expected arrays, PIL images or paths, got a dict"),
        (csr_matrix(np.eye(3)), "images: expected arrays, PIL images or paths, got a csr_matrix"),
        ([""], "image 1: expected the path of an image, got an empty one"),
        (pd.DataFrame({"a": ["x"], "b": ["y"]}), "images: expected one column of images, got 2: a, b"),
        (np.full((2, 5, 5), 1.0000001), r"got 1\.0000001\.\.1\.0000001"),
    ],
)
def test_what_holds_no_images_is_refused(images, message):
    assert not is_image_dataset(images)
    with pytest.raises(ValueError, match=message):
        build_image_items(images)
