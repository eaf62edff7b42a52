"""Captions with labels: files of a user, and what is written from the labels of images."""

import json

import pytest
from captions_of_animals import NAMES, split_of, write

from vlprompt.data.text.captions import join_words, read_captions, write_captions


def test_names_in_captions(tmp_path):
    """Long names first; a plural counts, a part of a word and another class inside of a name do not."""
    path = write(
        tmp_path / "captions.txt",
        "A hot dog on a plate",
        "Two DOGS, many glasses",
        "",
        "a hot dog beside a dog",
        "a hotdog in a category",
        "cats!",
    )
    file = read_captions(path, NAMES)
    assert [row for _, row in file.rows] == [(0, 1, 0, 0), (1, 0, 1, 0), (1, 1, 0, 0), (0, 0, 0, 1)]
    assert [text for text, _ in file.rows][:2] == ["A hot dog on a plate", "Two DOGS, many glasses"]
    assert file.n_dropped == 1


def test_labels_in_a_file(tmp_path):
    rows = [{"caption": "a pet", "labels": ["Dog", "hot dog"]}, {"caption": "a cat"}, {"caption": "?", "labels": []}]
    file = read_captions(write(tmp_path / "c.jsonl", *map(json.dumps, rows)), NAMES)
    assert file.rows == [("a pet", (1, 1, 0, 0)), ("a cat", (0, 0, 0, 1))]
    assert file.n_dropped == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            '{"caption": "a", "labels": ["spoon"]}',
            "line 1: labels: expected classes of the lesson, got 'spoon'. Correct",
        ),
        ('{"text": "a"}', 'line 1: expected {"caption": text}, perhaps with "labels": .class names., got'),
        ("no json", 'line 1: expected {"caption": text}, perhaps with "labels"'),
        ('{"caption": "a", "labels": [3]}', 'line 1: expected {"caption": text}, perhaps with "labels"'),
        ('{"caption": "a bird"}', "expected captions that name a class, such as 'dog', got 1 that name none. Write"),
    ],
)
def test_bad_files(tmp_path, line, message):
    with pytest.raises(ValueError, match=message):
        read_captions(write(tmp_path / "c.jsonl", line), NAMES)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match=r"^method\.captions: expected a file of captions, got .* does not exist"):
        read_captions(tmp_path / "none.txt", NAMES)


def test_captions_are_written_from_labels():
    train = split_of([(1, 1, -1, 0), (0, 0, 0, 0), (-1, 0, 0, 1)])
    rows = write_captions(train, "a photo of {names}.", "a {name}")
    assert rows[0][0] in ("a photo of a dog and a hot dog.", "a photo of a hot dog and a dog.")
    assert rows[0][1] == (1, 1, -1, 0)  # what is unknown stays unknown
    assert rows[1:] == [("a photo of a cat.", (-1, 0, 0, 1))]
    assert rows == write_captions(train, "a photo of {names}.", "a {name}")
    assert write_captions(split_of([2]), "{names}", "{name}") == [("glass", (0, 0, 1, 0))]
    assert [join_words(words) for words in (["a"], ["a", "b"], ["a", "b", "c"])] == ["a", "a and b", "a, b and c"]
    with pytest.raises(ValueError, match=r"^method\.caption_template: expected a place \{names\}, got 'a photo'"):
        write_captions(train, "a photo", "a {name}")
