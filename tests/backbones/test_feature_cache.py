"""Features on the disk: found again by any process, bit for bit, and never those of another picture, look or tower."""

import json
import multiprocessing
import os
import resource
import signal
import subprocess
import time
import warnings
from copy import copy
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from PIL import Image

import vlprompt
import vlprompt.data
import vlprompt.tasks
from vlprompt.backbones import feature_cache
from vlprompt.backbones.cache import disk, segment_file
from vlprompt.backbones.cache.memory import FeatureCache
from vlprompt.backbones.glyph import build_tiny_clip
from vlprompt.core.images import Augmentation, ImageItem, Preprocessing, build_images, persistent_key
from vlprompt.data.images import decoding
from vlprompt.data.images.cache import IMAGE_CACHE
from vlprompt.data.images.decoding import build_file_item
from vlprompt.data.splits.label_hiding import anonymize_items
from vlprompt.layers.heads import LinearHead
from vlprompt.methods import CoOp, Partial

BOTH = Preprocessing((32, 32)), Preprocessing((32, 32), mean=(0.5, 0.5, 0.5))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Forty small pictures of noise."""
    folder, random = tmp_path_factory.mktemp("noise"), np.random.default_rng(0)
    paths = [folder / f"{i:02}.png" for i in range(40)]
    for path in paths:
        Image.fromarray(random.integers(0, 255, (16, 16, 3), np.uint8)).save(path)
    return paths


def images(files, view=None):
    return build_images([build_file_item(path) for path in files], [view] * len(files))


@cache
def built(**changes):
    return build_tiny_clip(**changes)


def fresh(**changes):
    """A tiny CLIP that has computed nothing yet."""
    clip = replace(built(**changes), image=copy(built(**changes).image), text=copy(built(**changes).text))
    clip.image.feature_cache = FeatureCache()
    return clip


def load(folder, **changes):
    """One that keeps its features in a folder, as another process would load it."""
    return feature_cache.attach_disk_cache(fresh(**changes), folder)


def made(folder, files, **changes):
    """Features, and how many of them had to be computed."""
    tower = load(folder, **changes).image
    found = tower(images(files))
    tower.feature_cache.flush()
    return found, tower.feature_cache.counts.misses


def rows_in(folder):
    return sum(one.n_rows for one in feature_cache.list_namespaces(folder))


def test_a_feature_from_the_disk_is_the_computed_one(files, tmp_path):
    plain = fresh().image(images(files))
    first, computed = made(tmp_path, files[:30])
    assert computed == 30
    again, computed = made(tmp_path, files)
    assert computed == 10
    assert torch.equal(again, plain)
    assert torch.equal(again[:30], first)
    assert made(tmp_path, files[::-1])[1] == 0
    assert rows_in(tmp_path) == 40


def test_by_name_and_from_another_process(files, tmp_path):
    mine = vlprompt.load("glyph/random", "cpu", cache_folder=tmp_path)
    wanted = mine.image(images(files))
    mine.image.feature_cache.flush()

    def there():
        again = vlprompt.load("glyph/random", "cpu", cache_folder=tmp_path).image
        assert torch.equal(again(images(files)), wanted)
        assert again.feature_cache.counts.misses == 0

    assert in_process(there).wait() == 0


class in_process:
    """A function in a process of its own, which knows all that this one knows."""

    def __init__(self, function):
        self.process = multiprocessing.get_context("fork").Process(target=function)
        self.process.start()

    def wait(self):
        self.process.join()
        return self.process.exitcode


def test_another_look_view_weight_or_file_is_never_given(files, tmp_path):
    clip = load(tmp_path)
    looks = [clip.image.with_preprocessing(look) for look in BOTH]
    views = [None, Augmentation("crop-flip", 1), Augmentation("crop-flip", 2), Augmentation("crop", 1)]
    for tower in looks:
        for view in views:
            tower(images(files[:4], view))
    other = load(tmp_path, seed=1).image
    other(images(files[:4]))
    other.feature_cache.flush()
    clip.image.feature_cache.flush()
    again = load(tmp_path)
    for look in BOTH:
        for view in views:
            assert torch.equal(
                again.image.with_preprocessing(look)(images(files[:4], view)),
                fresh().image.with_preprocessing(look)(images(files[:4], view)),
            )
    assert again.image.feature_cache.counts.misses == 0
    assert torch.equal(load(tmp_path, seed=1).image(images(files[:4])), fresh(seed=1).image(images(files[:4])))
    assert rows_in(tmp_path) == 4 * (2 * 4 + 1)


def test_a_file_that_changed_is_another_picture(tmp_path):
    """Also where it has the same size, as bitmaps of one size have."""
    path = tmp_path / "one.bmp"
    for grey in (9, 200):
        Image.fromarray(np.full((16, 16, 3), grey, np.uint8)).save(path)
        os.utime(path, (grey, grey))
        found, computed = made(tmp_path / "kept", [path])
        assert computed == 1
        assert torch.equal(found, fresh().image(images([path])))


def test_towers_that_are_called_alike_but_compute_another_thing_share_nothing(files, tmp_path):
    plain, quick = fresh(), fresh(quick_gelu=True)
    assert plain.image.key.partition(".")[0] == quick.image.key.partition(".")[0]  # the same weights and name
    assert plain.image.key != quick.image.key
    assert not torch.allclose(plain.image(images(files)), quick.image(images(files)))
    made(tmp_path, files)
    found, computed = made(tmp_path, files, quick_gelu=True)
    assert computed == len(files)
    assert torch.equal(found, quick.image(images(files)))
    assert made(tmp_path, files)[1] == 0


def test_a_tower_with_parts_in_its_weights_keeps_to_itself(files, tmp_path):
    from vlprompt.core.prompt import Prompt

    clip = load(tmp_path)
    merged = clip.image.merged(Prompt(adapters={"0/out": Twice()}))
    for tower in (merged, merged.with_preprocessing(BOTH[1]), merged.split_at(1)[0]):
        tower(images(files[:2]))
        tower.feature_cache.flush()
    clip.image.feature_cache.flush()
    assert not rows_in(tmp_path)


class Twice:
    """A part that can be folded: what a map gives, twice."""

    def __call__(self, given, made):
        return 2 * made

    def merge(self, weight, bias):
        return 2 * weight, None if bias is None else 2 * bias


def test_only_keys_that_last_go_to_the_disk(files, tmp_path):
    """Datasets that are Python objects number themselves in each process; hidden items last as what they hide."""
    pairs = [(Image.open(path), i % 2) for i, path in enumerate(files)]
    objects = vlprompt.data.from_torchvision(pairs, names=["a", "b"], name="mine")
    of_files = vlprompt.data.open_data(str(class_folders(files, tmp_path / "data")))
    tower = load(tmp_path / "kept").image
    tower(objects.test.batches(100).__next__().inputs)
    tower(build_images([ImageItem("anything", lambda look, view: torch.zeros(3, *look.size))], [None]))
    tower.feature_cache.flush()
    assert not rows_in(tmp_path / "kept")
    secret = anonymize_items(of_files.test)
    wanted = tower(next(secret.batches(100)).inputs)
    tower.feature_cache.flush()
    assert rows_in(tmp_path / "kept") == len(secret)
    again = load(tmp_path / "kept").image
    assert torch.equal(again(next(secret.batches(100)).inputs), wanted)
    assert again.feature_cache.counts.misses == 0
    again(next(of_files.test.batches(100)).inputs)  # whose keys tell where they lie
    assert again.feature_cache.counts.misses == len(secret)


def test_images_without_lasting_keys_do_not_ask_the_disk(tmp_path):
    """What identifies a tower there takes a pass."""
    asked, store = [], FeatureCache()
    store.disk_namespace = disk.CacheNamespace(
        disk.DiskCache(tmp_path), {"tower": "t"}, lambda: asked.append(1) or torch.ones(8), torch.device("cpu")
    )
    assert store.get_many(["of this process"]) == {}
    assert not asked
    assert store.get_many([persistent_key("of any")]) == {}
    assert asked


def class_folders(files, root):
    for i, path in enumerate(files):
        (root / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        (root / "ab"[i % 2] / path.name).write_bytes(path.read_bytes())
    return root


# what is broken


def only_segment(folder):
    [found] = folder.glob("*-*/*.rows")
    return found


def flip(place):
    def change(data):
        data[place] ^= 0x10
        return data

    return change


BROKEN = {
    "empty": lambda data: b"",
    "header only": lambda data: data[:64],
    "short": lambda data: data[:-1],
    "long": lambda data: data + b"x",
    "half": lambda data: data[: len(data) // 2],
    "no segment": lambda data: b"x" * len(data),
    "zeros": lambda data: data[:100] + bytes(len(data) - 100),
    "other shape": flip(24),
    "other rows": flip(8),
    "a digest": flip(80 + 100),
    "a digit of the first row": flip(80 + 24 * 40 + 2),
    "a digit of the last row": flip(-1),
    "a checksum": flip(80 + 16 * 40),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_segment_is_left_out_with_one_warning_and_computed_again(files, tmp_path, how):
    wanted, _ = made(tmp_path, files)
    path = only_segment(tmp_path)
    path.write_bytes(BROKEN[how](bytearray(path.read_bytes())))
    with pytest.warns(UserWarning, match="is broken") as told:
        found, computed = made(tmp_path, files)
    assert [path.name in str(one.message) for one in told] == [True]
    assert torch.equal(found, wanted)
    assert computed == 1 or "a digit" not in how  # the other rows are good
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found, computed = made(tmp_path, files)
    assert torch.equal(found, wanted)
    assert computed == 0


def test_no_change_of_a_file_gives_a_wrong_feature(files, tmp_path):
    wanted, _ = made(tmp_path, files)
    path, random = only_segment(tmp_path), np.random.default_rng(1)
    whole = path.read_bytes()
    for _ in range(30):
        for left in path.parent.glob("*.rows"):  # the good rows of the time before
            left.unlink()
        data = bytearray(whole)
        data[int(random.integers(len(data)))] ^= int(random.integers(1, 256))
        path.write_bytes(data)
        shelf = feature_cache.attach_disk_cache(fresh(), tmp_path).image.feature_cache.disk_namespace
        with pytest.warns(UserWarning, match="is broken"):
            found = [shelf.get(key) for key in images(files).keys]
        assert all(f is None or torch.equal(f, w) for f, w in zip(found, wanted, strict=True))
        assert any(f is None for f in found)


def test_a_segment_that_is_cut_while_it_is_open(files, tmp_path):
    wanted, _ = made(tmp_path, files)
    tower = load(tmp_path).image
    assert torch.equal(tower(images(files[:1])), wanted[:1])
    with only_segment(tmp_path).open("r+b") as file:
        file.truncate(200)
    with pytest.warns(UserWarning, match="truncated"):
        assert torch.equal(tower(images(files)), wanted)


# many segments


def wanted_rows(n, start=0, width=6):
    """n keys with random features: signs, infinities and NaNs are bits like others."""
    random = np.random.default_rng(start)
    bits = random.integers(0, 2**32, (n, width), np.uint32)
    return {f"k{start + i}": torch.from_numpy(row.view(np.float32)) for i, row in enumerate(bits)}


def keep(shelf, rows):
    for key, row in rows.items():
        shelf.add(key, row)
    shelf.flush()


def bits(features):
    return {key: row.numpy().tobytes() for key, row in features.items()}


def test_a_batch_over_many_segments_has_each_feature_bit_for_bit(tmp_path):
    shelf, rows = opened(tmp_path), wanted_rows(700)
    keys = list(rows)
    for begin in range(0, 700, 50):
        keep(shelf, {key: rows[key] for key in keys[begin : begin + 50]})
        keep(opened(tmp_path), {key: rows[key] for key in keys[begin : begin + 3]})  # kept twice
    assert len(list(tmp_path.rglob("*.rows"))) > 10
    again, mixed = opened(tmp_path), np.random.default_rng(2).permutation(keys).tolist()
    for size in (1, 7, 32, 700):
        for begin in range(0, 700, size):
            batch = mixed[begin : begin + size]
            found = again.get_many([*batch, "never kept", f"not {batch[0]}", *batch[:2]])
            assert bits(found) == bits({key: rows[key] for key in batch})
    found[mixed[0]].zero_()  # a copy, not the file
    assert bits(again.get_many(keys)) == bits(rows)
    assert again.get_many([]) == {}


def test_a_batch_has_what_another_process_added_since(tmp_path, monkeypatch):
    monkeypatch.setattr(disk, "SCAN_SECONDS", 0.0)
    rows, later = wanted_rows(90), wanted_rows(40, start=1000)
    keep(opened(tmp_path), rows)
    shelf = opened(tmp_path)
    assert bits(shelf.get_many([*rows, *later])) == bits(rows)
    assert in_process(lambda: keep(opened(tmp_path), later)).wait() == 0
    assert bits(shelf.get_many([*rows, *later])) == bits(rows | later)
    shelf.add("pending", torch.ones(6))
    assert bits(shelf.get_many(["pending", *later]))["pending"] == torch.ones(6).numpy().tobytes()


def test_a_batch_outlives_segments_that_vanish_or_are_cut(tmp_path, monkeypatch):
    monkeypatch.setattr(disk, "SCAN_SECONDS", 0.0)
    parts = [wanted_rows(60, start) for start in (0, 100, 200)]
    for rows in parts:
        keep(opened(tmp_path), rows)
    shelf, together = opened(tmp_path), parts[0] | parts[1] | parts[2]
    assert bits(shelf.get_many(together)) == bits(together)
    holds = {  # of each part
        next(which for which, rows in enumerate(parts) if segment_file.hash_key(next(iter(rows))) in digests): path
        for path in tmp_path.rglob("*.rows")
        for digests in [{digest for digest, _ in segment_file.Segment(path).iter_entries()}]
    }
    with holds[1].open("r+b") as file:
        file.truncate(holds[1].stat().st_size - 10 * 6 * 4)  # its last ten features
    with pytest.warns(UserWarning, match=r"broken \(truncated\)") as told:
        found = shelf.get_many(together)
    assert len(told) == 1
    assert bits(found).items() <= bits(together).items()
    assert len(found) == 170
    holds[0].unlink()
    for one in (shelf, opened(tmp_path)):
        one.get("never kept")  # looks into the folder
        found = one.get_many(together)
        assert bits(found).items() <= bits(together).items()
        assert len(found) == 110
    keep(shelf, together)  # computed again
    assert bits(opened(tmp_path).get_many(together)) == bits(together)


def test_digests_that_begin_alike_are_told_apart(tmp_path, monkeypatch):
    real = segment_file.hash_key
    alike = lambda key: real("all")[:8] + real(key)[8:] if key.startswith("k") else real(key)  # noqa: E731
    monkeypatch.setattr(disk, "hash_key", alike)
    rows, later = wanted_rows(30), wanted_rows(30, start=500)
    keep(opened(tmp_path), rows)
    keep(opened(tmp_path), later)
    shelf = opened(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert bits(shelf.get_many([*rows, *later, "k never kept", "never kept"])) == bits(rows | later)


# several processes


def writer(folder, who, many, width, each):
    def write():
        shelf, row = opened(folder), torch.arange(width, dtype=torch.float32)
        for i in range(many):
            shelf.add(f"{who} {i}", row + i)
            if i % each == each - 1:
                shelf.flush()

    return in_process(write)


def opened(folder):
    return disk.CacheNamespace(disk.DiskCache(folder), {"tower": "t"}, lambda: torch.ones(8), torch.device("cpu"))


@pytest.mark.slow
@pytest.mark.parametrize("after", [0.0, 0.01, 0.03, 0.1, 0.25, 0.5])
def test_a_process_killed_while_it_writes_leaves_a_store_that_works(tmp_path, after):
    width = 50_000
    process = writer(tmp_path, "a", 10**6, width, 40).process
    while not [path for path in tmp_path.rglob("*") if path.suffix in (".part", ".rows")]:  # it has begun
        assert process.is_alive()
    time.sleep(after)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    shelf, row, there = opened(tmp_path), torch.arange(width, dtype=torch.float32), 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for i in range(400):
            found = shelf.get(f"a {i}")
            there += found is not None
            assert found is None or torch.equal(found, row + i)
        shelf.add("b", row)
        shelf.flush()
        assert torch.equal(opened(tmp_path).get("b"), row)
    assert there % 40 == 0
    assert not list(tmp_path.rglob(".*.part"))


def test_what_a_killed_process_left_half_is_cleaned_up(tmp_path):
    shelf = opened(tmp_path)
    shelf.add("a", torch.zeros(4))
    shelf.flush()
    dead = subprocess.Popen(["true"])
    dead.wait()
    home = shelf.folder
    mine, theirs = (
        home / f".{segment_file.NODE}-{dead.pid}-x.part",
        home / f".{segment_file.NODE}-{os.getppid()}-x.part",
    )
    far, old = home / ".elsewhere-1-x.part", home / ".elsewhere-2-x.part"
    for path in (mine, theirs, far, old):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    shelf.add("b", torch.zeros(4))
    shelf.flush()
    assert [path.exists() for path in (mine, theirs, far, old)] == [False, True, True, False]


def test_two_processes_read_and_write_at_once(tmp_path):
    many = 1500
    both = [writer(tmp_path, who, many, 64, 20) for who in "ab"]
    shelf, row, seen = opened(tmp_path), torch.arange(64, dtype=torch.float32), 0
    while any(one.process.is_alive() for one in both):
        for who in "ab":
            i = int(torch.randint(many, ()))
            found = shelf.get(f"{who} {i}")
            assert found is None or torch.equal(found, row + i)
            seen += found is not None
        time.sleep(0.001)
    assert [one.wait() for one in both] == [0, 0]
    time.sleep(1)  # how often it is looked what others have written
    assert torch.equal(shelf.get(f"b {many - 1}"), row + many - 1)
    shelf = opened(tmp_path)
    for who in "ab":
        for i in range(many):
            assert torch.equal(shelf.get(f"{who} {i}"), row + i), (who, i)
    assert len(list(tmp_path.rglob("*.rows"))) <= 2 * disk.MAX_SMALL_SEGMENTS + 2  # they were made fewer


def test_two_runs_at_once(files, tmp_path):
    data = str(class_folders(files, tmp_path / "data"))

    def run(name):
        task = vlprompt.tasks.FewShot(data, shots=4)
        vlprompt.run(MADE["coop"](load(tmp_path / "kept")), task, TRAIN, tmp_path / name)

    assert [one.wait() for one in [in_process(lambda name=name: run(name)) for name in "ab"]] == [0, 0]
    run("c")
    told = [(tmp_path / name / "steps.jsonl").read_bytes() for name in "abc"]
    assert told[0] == told[1] == told[2]
    assert json.loads((tmp_path / "c/result.json").read_text())["cost"]["feature_cache_misses"] == 0


# how much


def test_many_small_segments_become_one(tmp_path):
    shelf = opened(tmp_path)
    for i in range(3 * disk.MAX_SMALL_SEGMENTS):
        shelf.add(str(i), torch.full((4,), float(i)))
        shelf.flush()
        shelf.add("wide", torch.full((2, 3), float(i)))
        shelf.flush()
    assert len(list(tmp_path.rglob("*.rows"))) <= 2 * (disk.MAX_SMALL_SEGMENTS + 1)
    again = opened(tmp_path)
    for i in range(3 * disk.MAX_SMALL_SEGMENTS):
        assert torch.equal(shelf.get(str(i)), torch.full((4,), float(i)))
        assert torch.equal(again.get(str(i)), torch.full((4,), float(i)))
    assert again.get("wide").shape == (2, 3)


def test_merging_leaves_out_what_is_broken(tmp_path):
    shelf = opened(tmp_path)
    for i in range(disk.MAX_SMALL_SEGMENTS):
        shelf.add(str(i), torch.full((4,), float(i)))
        shelf.flush()
    broken = sorted(tmp_path.rglob("*.rows"))[3]
    data = bytearray(broken.read_bytes())
    data[-1] ^= 1
    broken.write_bytes(data)
    shelf.add("more", torch.zeros(4))
    with pytest.warns(UserWarning, match=broken.name):
        shelf.flush()
    [path] = tmp_path.rglob("*.rows")
    assert segment_file.Segment(path).n_rows == disk.MAX_SMALL_SEGMENTS


def test_a_store_is_never_larger_than_its_bound_and_what_was_not_used_goes_first(tmp_path):
    row = torch.zeros(1000)

    def fill(name, most, rows=10):
        kept = disk.DiskCache(tmp_path, most)
        shelf = disk.CacheNamespace(kept, {"tower": name}, lambda: torch.ones(8), torch.device("cpu"))
        for i in range(rows):
            shelf.add(str(i), row)
        shelf.flush()
        return shelf

    for name in "abc":
        fill(name, 10**6)
    size = lambda: sum(path.stat().st_size for path in tmp_path.rglob("*.rows"))  # noqa: E731
    assert size() > 120_000
    for age, one in enumerate(feature_cache.list_namespaces(tmp_path)):
        for path in one.path.glob("*.rows"):
            os.utime(path, (time.time() - 7200 - age,) * 2)
    disk.CacheNamespace(disk.DiskCache(tmp_path), {"tower": "a"}, lambda: torch.ones(8), torch.device("cpu")).get(
        "1"
    )  # used
    fill("d", 100_000)
    assert size() <= 100_000
    assert {one.name for one in feature_cache.list_namespaces(tmp_path) if one.n_rows} == {"a", "d"}
    with pytest.warns(
        UserWarning, match="VLPROMPT_FEATURE_CACHE_GB"
    ):  # all was just used: nothing goes, nothing new comes
        fill("e", 100_000)
    assert {one.name for one in feature_cache.list_namespaces(tmp_path) if one.n_rows} == {"a", "d"}


def test_the_bound_is_a_setting(files, tmp_path, monkeypatch):
    monkeypatch.setenv("VLPROMPT_FEATURE_CACHE_GB", "0.000001")
    tower = load(tmp_path).image
    wanted = tower(images(files))
    with pytest.warns(UserWarning, match="1e-06 GB"):
        tower.feature_cache.flush()
    assert torch.equal(tower(images(files)), wanted)
    monkeypatch.setenv("VLPROMPT_FEATURE_CACHE_GB", "ten")
    with pytest.raises(ValueError, match=r"VLPROMPT_FEATURE_CACHE_GB: expected a number of GB, got 'ten'. Set it"):
        load(tmp_path)


def test_a_folder_that_can_not_be_written_costs_one_warning(files, tmp_path):
    (tmp_path / "file").write_text("in the way")
    tower = load(tmp_path / "file").image
    wanted = tower(images(files[:20]))
    with pytest.warns(UserWarning, match="--feature-cache") as told:  # noqa: PT031
        tower.feature_cache.flush()
        tower(images(files))
        tower.feature_cache.flush()
    assert len(told) == 1
    assert torch.equal(wanted, fresh().image(images(files[:20])))


def test_a_full_disk_costs_one_warning(files, tmp_path):
    made(tmp_path, files[:10])
    tower, (soft, hard) = load(tmp_path).image, resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, hard))  # bytes of a file
    try:
        with pytest.warns(UserWarning, match="Make room") as told:  # noqa: PT031
            found = tower(images(files))
            tower.feature_cache.flush()
            tower.with_preprocessing(BOTH[1])(images(files))
            tower.feature_cache.flush()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len(told) == 1
    assert torch.equal(found, fresh().image(images(files)))
    assert not list(tmp_path.rglob(".*.part"))
    assert rows_in(tmp_path) == 10


def test_what_is_new_is_written_now_and_then_without_being_asked(tmp_path, monkeypatch):
    shelf = opened(tmp_path)
    shelf.add("a", torch.zeros(disk.FLUSH_BYTES // 8))
    assert not list(tmp_path.rglob("*.rows"))
    shelf.add("b", torch.zeros(disk.FLUSH_BYTES // 8))  # as many bytes as are written at once
    assert len(list(tmp_path.rglob("*.rows"))) == 1
    shelf.add("c", torch.zeros(4))
    monkeypatch.setattr(disk, "FLUSH_SECONDS", 0.05)
    time.sleep(0.06)
    shelf.add("d", torch.zeros(4))
    assert len(list(tmp_path.rglob("*.rows"))) == 2


# texts and rows


def test_fixed_texts_are_kept_as_whole_lists(tmp_path, monkeypatch):
    texts = [f"a photo of a {name}." for name in ("cat", "dog", "lighthouse keeper")]
    first = load(tmp_path)
    with torch.no_grad():
        wanted = first.text(texts)
    first.image.feature_cache.disk_namespace.disk_cache.flush()
    again = load(tmp_path)
    with torch.no_grad():
        again.text(texts[:1])  # the shelf is open now
        monkeypatch.setattr(type(again.text), "_encode_packed", lambda *given: pytest.fail("it was computed"))
        assert torch.equal(again.text(texts), wanted)
        for other in (texts[::-1], texts[:2], [*texts[:2], "x"]):
            with pytest.raises(pytest.fail.Exception, match="it was computed"):
                again.text(other)
    with pytest.raises(pytest.fail.Exception, match="it was computed"):
        again.text(texts)  # with gradients


def test_other_weights_have_other_texts(tmp_path):
    for seed in (0, 1, 0, 1):
        clip = load(tmp_path, seed=seed)
        with torch.no_grad():
            assert torch.equal(clip.text(["a dog", "a cat"]), fresh(seed=seed).text(["a dog", "a cat"]))
        clip.image.feature_cache.flush()


def test_rows_below_a_cut_are_kept_too(files, tmp_path):
    results = []
    for _ in range(2):
        clip = load(tmp_path)
        below, upper = clip.image.split_at(1)
        rows = below(images(files))
        results.append((rows, upper(rows)))
        clip.image.feature_cache.flush()
        assert clip.image.feature_cache.counts.misses == len(files) * (not len(results) > 1)
    assert torch.equal(results[0][0], results[1][0])
    assert results[0][0].shape[1:] == (17, 64)
    assert torch.equal(load(tmp_path).image.split_at(2)[0](images(files)), fresh().image.split_at(2)[0](images(files)))


# runs

TRAIN = vlprompt.TrainConfig(epochs=3, batch_size=8, augmentations=2)
MADE = {
    "coop": lambda clip: CoOp(clip, n_ctx=2),
    "partial": lambda clip: Partial(clip.image, LinearHead()),
}


@pytest.mark.parametrize("method", MADE)
def test_a_run_with_a_warm_store_is_that_with_a_cold_one_and_opens_no_picture(files, tmp_path, monkeypatch, method):
    data = class_folders(files, tmp_path / "data")
    results = []

    def refuse(path):
        raise ValueError(f"{path} was opened")

    for name in ("cold", "warm"):
        task = vlprompt.tasks.FewShot(str(data), shots=4)
        results.append(vlprompt.run(MADE[method](load(tmp_path / "kept")), task, TRAIN, tmp_path / name))
        monkeypatch.setattr(decoding, "open_image", refuse)
        max_bytes = IMAGE_CACHE.max_bytes
        IMAGE_CACHE.set_max_bytes(0)  # drops what was decoded
        IMAGE_CACHE.set_max_bytes(max_bytes)
    cold, warm = results
    assert cold.cost["feature_cache_misses"] > 0
    assert warm.cost["feature_cache_misses"] == 0
    assert sum(warm.cost[f"feature_cache_{k}"] for k in ("misses", "hits")) == sum(
        cold.cost[f"feature_cache_{k}"] for k in ("misses", "hits")
    )
    assert (warm.scores, warm.class_accuracy, warm.protocol) == (cold.scores, cold.class_accuracy, cold.protocol)
    for name in ("steps.jsonl", "prompt.safetensors"):
        assert (tmp_path / "cold" / name).read_bytes() == (tmp_path / "warm" / name).read_bytes()
    with pytest.raises(ValueError, match=r"\.png was opened"):
        vlprompt.run(MADE[method](fresh()), vlprompt.tasks.FewShot(str(data), shots=4), TRAIN)


def test_without_a_folder_nothing_is_written(files, tmp_path, monkeypatch):
    monkeypatch.setenv("VLPROMPT_FEATURE_CACHE", str(tmp_path / "kept"))
    clip = vlprompt.load("glyph/random", "cpu")
    clip.image(images(files))
    clip.image.feature_cache.flush()
    assert not (tmp_path / "kept").exists()


# the command line

RUN = ("run", "coop", "digits", "--backbone", "glyph/random", "--shots", "1", "train.epochs=2", "method.n_ctx=2")


def test_the_command_line_keeps_features_lists_and_removes_them(type_in, tmp_path, monkeypatch):
    monkeypatch.setenv("VLPROMPT_FEATURE_CACHE", str(tmp_path / "usual"))
    assert type_in(*RUN, "--feature-cache", "none", "--out", "a")[0] == 0
    assert not (tmp_path / "usual").exists()
    assert type_in(*RUN, "--feature-cache", tmp_path / "mine", "--out", "b")[0] == 0
    assert type_in(*RUN, "--feature-cache", tmp_path / "mine", "--out", "c")[0] == 0
    told = [json.loads(next((tmp_path / out).glob("*/result.json")).read_text()) for out in "abc"]
    assert told[0]["scores"] == told[1]["scores"] == told[2]["scores"]
    assert [one["cost"]["feature_cache_misses"] > 0 for one in told] == [True, True, False]
    status, said = type_in("data", "features", tmp_path / "mine")
    assert status == 0
    rows = told[1]["cost"]["feature_cache_misses"]
    assert "glyph/random#" in said
    assert f"{rows} features" in said
    [run] = (tmp_path / "c").iterdir()
    assert type_in("eval", run, "--feature-cache", tmp_path / "mine")[0] == 0
    assert rows_in(tmp_path / "mine") == rows
    assert "0 features" in type_in("data", "features", tmp_path / "mine", "--clear", "--tower", "another")[1]
    assert "removed" in type_in("data", "features", tmp_path / "mine", "--clear")[1]
    assert not rows_in(tmp_path / "mine")
    assert type_in("data", "features")[1].startswith("0 features")
    status, said = type_in("data", "features", "--clear", tmp_path / "never")
    assert (status, "0 features" in said) == (0, True)


def test_removing_leaves_what_is_not_ours(tmp_path, type_in):
    shelf = opened(tmp_path)
    shelf.add("a", torch.zeros(4))
    shelf.flush()
    (tmp_path / "letters.txt").write_text("dear")
    (shelf.folder / "note.txt").write_text("mine")
    assert "removed 1 features" in type_in("data", "features", tmp_path, "--clear")[1]
    assert sorted(path.name for path in tmp_path.rglob("*.*t*")) == ["letters.txt", "note.txt"]


def test_a_search_side_by_side_takes_features_from_the_disk(type_in, files, tmp_path, monkeypatch):
    monkeypatch.setenv("VLPROMPT_FEATURE_CACHE", str(tmp_path / "kept"))
    monkeypatch.setattr(disk, "FLUSH_SECONDS", 0.0)  # written in the middle of a step
    data = class_folders(files, tmp_path / "data")
    search = ("search", "linear", data, "--backbone", "glyph-vit/random", "search.train.lr=[0.1,0.01]")
    search += ("train.epochs=1",)
    for out in "ab":
        status, said = type_in(*search, "--out", out)
        assert status == 0, said
    assert rows_in(tmp_path / "kept")


def test_how_many_views_exist_is_told_and_marked(type_in, files, tmp_path):
    data = class_folders(files, tmp_path / "data")
    run = ("run", "coop", data, "--backbone", "glyph/random", "--shots", "2", "method.n_ctx=2", "train.epochs=3")
    for more in ((), ("--augmentations", "1")):
        status, said = type_in(*run, *more)
        assert status == 0, said
    told = [json.loads(path.read_text()) for path in (tmp_path / "runs").glob("*/result.json")]
    assert {str(one["protocol"]["augmentations"]) for one in told} == {"one per epoch", "1"}
    assert {one["config"]["train"]["augmentations"] for one in told} == {None, 1}
    said = type_in("table", "runs")[1]
    assert "augmentations one per epoch (others 1)" in said or "augmentations 1 (others one per epoch)" in said
    assert type_in(*run, "--augmentations", "0")[0] == 2
