"""Datasets: shots as the literature draws them, halves of classes, folders, views, every way a folder can be wrong."""

import hashlib
import json
import shutil
import warnings
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vlprompt.core.batch import Split
from vlprompt.core.class_names import class_ids
from vlprompt.core.images import Augmentation, ImageItem, Preprocessing
from vlprompt.data.builtin import digits
from vlprompt.data.cards import list_cards, load_card, load_card_classes
from vlprompt.data.dataset import build_class_names
from vlprompt.data.images.decoding import build_file_item, build_image_item, preprocess_image
from vlprompt.data.loading import open_data
from vlprompt.data.splits.sampling import sample_few_shot, split_base_new
from vlprompt.layers import heads
from vlprompt.tasks import BaseToNew, FewShot

PUBLISHED = json.loads((Path(__file__).parents[1] / "fewshot.json").read_text())


def of_labels(runs):
    labels = tuple(chain.from_iterable([label] * n for label, n in runs))
    return Split(
        tuple(ImageItem(str(i), lambda look, view: torch.zeros(0)) for i in range(len(labels))),
        labels,
        tuple(map(str, range(max(labels) + 1))),
    )


@pytest.mark.parametrize("name", PUBLISHED)
def test_shots_are_those_of_the_literature_bit_for_bit(name):
    train, val = (of_labels(PUBLISHED[name]["labels"][part]) for part in ("train", "val"))
    for case, expected in PUBLISHED[name]["hashes"].items():
        shots, seed = map(int, case.split("-"))
        drawn = sample_few_shot(train, val, shots, seed)
        told = {
            part: [int(item.key) for item in split.items] for part, split in zip(("train", "val"), drawn, strict=True)
        }
        assert hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16] == expected, (case, name)


def test_a_class_with_fewer_images_than_shots_gives_all_and_is_named():
    split = of_labels([[0, 3], [1, 20]])
    train, val = sample_few_shot(split, None, 16, 1)
    assert train.count_per_class() == [3, 16]
    assert train.info["undersized_classes"] == ["0"]
    assert val is None
    with pytest.raises(ValueError, match=r"expected training images of every class, got none of '0'. Add some"):
        sample_few_shot(Split(split.items[3:], split.labels[3:], split.names), None, 1, 1)
    with pytest.raises(ValueError, match=r"task.shots: expected at least 1, got 0. Set task.shots=1"):
        sample_few_shot(split, None, 0, 1)


def test_base_and_new_halves():
    assert split_base_new(5) == ([0, 1, 2], [3, 4])
    with pytest.raises(ValueError, match=r"at least 4 classes for base and new classes, two in each half, got 3. Use"):
        split_base_new(3)
    few, task = FewShot("digits", shots=4, seed=2), BaseToNew("digits", shots=4, seed=2)
    base = [item.key for item, label in zip(few.lesson.train.items, few.lesson.train.labels, strict=True) if label < 5]
    assert [item.key for item in task.lesson.train.items] == base  # the same images as with all classes
    [stage] = task.stages()
    assert [str(n) for n in stage.tests["new"].names] == ["five", "six", "seven", "eight", "nine"]
    assert set(stage.tests["new"].labels) == set(range(5))
    assert len(stage.tests["base"]) + len(stage.tests["new"]) == len(open_data("digits").test)
    even = BaseToNew("digits", base_classes=["0", "2", "4", "6", "8"])
    assert [str(n) for n in next(even.stages()).tests["new"].names] == ["one", "three", "five", "seven", "nine"]
    with pytest.raises(ValueError, match=r"task.base_classes: expected class ids of digits .*, got 'two'\. Take some"):
        _ = BaseToNew("digits", base_classes=["two"]).base_and_new


def test_the_digits_halves_never_meet():
    parts = digits.split_indices()
    assert sorted(chain(*parts.values())) == list(range(1797))
    assert len(parts["train"]) + len(parts["val"]) == 901
    assert min(np.bincount(digits.load_digit_arrays()[1][parts["train"]])) >= 64
    train = FewShot("digits", shots=16).lesson.train
    assert not {item.key for item in train.items} & {item.key for item in open_data("digits").test.items}


def test_every_card_of_what_comes_with_the_package_opens():
    inside = [name for name in list_cards() if load_card(name).kind == "loader"]
    assert inside == ["digit_domains", "digits", "glyphs", "scenes"]
    for name in inside:
        data, card = open_data(name), load_card(name)
        assert len(data.train.names) == len(load_card_classes(card))
        assert min(data.train.count_per_class()) > 0 < min(data.test.count_per_class())
        assert "{name}" in data.template
        assert data.test.items[0].pixels(Preprocessing((32, 32)), None).shape == (3, 32, 32)
        assert open_data(name).test.hash() == data.test.hash()


def test_batches_are_a_function_of_seed_and_epoch(pictures):
    split = open_data(str(pictures)).train
    assert split.augment == "crop-flip"

    def keys(**how):
        return [k for b in split.batches(4, **how) for k in b.inputs.keys]

    assert keys() == [item.key for item in split.items]
    assert keys(seed=1, epoch=3) == keys(seed=1, epoch=3)
    assert set(keys(seed=1, epoch=3)).isdisjoint(keys(seed=1, epoch=4))
    assert sorted(keys(seed=1, epoch=0, n_augmentations=2)) == sorted(keys(seed=1, epoch=2, n_augmentations=2))
    assert [len(b.labels) for b in split.batches(5, seed=1, drop_last=True)] == [5, 5]
    assert [len(b.labels) for b in split.batches(100, seed=1, drop_last=True)] == [12]
    look = Preprocessing((32, 32))
    first, again = (next(split.batches(4, seed=1, epoch=3)).inputs.pixels(look) for _ in range(2))
    assert torch.equal(first, again)


def test_a_look_is_what_the_literature_does(pictures):
    from torchvision import transforms as T

    picture = Image.open(pictures / "china" / "00.jpg")
    theirs = T.Compose(
        [
            T.Resize(64, T.InterpolationMode.BICUBIC),
            T.CenterCrop(64),
            T.ToTensor(),
            T.Normalize((0.4, 0.5, 0.6), (0.2, 0.3, 0.4)),
        ]
    )
    assert torch.allclose(
        preprocess_image(picture, Preprocessing((64, 64), (0.4, 0.5, 0.6), (0.2, 0.3, 0.4))), theirs(picture), atol=1e-6
    )
    squashed = preprocess_image(picture, Preprocessing((64, 64), resize="squash"))
    assert torch.allclose(
        squashed, T.Compose([T.Resize((64, 64), T.InterpolationMode.BICUBIC), T.ToTensor()])(picture), atol=1e-6
    )


def test_random_crops_cover_what_they_should():
    ramp = Image.fromarray(np.tile(np.arange(256, dtype=np.uint8), (256, 1))).convert("RGB")
    spans, falling = [], 0
    for seed in range(200):
        row = preprocess_image(ramp, Preprocessing((16, 16)), Augmentation("crop-flip", seed))[0, 8] * 255
        spans.append(float((row.max() - row.min()) / 240))
        falling += bool(row[0] > row[-1])
    assert 0.2 < min(spans) < 0.45
    assert max(spans) > 0.9
    assert 70 < falling < 130
    assert all(
        bool(preprocess_image(ramp, Preprocessing((16, 16)), Augmentation("crop", s))[0, 8].diff().min() >= 0)
        for s in range(20)
    )


def test_a_folder_of_classes(pictures):
    data = open_data(str(pictures))
    assert [str(n) for n in data.train.names] == ["china", "red_flower"]
    assert (data.train.count_per_class(), data.val.count_per_class(), data.test.count_per_class()) == (
        [6, 6],
        [2, 2],
        [4, 4],
    )
    assert open_data(str(pictures)).test.hash() == data.test.hash()


def test_a_folder_with_train_and_test(pictures, tmp_path):
    for part, chosen in (("train", range(10)), ("test", range(10, 12))):
        for name in ("china", "red_flower"):
            (tmp_path / part / name).mkdir(parents=True)
            for i in chosen:
                shutil.copy(pictures / name / f"{i:02}.jpg", tmp_path / part / name)
    data = open_data(str(tmp_path))
    assert (data.train.count_per_class(), data.val.count_per_class(), data.test.count_per_class()) == (
        [8, 8],
        [2, 2],
        [2, 2],
    )
    (tmp_path / "test" / "cat").mkdir()
    shutil.copy(pictures / "china" / "00.jpg", tmp_path / "test" / "cat")
    with pytest.raises(ValueError, match=r"got 'cat' in test/ but not in train/. Add its images there"):
        open_data(str(tmp_path))
    shutil.rmtree(tmp_path / "test")
    with pytest.raises(ValueError, match=r"expected both train/ and test/, got train/. Add the other"):
        open_data(str(tmp_path))


def test_wrong_folders(pictures, tmp_path):
    with pytest.raises(ValueError, match=r"expected a card or a folder .*, got '/nowhere/at/all'. Check the name"):
        open_data("/nowhere/at/all")
    with pytest.raises(ValueError, match=r"did you mean .digits.\?"):
        open_data("digit")
    with pytest.raises(ValueError, match=r"expected one sub-folder of images per class, got no sub-folders. Put"):
        open_data(str(tmp_path))
    (tmp_path / "cat").mkdir()
    with pytest.raises(ValueError, match=r"/cat': expected images .*, got none. Add some or remove it"):
        open_data(str(tmp_path))
    shutil.copy(pictures / "china" / "00.jpg", tmp_path / "cat")
    with pytest.raises(ValueError, match="only the class 'cat'"):
        open_data(str(tmp_path))
    shutil.copytree(tmp_path / "cat", tmp_path / "cat ")
    with pytest.raises(
        ValueError, match=r"expected folders of different names, got two of the class 'cat' .*Rename one"
    ):
        open_data(str(tmp_path))
    (tmp_path / "cat ").rename(tmp_path / "_")
    with pytest.raises(ValueError, match=r"expected a name of the class '_', got an empty one. Name it"):
        open_data(str(tmp_path))
    (tmp_path / "_").rename(tmp_path / "dog")
    with pytest.raises(ValueError, match="expected test images of all 2 classes, got none of"):
        open_data(str(tmp_path))


def test_a_broken_image_is_named_or_skipped_and_counted(pictures, tmp_path):
    root = tmp_path / "set"
    shutil.copytree(pictures, root)
    whole = (root / "china" / "03.jpg").read_bytes()
    (root / "china" / "03.jpg").write_bytes(whole[: len(whole) // 2])
    (root / "china" / "04.jpg").write_text("not an image")
    for name in ("03.jpg", "04.jpg"):
        with pytest.raises(
            ValueError, match=rf"{name}': expected an image, got a truncated file or another format .*--skip-broken"
        ):
            build_file_item(root / "china" / name).pixels(Preprocessing((32, 32)), None)
    data = open_data(str(root), skip_broken=True)
    assert len(data.train) + len(data.val) + len(data.test) == 22
    assert "2 broken files left out (03.jpg, 04.jpg)" in data.note


def test_equal_names_are_two_classes_with_a_warning():
    with pytest.warns(UserWarning, match="several classes are called 'missile'"):
        names = build_class_names({"n1": "missile", "n2": "missile", "n3": "dog"}, "a card")
    assert class_ids(names) == ("n1", "n2", "n3")
    split = Split(tuple(build_image_item(str(i), lambda: Image.new("RGB", (8, 8))) for i in range(3)), (0, 1, 2), names)
    assert split.select_classes([1, 0]).names == ("missile", "missile")
    assert class_ids(split.select_classes([1, 0]).names) == ("n2", "n1")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build_class_names({"a": "x", "b": "y"}, "a card")


def test_equal_names_keep_their_own_columns(tiny):
    from vlprompt.core.class_names import ClassName
    from vlprompt.core.stage import Lesson
    from vlprompt.methods import Linear
    from vlprompt.runtime.seeding import make_generator

    names = (ClassName("missile", "n1"), ClassName("missile", "n2"), ClassName("dog", "n3"))
    method = Linear(tiny.image, heads.LinearHead(1.0), solver="fit")
    method.begin_lesson(Lesson(Split((), (), names)), make_generator(0))
    assert method.precompute((names[1], names[2], names[0])).tolist() == [1, 2, 0]


def test_an_unknown_augmentation():
    with pytest.raises(ValueError, match="no augmentation 'mixup'; the choices are none, crop, crop-flip"):
        open_data("digits", augment="mixup")
