"""Pictures: decoded once, within a bound, by threads, ahead of their step; the pixels stay bit for bit the same."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vlprompt.core.batch import Batch, Split
from vlprompt.core.images import Augmentation, ImageItem, Preprocessing, build_images
from vlprompt.core.stage import Lesson
from vlprompt.data.images.cache import IMAGE_CACHE, DecodedImageCache, default_max_bytes
from vlprompt.data.images.decoding import AUGMENTATIONS, build_file_item, build_image_item, open_image, preprocess_image
from vlprompt.data.images.prefetch import prefetch_images
from vlprompt.data.loading import open_data
from vlprompt.engine.loop import fit
from vlprompt.engine.train_config import TrainConfig
from vlprompt.runtime import threads
from vlprompt.runtime.bounded_cache import ENTRY_OVERHEAD_BYTES
from vlprompt.runtime.seeding import make_generator

COMMAND = Path(sys.executable).parent / "vlprompt"
LOOKS = [
    Preprocessing((32, 32), (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)),
    Preprocessing((24, 40)),
    Preprocessing((24, 40), interpolation="bilinear", crop=0.875),
    Preprocessing((32, 32), resize="squash"),
    Preprocessing((28, 28), interpolation="bilinear", crop=0.8, antialias=False),
]
VIEWS = [
    None,
    *(
        Augmentation(augment, seed)
        for augment in AUGMENTATIONS
        for seed in ((1, 2) if augment == "crop-flip" else (1,))
    ),
]


@pytest.fixture(autouse=True)
def as_at_first():
    IMAGE_CACHE.set_max_bytes(0)
    IMAGE_CACHE.set_max_bytes(default_max_bytes())
    yield
    threads.set_workers(None)
    IMAGE_CACHE.set_max_bytes(0)
    IMAGE_CACHE.set_max_bytes(default_max_bytes())


@pytest.fixture(scope="module")
def modes(tmp_path_factory):
    """One photograph in every form that files have."""
    from sklearn.datasets import load_sample_images

    root = tmp_path_factory.mktemp("modes")
    photo = Image.fromarray(load_sample_images().images[0]).resize((90, 70))
    grey, seen = np.asarray(photo.convert("L")), photo.convert("RGBA")
    seen.putalpha(Image.fromarray(grey))
    made = {"rgb.jpg": photo, "cmyk.jpg": photo.convert("CMYK"), "grey.png": photo.convert("L"),
            "palette.png": photo.quantize(40), "palette.gif": photo.quantize(16), "alpha.png": seen,
            "16-bit.png": Image.fromarray(grey.astype(np.uint16) * 257), "alpha-grey.png": seen.convert("LA"),
            "bits.png": photo.convert("1"), "float.tif": Image.fromarray(grey.astype(np.float32) / 255),
            "small.png": photo.resize((9, 30)), "lossy.webp": photo}  # fmt: skip
    for name, picture in made.items():
        picture.save(root / name)
    photo.save(root / "one-colour-transparent.png", transparency=(1, 2, 3))
    return sorted(root.iterdir())


def test_pixels_are_the_same_bits_whatever_was_kept(modes):
    """Each sight twice, in an order in which every form is met before and after every other one."""
    fresh = {
        (f, look, view): preprocess_image(open_image(f), look, view) for f in modes for look in LOOKS for view in VIEWS
    }
    items = {f: build_file_item(f) for f in modes}
    for places in (fresh, reversed(fresh)):
        for f, look, view in places:
            for see in (items[f].decode_once, items[f].pixels, items[f].pixels):
                found = see(look, view)
                assert found.dtype == torch.float32
                assert found.equal(fresh[f, look, view]), (f.name, look, view)
    kept = len(IMAGE_CACHE)
    assert kept == len(modes) * (1 + 2 * 4)  # itself; resized, and what is cut out, for four looks


def test_threads_see_the_same_bits(modes):
    for n in (0, 3):
        threads.set_workers(n)
        IMAGE_CACHE.set_max_bytes(0)
        IMAGE_CACHE.set_max_bytes(default_max_bytes())
        items = [build_file_item(f) for f in modes]
        for view in VIEWS:
            some = build_images(items, [view] * len(items)).pixels(LOOKS[0])
            assert some.equal(torch.stack([preprocess_image(open_image(f), LOOKS[0], view) for f in modes])), (n, view)


def test_augmix_draws_the_numbers_it_always_drew_and_none_of_anybody_else(modes):
    from torchvision.transforms.v2 import AugMix

    look, photo = Preprocessing((48, 48)), open_image(modes[0])
    items = [build_image_item(f"augmix {i}", lambda: photo) for i in range(8)]
    threads.set_workers(3)
    torch.manual_seed(7)
    state = torch.get_rng_state()
    views = [Augmentation("augmix", seed) for seed in range(8)]
    found = build_images(items, views).pixels(look)
    assert torch.get_rng_state().equal(state)
    for one, view in zip(found, views, strict=True):
        flipped = preprocess_image(
            photo, look, Augmentation("crop-flip", view.seed)
        )  # the crop and the flip, and then the mix
        shown = Image.fromarray((flipped * 255).round().byte().permute(1, 2, 0).numpy())
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(view.seed)
            mixed = AugMix(severity=1)(shown)
        assert one.equal(torch.from_numpy(np.array(mixed)).permute(2, 0, 1).float() / 255)


def folder_of(root, n=12, size=(150, 110)):
    """Two classes of photographs that are large enough to be worth a thread."""
    from sklearn.datasets import load_sample_images

    for name, array in zip(("china", "flower"), load_sample_images().images, strict=True):
        (root / name).mkdir(parents=True)
        for i in range(n):
            crop = array[7 * i : 7 * i + 300, 9 * i : 9 * i + 400]
            Image.fromarray(crop).resize(size).save(root / name / f"{i:02}.jpg", quality=90)
    return root


def test_a_picture_is_opened_once(tmp_path):
    """The files are taken away after the first epoch, and after the first test."""
    split, look = open_data(str(folder_of(tmp_path / "set"))).train, Preprocessing((32, 32))

    def seen(epoch):
        return torch.cat([batch.inputs.pixels(look) for batch in split.batches(5, seed=1, epoch=epoch)])

    views = seen(0), seen(1)
    plain = torch.cat([batch.inputs.pixels(look) for batch in split.batches(5)])
    IMAGE_CACHE.set_max_bytes(0)
    IMAGE_CACHE.set_max_bytes(default_max_bytes())
    seen(0)
    for path in (tmp_path / "set").rglob("*.jpg"):
        path.unlink()
    assert seen(0).equal(views[0])
    assert seen(1).equal(views[1])
    assert not views[0].equal(views[1])
    assert torch.cat([batch.inputs.pixels(look) for batch in split.batches(5)]).equal(plain)
    IMAGE_CACHE.set_max_bytes(0)
    with pytest.raises(ValueError, match=r"\.jpg': expected an image, got no such file. Check the path"):
        seen(1)


def test_what_is_looked_at_once_is_not_kept(pictures, tiny):
    split = open_data(str(pictures)).test
    images = next(split.batches(100)).inputs
    tiny.image(images)
    assert not len(IMAGE_CACHE)
    images.pixels(tiny.image.preprocessing)
    assert len(IMAGE_CACHE) == len(split)


def test_memory_is_bounded_and_counted():
    held, photo = DecodedImageCache(100_000), Image.new("RGB", (50, 20))
    for lesson in range(100):  # a stream
        for i in range(30):
            held.add((lesson, i), photo)
            assert held.used_bytes == len(held) * (3000 + ENTRY_OVERHEAD_BYTES) <= 100_000
            assert (found := held.get((lesson, i))) is not None or lesson
            assert found is None or found.shape == (20, 50, 3)
    assert len(held) == 100_000 // (3000 + ENTRY_OVERHEAD_BYTES)
    assert len(held._keys) == len(held)
    assert {lesson for lesson, _ in held._entries} > {99, 98}  # not the last alone
    held.add("large", Image.new("RGB", (500, 200)))
    held.add("grey", Image.new("L", (5, 5)))
    assert held.get("large") is held.get("grey") is None
    held.set_max_bytes(5000)
    assert (len(held), held.used_bytes) == (1, 3000 + ENTRY_OVERHEAD_BYTES)


def test_the_process_grows_by_what_is_counted():
    code = """
import re
from PIL import Image
from vlprompt.data.images.cache import DecodedImageCache
from pathlib import Path
def resident():
    return int(re.search(r"VmRSS:\\s*(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
small, photo = DecodedImageCache(2 ** 26), Image.new("RGB", (20, 10))
before = resident()
for i in range(20000):
    small.add((f"/some/where/in/a/folder/of/images/of/a/class/number-{i}.jpg|12345|1234567890123456789", "none", (224, 224), "bicubic", "shortest", 1.0), photo)
print(small.used_bytes / (resident() - before))
large, photo = DecodedImageCache(2 ** 26), Image.new("RGB", (500, 375))
before = resident()
for i in range(300):
    large.add(i, photo)
print(large.used_bytes / (resident() - before))
"""  # noqa: E501
    if not Path("/proc/self/status").exists():
        pytest.skip("the system does not tell how much memory a process has")
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert all(0.85 < float(share) < 1.3 for share in told), told


def test_a_broken_picture_is_named_whoever_decodes_it(tmp_path):
    root = folder_of(tmp_path / "set")
    (root / "china" / "03.jpg").write_bytes((root / "china" / "03.jpg").read_bytes()[:900])
    items = [build_file_item(f) for f in sorted(root.rglob("*.jpg"))]
    split = Split(tuple(items), (0,) * len(items), ("a", "b"))
    for n in (0, 1, 4):
        threads.set_workers(n)
        with pytest.raises(
            ValueError, match=r"03.jpg': expected an image, got a truncated file or another format .*--skip-broken"
        ):
            build_images(items, [None] * len(items)).pixels(LOOKS[0])
        batches = prefetch_images(split.batches(1))
        for _ in range(3):
            next(batches).inputs.pixels(LOOKS[0])
        broken = next(batches).inputs
        with pytest.raises(ValueError, match=r"03.jpg': expected an image, got a truncated file"):
            broken.pixels(LOOKS[0])
    with pytest.raises(ValueError, match=r"--workers: expected at least 0 threads, got -1. Set --workers 0"):
        threads.set_workers(-1)


class Slow:
    """Items that take a moment to decode and say that they were: the numbers, in order.

    Args:
        gate: items from this number on wait for `release`; their threads are at work as long.
        meet: two items that wait for each other, so that two threads must decode them.
    """

    def __init__(self, n, gate=None, meet=()):
        self.done, self.threads, self.gate, self.meet = [], set(), gate, meet
        self.release, self.barrier = threading.Event(), threading.Barrier(2)
        self.items = tuple(ImageItem(str(i), partial(self.see, i)) for i in range(n))
        self.split = Split(self.items, (0,) * n, ("a", "b"))

    def see(self, i, look, view):
        time.sleep(0.002)  # longer than what is decoded without threads
        if i in self.meet:
            self.barrier.wait(600)
        if self.gate is not None and i >= self.gate:
            assert self.release.wait(600)
        self.threads.add(threading.current_thread().name)
        self.done.append(i)
        return torch.full((1,), float(i))


def finish_jobs():
    """Wait until both threads have done all that was submitted, and meet."""
    barrier = threading.Barrier(2)
    for job in [threads.submit(barrier.wait, 600) for _ in range(2)]:
        job.result(600)


def test_the_next_batch_is_decoded_while_one_is_computed():
    threads.set_workers(2)
    slow, look, computing = Slow(24, meet=(8, 9)), Preprocessing((1, 1)), []
    for k, batch in enumerate(prefetch_images(slow.split.batches(4))):
        computing.append(batch.inputs.pixels(look).flatten().tolist())
        if k:  # of the first nobody knew that it would be asked for
            finish_jobs()
            following = set(range(4 * k + 4, min(24, 4 * k + 8)))
            assert following <= set(slow.done)
            assert max(slow.done) < 4 * k + 8  # one batch ahead, no more
    assert computing == [[float(i) for i in range(4 * k, 4 * k + 4)] for k in range(6)]
    assert sorted(slow.done) == list(range(24))  # each once
    assert len(slow.threads) == 3  # two and this one


def test_only_what_is_asked_for_is_decoded_ahead():
    """As a process of several asks for its slice, and a tower for those whose features it lacks."""
    threads.set_workers(2)
    slow, look = Slow(22), Preprocessing((1, 1))
    for batch in prefetch_images(slow.split.batches(6)):
        batch.inputs.slice(2, 5).pixels(look)
        finish_jobs()
    assert sorted(slow.done) == [2, 3, 4, 8, 9, 10, 14, 15, 16, 20, 21]
    slow = Slow(12)
    for k, batch in enumerate(prefetch_images(slow.split.batches(6))):
        some = batch.inputs if k else batch.inputs.slice(2, 5)  # then also those that nobody started
        assert some.pixels(look).flatten().tolist() == list(range(6, 12) if k else range(2, 5))
    slow = Slow(20)
    for k, batch in enumerate(prefetch_images(slow.split.batches(4))):
        if k < 2:
            batch.micro_batches(2)[1].inputs.pixels(look)
        finish_jobs()
    assert sorted(slow.done) == [2, 3, 6, 7, 10, 11, 14, 15]  # two batches too many, no more
    for n in (0, 1):
        threads.set_workers(n)
        slow = Slow(8)
        for k, batch in enumerate(prefetch_images(slow.split.batches(4))):
            batch.inputs.pixels(look)
            assert len(slow.done) == 4 * k + 4
        assert slow.threads == {threading.current_thread().name}


def test_nothing_is_left_running_when_a_loop_is_left():
    threads.set_workers(2)
    slow, look = Slow(200, gate=50), Preprocessing((1, 1))
    loop = prefetch_images(slow.split.batches(50))
    next(loop).inputs.pixels(look)
    next(loop)
    loop.close()
    slow.release.set()
    finish_jobs()
    assert 50 <= len(slow.done) <= 52  # what both threads had begun
    slow = Slow(300, gate=50)
    for k, batch in enumerate(
        prefetch_images(slow.split.batches(50))
    ):  # what was started for nothing is not done either
        if not k:
            batch.inputs.pixels(look)
    slow.release.set()
    finish_jobs()
    assert 50 <= len(slow.done) <= 52


def test_unlabelled_images_are_decoded_ahead_too():
    threads.set_workers(2)
    slow, other, look = Slow(8), Slow(8), Preprocessing((1, 1))

    def both():
        for batch, beside in zip(slow.split.batches(2), other.split.batches(2), strict=True):
            yield Batch(batch.inputs, batch.labels, batch.names, unlabelled=beside)

    for k, batch in enumerate(prefetch_images(both())):
        batch.unlabelled.inputs.pixels(look)
        if 0 < k < 3:
            finish_jobs()
            assert {2 * k + 2, 2 * k + 3} <= set(other.done)
    assert not slow.done


def test_kept_features_are_trained_on_without_pixels(tmp_path, tiny):
    """CoOp: the files are gone before its second run, and so is what was decoded."""
    from vlprompt.engine.evaluate import evaluate
    from vlprompt.methods import CoOp

    data = open_data(str(folder_of(tmp_path / "set")), augment="crop")
    method, train = CoOp(tiny, n_ctx=2), TrainConfig(epochs=3, batch_size=4, augmentations=2, warmup=0)

    def losses():
        method.begin_lesson(Lesson(data.train), make_generator(1))
        return [step.loss for step in fit(method, Lesson(data.train), train)], evaluate(method, data.test).metrics

    first = losses()
    for path in (tmp_path / "set").rglob("*.jpg"):
        path.unlink()
    IMAGE_CACHE.set_max_bytes(0)
    assert losses() == first


def test_features_are_the_same_however_they_are_decoded(tmp_path, tiny):
    from vlprompt.backbones.glyph import build_tiny_clip

    images = [build_file_item(f) for f in sorted(folder_of(tmp_path / "set").rglob("*.jpg"))]
    found = []
    for n in (1, 3):
        threads.set_workers(n)
        tower = build_tiny_clip().image
        tower.pass_size = 5
        found.append(tower(build_images(images, [None] * len(images))))
    assert found[0].equal(found[1])


METHOD = """
import os
from vlprompt.methods import VPT

class Stopped(VPT):  # sends its process a signal at one step
    def loss_terms(self, batch, fixed):
        if str(batch.step) == os.environ.get("STOP_AT"):
            os.kill(os.getpid(), int(os.environ["STOP_BY"]))
        return super().loss_terms(batch, fixed)
"""


def trained(root, folder, *more, **environment):
    (root.parent / "stopped.py").write_text(METHOD)
    command = [
        COMMAND,
        "run",
        "stopped:Stopped",
        root,
        "--backbone",
        "glyph-vit",
        "--shots",
        "4",
        "--out",
        folder,
        "--save-every",
    ]
    command += ["0.01", "train.epochs=40", "train.batch_size=3", "method.n_tokens=2", "task.augment=augmix", *more]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root.parent), *sys.path]), **environment}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=600)


def outcome(folder):
    [run] = folder.glob("*-*")
    return run.name, json.loads((run / "result.json").read_text())["scores"], (run / "steps.jsonl").read_text()


@pytest.mark.slow
def test_a_run_is_the_same_with_threads_and_when_it_is_killed(tmp_path):
    root = folder_of(tmp_path / "set", 8)
    alone = trained(root, tmp_path / "alone", "--workers", "0", "--image-cache", "0")
    assert alone.returncode == 0, alone.stderr
    for step, stop, status in (("30", signal.SIGINT, 130), ("50", signal.SIGKILL, -9)):
        killed = trained(root, tmp_path / "killed", "--workers", "3", STOP_AT=step, STOP_BY=str(int(stop)))
        assert killed.returncode == status, killed.stderr
    last = trained(root, tmp_path / "killed", "--workers", "3")
    assert last.returncode == 0, last.stderr
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "alone")


def test_options(type_in):
    status, told = type_in("run", "coop", "digits", "--workers", "-1")
    assert (status, "--workers: expected at least 0 threads, got -1. Set --workers 0" in told) == (2, True)
    status, told = type_in("run", "coop", "digits", "--image-cache", "-1")
    assert (status, "--image-cache: expected at least 0 GB, got -1.0. Set --image-cache 0.5." in told) == (2, True)


def test_a_forked_process_has_threads_of_its_own(tmp_path):
    """Those of its parent are not there in a fork: who waited for them would wait for ever."""
    paths = [tmp_path / f"{i}.png" for i in range(4)]
    for i, path in enumerate(paths):
        Image.effect_noise((300, 300), 10 * i).convert("RGB").save(path)
    look = Preprocessing((224, 224))

    def shown():
        return build_images([build_file_item(path) for path in paths], [None] * 4).pixels(look)

    threads.set_workers(2)
    try:
        shown()
        child = multiprocessing.get_context("fork").Process(target=shown)
        child.start()
        child.join(600)
        hung = child.is_alive()
        child.kill()
    finally:
        threads.set_workers(None)
    assert not hung
    assert child.exitcode == 0
