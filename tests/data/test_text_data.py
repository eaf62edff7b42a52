"""Texts as data: what comes with Python, cards, a user's own files, and every way these can be wrong."""

import csv
import json
from collections import Counter
from itertools import chain

import pytest
import yaml
from miniatures import read_yaml

from vlprompt.core.class_names import class_ids
from vlprompt.core.texts import TextBatch
from vlprompt.data.builtin.docstrings import (
    MODULE_MASK,
    MODULES,
    assign_split,
    iter_docstrings,
    load_sources,
    mask_module_name,
)
from vlprompt.data.cards import list_cards, load_card
from vlprompt.data.loading import open_data
from vlprompt.runtime.installation import find_version
from vlprompt.tasks import Text

TEXTS = [name for name in list_cards() if load_card(name).kind == "text"]
OFFLINE = [name for name in TEXTS if load_card(name).loader]
SIZES = {  # train and validation of each set, as its benchmark has them
    "sst2": (67349, 872),
    "rte": (2490, 277),
    "mrpc": (3668, 408),
    "qnli": (104743, 5463),
    "cola": (8551, 1043),
    "mnli": (392702, 9815),
    "boolq": (9427, 3270),
    "cb": (250, 56),
    "copa": (400, 100),
    "wic": (5428, 638),
    "wsc": (554, 104),
    "ag_news": (120000, 7600),
}
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "Bye"},
    {"role": "assistant", "content": "Ciao."},
]


def reviews(n=20):
    return [{"text": f"film {i} was {'good' if i % 2 else 'bad'}", "label": ("bad", "good")[i % 2]} for i in range(n)]


@pytest.fixture
def write(tmp_path):
    """Writes rows as a table; gives its path."""

    def written(rows, name="mine.jsonl"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".jsonl":
            path.write_text("".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows), "utf-8")
        else:
            with path.open("w", newline="", encoding="utf-8") as file:
                table = csv.DictWriter(file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
                table.writeheader()
                table.writerows(rows)
        return path

    return written


def every(data):
    return list(chain(*(split.items for split in (data.train, data.val, data.test))))


@pytest.mark.slow
def test_docstrings_tell_modules_without_their_names():
    data = open_data("docstrings")
    assert tuple(data.train.names) == MODULES
    assert min(data.train.count_per_class()) >= 50
    assert min(data.test.count_per_class()) >= 10
    assert 0.15 < len(data.test) / len(every(data)) < 0.25
    keys = [item.key for item in every(data)]
    assert len(keys) == len(set(keys))
    for split in (data.train, data.test):
        for item, label in zip(split.items, split.labels, strict=True):
            text = item.fields["text"]
            assert 20 <= len(text) <= 400
            assert MODULES[label] not in text.lower()
    assert any(MODULE_MASK in item.fields["text"] for item in data.test.items)
    shared = Counter(
        text
        for _, text in {
            (one.module, mask_module_name(told, one.module))
            for one in load_sources()
            for _, told in iter_docstrings(one.tree)
        }
    )
    assert max(shared[item.fields["text"]] for item in every(data)) == 1 < max(shared.values())
    assert data.hash() == open_data("docstrings").hash()
    assert [assign_split(text) for text in ("Close.", "Open.", "Halt", "Finish")] == ["val", "train", "test", "test"]
    assert data.train.names[0].words == ("async",)


@pytest.mark.slow
def test_the_other_offline_sets_have_their_answers():
    code = open_data("doc_or_code")
    assert max(code.train.count_per_class()) < 1.1 * min(code.train.count_per_class())
    heads = open_data("signatures")
    assert all(item.fields["signature"].startswith(("def ", "async def ")) for item in heads.test.items)
    assert all(item.response and "\n" not in item.response for item in heads.test.items)
    assert TextBatch(heads.test.items[:1], is_plain=False).template_pieces(0)[-2].text == "signature"
    tokens = open_data("python_tokens")
    assert set(chain(*(item.tags for item in tokens.test.items))) == set(range(5))
    keyword = tokens.test.names.index("keyword")
    found = {
        w
        for item in tokens.test.items
        for w, tag in zip(item.fields["words"].split(" "), item.tags, strict=True)
        if tag == keyword
    }
    assert (
        "return"
        in found
        <= {
            "return",
            "not",
            "in",
            "is",
            "None",
            "True",
            "False",
            "and",
            "or",
            "if",
            "else",
            "for",
            "from",
            "import",
            "raise",
            "def",
            "class",
            "del",
            "global",
            "nonlocal",
            "assert",
            "await",
            "yield",
            "lambda",
            "pass",
            "with",
            "as",
            "while",
            "elif",
            "except",
            "try",
            "async",
            "break",
            "continue",
            "finally",
        }
    )
    for data in (code, heads, tokens):
        assert not {item.key for item in data.train.items} & {item.key for item in data.test.items}


@pytest.mark.parametrize("name", sorted(set(TEXTS) - set(OFFLINE)))
def test_a_card_reads_a_table_with_the_columns_that_it_names(write, root, name):
    card = load_card(name)
    asked = {"class": "label", "response": "response"}[card.text.answer]
    columns = card.text.fields.values()
    with pytest.raises(
        FileNotFoundError, match=f"{name}: expected its files, got none. Put .*with the columns .*--download"
    ):
        open_data(name)
    keys = list(card.listed_classes())
    for theirs in card.hub.splits.values():
        rows = [{column: f"{column} {theirs} {i}" for column in columns} for i in range(20 * len(keys))]
        for i, row in enumerate(rows):
            row[card.text.column] = int(keys[i % len(keys)]) if asked == "label" else f"answer {i}"
        write(rows, f"root/{card.folder}/{theirs}.jsonl")
    data = open_data(name)
    assert class_ids(data.train.names) == tuple(keys)
    assert set(data.test.items[0].fields) == set(card.text.fields)
    assert TextBatch(data.test.items[:1], is_plain=False).template_pieces(0)
    assert data.test.info.get("metric") == card.metric
    assert tuple(card.sizes.values()) == SIZES.get(name, ())
    assert all(name.words for name in data.train.names) == (asked == "label")


def test_alpaca_rows_without_an_input_have_a_template_of_their_own(write):
    rows = [{"instruction": f"say {i}", "input": "" if i % 2 else "this", "output": f"{i}"} for i in range(10)]
    data = open_data(str(write(rows)))
    for item in every(data):
        assert ("### Input" in item.template) == bool(item.fields["input"])
        assert item.plain_template == item.template


@pytest.mark.parametrize("form", ["jsonl", "csv", "tsv"])
def test_a_table_of_texts_is_cut_class_by_class(write, form):
    data = open_data(str(write(reviews(), f"mine.{form}")))
    assert [split.count_per_class() for split in (data.train, data.val, data.test)] == [[7, 7], [1, 1], [2, 2]]
    assert tuple(data.train.names) == ("bad", "good")
    assert "70:10:20" in data.note
    one = data.train.items[0]
    assert one.name.startswith("mine/")
    assert (one.template, one.plain_template) == ("{text} It is {mask}.", "{text}")
    again = open_data(str(write(reviews(), f"mine.{form}")), template="So {mask}: {text}")
    assert {item.template for item in every(again)} == {again.train.names[0].template} == {"So {mask}: {text}"}
    assert [item.key for item in again.train.items] == [item.key for item in data.train.items]


def test_an_end_of_line_in_a_text_is_no_end_of_a_row(write):
    rows = [{**row, "text": f"{row['text']}\u2028so\x85it\nis"} for row in reviews()]
    for name in ("mine.jsonl", "mine.csv"):
        assert {item.fields["text"] for item in every(open_data(str(write(rows, name))))} == {r["text"] for r in rows}


def test_the_hash_tells_another_text_at_the_same_place(write):
    before, rows = open_data(str(write(reviews()))).hash(), reviews()
    rows[3]["text"] += "!"
    assert open_data(str(write(rows))).hash() != before


def test_a_folder_of_parts_and_a_column_split(write, tmp_path):
    write(reviews(20), "set/train.csv")
    write(reviews(6), "set/dev.tsv")
    write([{"text": "never seen", "label": "good"}, *reviews(4)], "set/test.jsonl")
    data = open_data(str(tmp_path / "set"))
    assert [len(split) for split in (data.train, data.val, data.test)] == [20, 6, 5]
    assert "4 of 5 test texts are in train or val too" in data.note
    rows = [{**row, "split": "test" if i > 15 else "train"} for i, row in enumerate(reviews())]
    data = open_data(str(write(rows)))
    assert [len(split) for split in (data.train, data.val, data.test)] == [14, 2, 4]
    assert "a tenth of train is val" in data.note


def test_conversations_and_tags_of_ones_own(write):
    data = open_data(str(write([{"messages": CHAT[i % 2 :]} for i in range(10)])))
    item = data.train.items[0]
    assert item.response == "Ciao."
    assert [one["role"] for one in json.loads(item.fields["messages"])][-2:] == ["assistant", "user"]
    assert (item.template, tuple(data.train.names), set(data.train.labels)) == ("{messages}", ("response",), {0})
    rows = [{"words": ["Ada", "lives", "in", "Rome"], "tags": ["PER", "O", "O", "LOC"]} for _ in range(10)]
    for path in (write(rows), write([{k: " ".join(v) for k, v in row.items()} for row in rows], "mine.csv")):
        data = open_data(str(path))
        assert tuple(data.train.names) == ("LOC", "O", "PER")
        assert data.train.items[0].tags == (2, 1, 1, 0)
        assert data.train.items[0].fields["words"] == "Ada lives in Rome"


def test_a_card_of_ones_own(write, tmp_path):
    write([{"Review": r["text"], "stars": 5 if r["label"] == "good" else 1, "id": i} for i, r in enumerate(reviews())])
    told = {
        "title": "Mine",
        "source": "me",
        "licence": "mine",
        "file": "mine.jsonl",
        "text": {"fields": {"review": "Review"}, "answer": "class", "label": "stars"},
        "classes": {5: "good", 1: "bad"},
        "words": {5: ["great"], 1: ["awful", "bad"]},
        "template": "{review} It was {mask}.",
    }
    path = tmp_path / "mine.yaml"

    def opened(**changes):
        path.write_text(
            yaml.safe_dump({k: v for k, v in {**told, **changes}.items() if v is not None}, sort_keys=False)
        )
        return open_data(str(path))

    data = opened()
    assert [(str(n), n.id, n.words) for n in data.train.names] == [
        ("good", "5", ("great",)),
        ("bad", "1", ("awful", "bad")),
    ]
    for changes, wrong in (
        ({"template": "{review}"}, "template: expected {mask} where the word for the class stands, got '{review}'"),
        (
            {"template": "{text} {mask}"},
            "expected a field of the dataset, got {text} in '{text} {mask}'; the choices are review",
        ),
        ({"plain": "{review} {mask}"}, "plain_template: expected a template without {mask}, got '{review} {mask}'"),
        ({"words": {5: [True]}}, "words: expected words in quotes, got True"),
        ({"words": {4: ["so"]}}, "words: expected class ids, got '4'"),
        ({"words": {5: "great"}}, "words: expected {class: a list of words}, the best first, got {5: 'great'"),
        ({"classes": None}, "classes: expected classes for the answers class and tags only, got no classes"),
        ({"folder": "x"}, "expected one of the keys loader, folder and file, got folder and file"),
        (
            {"text": {"fields": {"review": "Review"}, "answer": "class"}},
            "the key 'text.label' is missing. Add it: text is {fields:",
        ),
        (
            {"text": {"fields": {"mask": "Review"}, "answer": "class", "label": "stars"}},
            "fields: expected names other than mask, sep, ctx and numbers, which templates use, got 'mask'. Rename it",
        ),
        ({"classes": {5: "good", 2: "bad"}, "words": None}, "row 1: label: expected one of the classes, got '1'"),
        (
            {"text": {"fields": {"review": "Text"}, "answer": "class", "label": "stars"}},
            "expected a column 'Text', got ",
        ),
        ({"colour": "red"}, "unknown key 'colour'"),
    ):
        with pytest.raises(ValueError) as error:
            opened(**changes)
        assert wrong in str(error.value)
    with pytest.raises(
        FileNotFoundError, match=r"mine: expected its files, got none. Put .*gone.jsonl \(or .csv, .tsv\)"
    ):
        opened(file="gone.jsonl")


def changed(**columns):
    """Reviews whose third row has other columns."""
    return [{**row, **columns} if i == 2 else row for i, row in enumerate(reviews())]


def chat(*roles, **more):
    return [{"messages": [{"role": role, "content": "x", **more} for role in roles]}] * 10


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        (changed(text=" "), "row 3: text: expected a text, got only blanks. Write a text, or leave"),
        (changed(text=["a"]), 'row 3: text: expected a text, got ["a"]. Write a text'),
        (changed(text=None), "row 3: text: expected a text, got null. Write a text"),
        (changed(label=None), "row 3: label: expected a class for every text, got none. Fill it in"),
        ([*reviews()[:2], {"label": "good"}], "row 3: expected a column 'text', got label. Add it"),
        ([*reviews()[:2], {"text": "so"}], "row 3: expected a column 'label', got text. Add it"),
        ([{"text": "a"}], "expected the columns path and label or class"),
        ([{"text": "a", "label": "b"}] * 5, "expected at least 2 classes, got only 'b'"),
        (
            [*reviews(), {"text": "a", "label": "odd"}],
            "expected texts of every class, got none of 'odd' for test. Add some",
        ),
        (
            [{"paht": f"{i}.jpg", "label": i % 2} for i in range(9)],
            "row 1: expected texts, got names of images in 'paht'. Name the column path",
        ),
        (
            [{**row, "split": "later"} for row in reviews()],
            "row 1: split: expected train, val (valid, validation, dev) or test, got 'later'",
        ),
        ([{**row, "split": "train"} for row in reviews()], "split: expected both train and test, got train. Add"),
        ([{"sep": "a", "label": "b"}], "got 'sep'. Rename it"),
        (
            [{"words": ["a", "b"], "tags": ["x", "y", "x"]}],
            "row 1: expected one tag for each word, got 2 words and 3 tags. Give as many",
        ),
        (
            [{"words": ["a b"], "tags": ["x"]}, {"words": ["a"], "tags": ["y"]}],
            'row 1: expected words without spaces, got "a b". Write words',
        ),
        (
            [{"words": [], "tags": []}, {"words": ["a", "a"], "tags": ["x", "y"]}],
            "row 1: words: expected a text, got only blanks. Write a text",
        ),
        ([{"words": 3, "tags": ["x", "y"]}], "row 1: words: expected a list, got 3. Write a list"),
        ([{"prompt": "say", "response": ""}] * 9, "row 1: response: expected a text, got a blank one. Write a text"),
        (
            chat("user", "user", "assistant"),
            "row 1: expected the roles user and assistant in turn, perhaps after a system, with an assistant at the "
            "end, got user, user, assistant. Correct",
        ),
        (chat("user"), "an assistant at the end, got user. Correct"),
        (chat("assistant", "user"), "an assistant at the end, got assistant, user. Correct"),
        (chat("user", "system", "assistant"), "an assistant at the end, got user, system, assistant. Correct"),
        (chat("system"), "an assistant at the end, got system. Correct"),
        (chat("user", "assistant", name="x"), 'row 1: expected messages {"role": ..., "content": a text}, got {"role"'),
        ([{"messages": "hi"}], "row 1: expected messages"),
        ([{"messages": "[hi"}], "row 1: messages: expected a JSON list, got another format"),
    ],
)
def test_a_wrong_row(write, rows, told):
    with pytest.raises(ValueError) as error:
        open_data(str(write(rows)))
    assert told in str(error.value)
    assert "mine.jsonl" in str(error.value)


def test_a_file_that_is_no_table(write, tmp_path):
    path = write(reviews())
    path.write_text(path.read_text() + "{oh\n")
    for told, raw in (
        ("row 21: expected JSON, got another format", None),
        ("row 2: expected UTF-8, got another encoding", b'text,label\n"\xe4",x\n'),
        ("got no rows. Add some", b""),
        ("row 2: expected as many values as columns", b"text,label\na,b,c\n"),
    ):
        if raw is not None:
            path = tmp_path / "mine.csv"
            path.write_bytes(raw)
        with pytest.raises(ValueError, match=told):
            open_data(str(path))
    write(reviews(), "set/train.jsonl")
    with pytest.raises(ValueError, match=r"expected both train and test, got train\.jsonl. Add the other"):
        open_data(str(tmp_path / "set"))
    write(reviews(), "set/train.csv")
    with pytest.raises(ValueError, match=r"expected one table for train, got train\.csv and train\.jsonl. Remove one"):
        open_data(str(tmp_path / "set"))


def test_wrong_rows_are_left_out_when_asked(write):
    rows = [*changed(text=" "), {"text": "so", "label": None}, {"text": "so"}]
    data = open_data(str(write(rows)), skip_broken=True)
    assert len(every(data)) == 19
    assert "3 rows left out" in data.note


def test_texts_are_not_augmented_and_their_template_fits(write):
    path = str(write(reviews()))
    with pytest.raises(ValueError, match=r"augment: expected none for texts, got 'crop-flip' for .*Leave out"):
        open_data(path, augment="crop-flip")
    with pytest.raises(ValueError, match=r"got \{name\} in .*; the choices are text"):
        open_data(path, template="a photo of {name}.")
    assert open_data("docstrings", template="{mask}: {text}").train.names[0].words == ("async",)
    for given, told in (
        ({"prompt_template": "{txt} {mask}"}, r"expected fields of the texts, got \{txt\} in .*did you mean .text"),
        ({"plain_template": "{txt}"}, r"expected fields of the texts, got \{txt\} in .*did you mean .text"),
        ({"plain_template": "{text} {mask}"}, "expected a template without {mask}, got .*Remove {mask}"),
    ):
        with pytest.raises(ValueError, match=told):
            _ = Text(path, **given).data


def test_the_commands_show_texts_and_refuse_what_is_for_images(type_in, root, write, tmp_path):
    code, told = type_in("data", "check", "docstrings")
    assert code == 0
    assert "10 classes" in told
    assert all(f"{module} " in told for module in MODULES)
    assert "characters of a text: least 20" in told
    assert told.count("example: ") == 3
    assert told.endswith("every text can be read")
    assert "return/keyword" in type_in("data", "show", "python_tokens")[1]
    assert (
        "1 user: Hi | 2 assistant: Hello. | 3 user: Bye -> Ciao."
        in type_in("data", "check", write([{"messages": CHAT}] * 9))[1]
    )
    assert "validation.jsonl (or .csv, .tsv) with the columns sentence, label" in type_in("data", "show", "sst2")[1]
    assert "comes with vlprompt" in type_in("data", "prepare", "signatures")[1]
    code, told = type_in("data", "prepare", "sst2")
    assert code == 1
    assert "train.jsonl" in told
    assert "Fetch with: vlprompt data prepare sst2 --download" in told
    for part in ("train", "validation"):
        write([{"sentence": f"{part} {i}", "label": i % 2} for i in range(40)], f"root/sst2/{part}.jsonl")
    code, told = type_in("data", "check", "sst2")
    assert code == 1
    assert "the card has train 67,349, test 872 texts, here are train 40, test 40" in told
    assert (
        "expected a folder of image files, whose split is a list of files, got 'docstrings'"
        in type_in("data", "split", "docstrings", "--save", "x.json")[1]
    )
    path = write(reviews())
    assert (
        "a split file: expected a dataset of images, got 'mine.jsonl' with texts"
        in type_in("data", "split", path, "--save", "x.json")[1]
    )
    assert (
        "--figure: expected a dataset of images, got 'mine.jsonl' with texts"
        in type_in("data", "check", path, "--figure", "x.png")[1]
    )
    wrong = type_in("run", "coop", path, "--backbone", "glyph/random", "--shots", "1", "train.epochs=1")[1]
    assert "task: expected a dataset of images, got 'mine.jsonl' with texts. Use a language model" in wrong
    assert "docstrings" in type_in("list", "datasets")[1]
    assert "python_tokens" in type_in("data", "list")[1]


def test_prepare_fetches_what_a_hub_has(write, root, tmp_path, type_in):
    """With the real package where it is installed; without it, what to install or to put where."""
    for part in ("train", "validation"):
        write([{"sentence": f"{part} {i} ä", "label": i % 2} for i in range(40)], f"theirs/{part}.jsonl")
    card = read_yaml("sst2")
    told = {key: card[key] for key in ("title", "source", "licence", "text", "classes", "template")}
    hub = {"path": str(tmp_path / "theirs"), "splits": {"train": "train", "test": "validation"}}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump({**told, "folder": "own", "hub": hub}))
    code, printed = type_in("data", "prepare", "own.yaml", "--download")
    if find_version("datasets") is None:
        assert code == 2
        assert "pip install 'vlprompt[huggingface]', or put" in printed
        return
    assert code == 0, printed
    assert sorted(p.name for p in (root / "own").iterdir()) == ["train.jsonl", "validation.jsonl"]
    assert open_data("own.yaml").test.items[0].fields == {"sentence": "validation 0 ä"}
