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
from vlprompt.core.images import Item, Look, View, picked
from vlprompt.core.stage import Lesson
from vlprompt.data.images.cache import EACH, HELD, Decoded, most
from vlprompt.data.images.decoding import AUGMENTS, file_item, open_picture, picture_item, pixels
from vlprompt.data.images.prefetch import ahead
from vlprompt.data.loading import open_data
from vlprompt.engine.loop import fit
from vlprompt.engine.train_config import Train
from vlprompt.runtime import threads
from vlprompt.runtime.seeding import generator

COMMAND = Path(sys.executable).parent / "vlprompt"
LOOKS = [
    Look((32, 32), (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)),
    Look((24, 40)),
    Look((24, 40), interpolation="bilinear", crop=0.875),
    Look((32, 32), resize="squash"),
    Look((28, 28), interpolation="bilinear", crop=0.8, antialias=False),
]
VIEWS = [None, *(View(augment, seed) for augment in AUGMENTS for seed in ((1, 2) if augment == "crop-flip" else (1,)))]


@pytest.fixture(autouse=True)
def as_at_first():
    HELD.use(0)
    HELD.use(most())
    yield
    threads.use(None)
    HELD.use(0)
    HELD.use(most())


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
    fresh = {(f, look, view): pixels(open_picture(f), look, view) for f in modes for look in LOOKS for view in VIEWS}
    items = {f: file_item(f) for f in modes}
    for places in (fresh, reversed(fresh)):
        for f, look, view in places:
            for see in (items[f].once, items[f].pixels, items[f].pixels):
                found = see(look, view)
                assert found.dtype == torch.float32
                assert found.equal(fresh[f, look, view]), (f.name, look, view)
    kept = len(HELD)
    assert kept == len(modes) * (1 + 2 * 4)  # itself; resized, and what is cut out, for four looks


def test_threads_see_the_same_bits(modes):
    for n in (0, 3):
        threads.use(n)
        HELD.use(0)
        HELD.use(most())
        items = [file_item(f) for f in modes]
        for view in VIEWS:
            some = picked(items, [view] * len(items)).pixels(LOOKS[0])
            assert some.equal(torch.stack([pixels(open_picture(f), LOOKS[0], view) for f in modes])), (n, view)


def test_augmix_draws_the_numbers_it_always_drew_and_none_of_anybody_else(modes):
    from torchvision.transforms.v2 import AugMix

    look, photo = Look((48, 48)), open_picture(modes[0])
    items = [picture_item(f"augmix {i}", lambda: photo) for i in range(8)]
    threads.use(3)
    torch.manual_seed(7)
    state = torch.get_rng_state()
    views = [View("augmix", seed) for seed in range(8)]
    found = picked(items, views).pixels(look)
    assert torch.get_rng_state().equal(state)
    for one, view in zip(found, views, strict=True):
        flipped = pixels(photo, look, View("crop-flip", view.seed))  # the crop and the flip, and then the mix
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
    split, look = open_data(str(folder_of(tmp_path / "set"))).train, Look((32, 32))

    def seen(epoch):
        return torch.cat([batch.inputs.pixels(look) for batch in split.batches(5, seed=1, epoch=epoch)])

    views = seen(0), seen(1)
    plain = torch.cat([batch.inputs.pixels(look) for batch in split.batches(5)])
    HELD.use(0)
    HELD.use(most())
    seen(0)
    for path in (tmp_path / "set").rglob("*.jpg"):
        path.unlink()
    assert seen(0).equal(views[0])
    assert seen(1).equal(views[1])
    assert not views[0].equal(views[1])
    assert torch.cat([batch.inputs.pixels(look) for batch in split.batches(5)]).equal(plain)
    HELD.use(0)
    with pytest.raises(ValueError, match=r"there is no image '.*\.jpg'"):
        seen(1)


def test_what_is_looked_at_once_is_not_kept(pictures, tiny):
    split = open_data(str(pictures)).test
    images = next(split.batches(100)).inputs
    tiny.image(images)
    assert not len(HELD)
    images.pixels(tiny.image.look)
    assert len(HELD) == len(split)


def test_memory_is_bounded_and_counted():
    held, photo = Decoded(100_000), Image.new("RGB", (50, 20))
    for lesson in range(100):  # a stream
        for i in range(30):
            held.keep((lesson, i), photo)
            assert held.bytes == len(held) * (3000 + EACH) <= 100_000
            assert (found := held.get((lesson, i))) is not None or lesson
            assert found is None or found.shape == (20, 50, 3)
    assert len(held) == 100_000 // (3000 + EACH)
    assert len(held._order) == len(held)
    assert {lesson for lesson, _ in held._held} > {99, 98}  # not the last alone
    held.keep("large", Image.new("RGB", (500, 200)))
    held.keep("grey", Image.new("L", (5, 5)))
    assert held.get("large") is held.get("grey") is None
    held.use(5000)
    assert (len(held), held.bytes) == (1, 3000 + EACH)


def test_the_process_grows_by_what_is_counted():
    code = """
import re
from PIL import Image
from vlprompt.data.decoded import Decoded
from pathlib import Path
def resident():
    return int(re.search(r"VmRSS:\\s*(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
small, photo = Decoded(2 ** 26), Image.new("RGB", (20, 10))
before = resident()
for i in range(20000):
    small.keep((f"/some/where/in/a/folder/of/images/of/a/class/number-{i}.jpg|12345|1234567890123456789", "none", (224, 224), "bicubic", "shortest", 1.0), photo)
print(small.bytes / (resident() - before))
large, photo = Decoded(2 ** 26), Image.new("RGB", (500, 375))
before = resident()
for i in range(300):
    large.keep(i, photo)
print(large.bytes / (resident() - before))
"""  # noqa: E501
    if not Path("/proc/self/status").exists():
        pytest.skip("the system does not tell how much memory a process has")
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert all(0.85 < float(share) < 1.3 for share in told), told


def test_a_broken_picture_is_named_whoever_decodes_it(tmp_path):
    root = folder_of(tmp_path / "set")
    (root / "china" / "03.jpg").write_bytes((root / "china" / "03.jpg").read_bytes()[:900])
    items = [file_item(f) for f in sorted(root.rglob("*.jpg"))]
    split = Split(tuple(items), (0,) * len(items), ("a", "b"))
    for n in (0, 1, 4):
        threads.use(n)
        with pytest.raises(ValueError, match=r"03.jpg' is truncated or not an image .*--skip-broken"):
            picked(items, [None] * len(items)).pixels(LOOKS[0])
        batches = ahead(split.batches(1))
        for _ in range(3):
            next(batches).inputs.pixels(LOOKS[0])
        broken = next(batches).inputs
        with pytest.raises(ValueError, match=r"03.jpg' is truncated"):
            broken.pixels(LOOKS[0])
    with pytest.raises(ValueError, match="0 threads or more, not -1"):
        threads.use(-1)


class Slow:
    """Items that take a moment to decode and say that they were: the numbers, in order."""

    def __init__(self, n, seconds=0.002):
        self.done, self.seconds, self.threads = [], seconds, set()
        self.items = tuple(Item(str(i), partial(self.see, i)) for i in range(n))
        self.split = Split(self.items, (0,) * n, ("a", "b"))

    def see(self, i, look, view):
        time.sleep(self.seconds)
        self.threads.add(threading.current_thread().name)
        self.done.append(i)
        return torch.full((1,), float(i))

    def waited(self, wanted, seconds=5.0):
        until = time.monotonic() + seconds
        while not wanted <= set(self.done) and time.monotonic() < until:
            time.sleep(0.002)
        return set(self.done)


def test_the_next_batch_is_decoded_while_one_is_computed():
    threads.use(2)
    slow, look, computing = Slow(24), Look((1, 1)), []
    for k, batch in enumerate(ahead(slow.split.batches(4))):
        computing.append(batch.inputs.pixels(look).flatten().tolist())
        if k:  # of the first nobody knew that it would be asked for
            following = set(range(4 * k + 4, min(24, 4 * k + 8)))
            assert following <= slow.waited(following)
            assert max(slow.done) < 4 * k + 8  # one batch ahead, no more
    assert computing == [[float(i) for i in range(4 * k, 4 * k + 4)] for k in range(6)]
    assert sorted(slow.done) == list(range(24))  # each once
    assert len(slow.threads) == 3  # two and this one


def test_only_what_is_asked_for_is_decoded_ahead():
    """As a process of several asks for its slice, and a tower for those whose features it lacks."""
    threads.use(2)
    slow, look = Slow(22), Look((1, 1))
    for batch in ahead(slow.split.batches(6)):
        batch.inputs.part(2, 5).pixels(look)
        time.sleep(0.03)
    assert sorted(slow.done) == [2, 3, 4, 8, 9, 10, 14, 15, 16, 20, 21]
    slow = Slow(12)
    for k, batch in enumerate(ahead(slow.split.batches(6))):
        some = batch.inputs if k else batch.inputs.part(2, 5)  # then also those that nobody started
        assert some.pixels(look).flatten().tolist() == list(range(6, 12) if k else range(2, 5))
    slow = Slow(20)
    for k, batch in enumerate(ahead(slow.split.batches(4))):
        if k < 2:
            batch.split(2)[1].inputs.pixels(look)
        time.sleep(0.03)
    assert sorted(slow.done) == [2, 3, 6, 7, 10, 11, 14, 15]  # two batches too many, no more
    for n in (0, 1):
        threads.use(n)
        slow = Slow(8)
        for k, batch in enumerate(ahead(slow.split.batches(4))):
            batch.inputs.pixels(look)
            assert len(slow.done) == 4 * k + 4
        assert slow.threads == {threading.current_thread().name}


def test_nothing_is_left_running_when_a_loop_is_left():
    threads.use(2)
    slow, look = Slow(200, 0.01), Look((1, 1))
    loop = ahead(slow.split.batches(50))
    next(loop).inputs.pixels(look)
    next(loop)
    loop.close()
    time.sleep(0.05)  # what had been begun
    done = len(slow.done)
    time.sleep(0.1)
    assert len(slow.done) == done < 70
    slow = Slow(300, 0.01)
    for k, batch in enumerate(ahead(slow.split.batches(50))):  # what was started for nothing is not done either
        if not k:
            batch.inputs.pixels(look)
    time.sleep(0.3)
    assert len(slow.done) < 70


def test_unlabelled_images_are_decoded_ahead_too():
    threads.use(2)
    slow, other, look = Slow(8), Slow(8), Look((1, 1))

    def both():
        for batch, beside in zip(slow.split.batches(2), other.split.batches(2), strict=True):
            yield Batch(batch.inputs, batch.labels, batch.names, unlabelled=beside)

    for k, batch in enumerate(ahead(both())):
        batch.unlabelled.inputs.pixels(look)
        if 0 < k < 3:
            assert {2 * k + 2, 2 * k + 3} <= other.waited({2 * k + 2, 2 * k + 3})
    assert not slow.done


def test_kept_features_are_trained_on_without_pixels(tmp_path, tiny):
    """CoOp: the files are gone before its second run, and so is what was decoded."""
    from vlprompt.engine.evaluate import evaluate
    from vlprompt.methods import CoOp

    data = open_data(str(folder_of(tmp_path / "set")), augment="crop")
    method, train = CoOp(tiny, n_ctx=2), Train(epochs=3, batch=4, views=2, warmup=0)

    def losses():
        method.begin(Lesson(data.train), generator(1))
        return [step.loss for step in fit(method, Lesson(data.train), train)], evaluate(method, data.test).numbers

    first = losses()
    for path in (tmp_path / "set").rglob("*.jpg"):
        path.unlink()
    HELD.use(0)
    assert losses() == first


def test_features_are_the_same_however_they_are_decoded(tmp_path, tiny):
    from vlprompt.backbones.glyph import twin

    images = [file_item(f) for f in sorted(folder_of(tmp_path / "set").rglob("*.jpg"))]
    found = []
    for n in (1, 3):
        threads.use(n)
        tower = twin().image
        tower.pass_size = 5
        found.append(tower(picked(images, [None] * len(images))))
    assert found[0].equal(found[1])


def trained(root, folder, *more):
    command = [COMMAND, "run", "vpt", root, "--backbone", "glyph-vit", "--shots", "4", "--out", folder, "--save-every"]
    command += ["0.01", "train.epochs=40", "train.batch=3", "method.n_tokens=2", "task.augment=augmix", *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=dict(os.environ))


def outcome(folder):
    [run] = folder.glob("*-*")
    return run.name, json.loads((run / "result.json").read_text())["scores"], (run / "steps.jsonl").read_text()


@pytest.mark.slow
def test_a_run_is_the_same_with_threads_and_when_it_is_killed(tmp_path):
    root = folder_of(tmp_path / "set", 8)
    alone = trained(root, tmp_path / "alone", "--workers", "0", "--picture-memory", "0")
    assert alone.wait(120) == 0, alone.stdout.read()
    for stop, status in ((signal.SIGINT, 130), (signal.SIGKILL, -9)):
        process, out = trained(root, tmp_path / "killed", "--workers", "3"), tmp_path / "killed"
        for _ in range(3000):
            if any(len(log.read_bytes()) > 2000 for log in out.glob("*/steps.jsonl")):
                break
            time.sleep(0.02)
        process.send_signal(stop)
        assert process.wait(10) == status
    last = trained(root, tmp_path / "killed", "--workers", "3")
    assert last.wait(120) == 0, last.stdout.read()
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "alone")


def test_options(type_in):
    status, told = type_in("run", "coop", "digits", "--workers", "-1")
    assert (status, "0 threads or more, not -1" in told) == (2, True)
    status, told = type_in("run", "coop", "digits", "--picture-memory", "-1")
    assert (status, "--picture-memory is a number of GB from 0 on, such as 0.5; got -1.0" in told) == (2, True)


def test_a_forked_process_has_threads_of_its_own(tmp_path):
    """Those of its parent are not there in a fork: who waited for them would wait for ever."""
    paths = [tmp_path / f"{i}.png" for i in range(4)]
    for i, path in enumerate(paths):
        Image.effect_noise((300, 300), 10 * i).convert("RGB").save(path)
    look = Look((224, 224))

    def shown():
        return picked([file_item(path) for path in paths], [None] * 4).pixels(look)

    threads.use(2)
    try:
        shown()
        child = multiprocessing.get_context("fork").Process(target=shown)
        child.start()
        child.join(30)
        hung = child.is_alive()
        child.kill()
    finally:
        threads.use(None)
    assert not hung
    assert child.exitcode == 0
