"""Every tutorial is run from top to bottom in an empty folder, and prints what it shows."""

from pathlib import Path

import pytest
from docs.outputs import find_difference, normalise
from docs.page_blocks import parse_blocks
from docs.page_runner import PageError, run_page
from docs.shell_lines import NotSimple, split_commands, split_words
from docs.update_outputs import update_page

ROOT = Path(__file__).parents[2]
TUTORIALS = sorted(page for page in (ROOT / "docs/tutorials").glob("*.md") if page.name != "index.md")


@pytest.mark.page
@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_a_tutorial_prints_what_it_shows(page, tmp_path):
    for output in run_page(page, tmp_path):
        if output.shown:
            difference = find_difference(output.shown.text, output.text)
            assert not difference, f"{page.relative_to(ROOT)}:{output.shown.line}: other output\n{difference}"


PAGE = """# A page

```yaml title="deep/mine.yaml"
method: {name: coop, n_ctx: 2}
```
```bash
# a comment
ls deep/*.yaml 'a # b'* 2>/dev/null || true
```
```bash
vlprompt list \\
  heads
```
<!-- exits 2 -->
```bash
vlprompt show cooop
```
```text
...
error: ...
```
<!-- not run: downloads weights -->
```bash
vlprompt run coop digits --backbone open_clip:ViT-B-16/openai
```
```python
x = 40
```
```python
print("accuracy", x + 2.04, "in 3.5 s,", 812, "MB")
```
```text
accuracy 42.0 in 0.1 s, 12 MB
```
"""


def write_page(folder, text):
    page = folder / "page.md"
    page.write_text(text)
    (folder / "place").mkdir()
    return page


def test_blocks_of_a_page():
    blocks = parse_blocks(PAGE)
    assert [b.kind for b in blocks] == ["yaml", "bash", "bash", "bash", "text", "bash", "python", "python", "text"]
    assert [b.is_run for b in blocks] == [False, True, True, True, False, False, True, True, False]
    assert [b.is_output for b in blocks] == [False] * 4 + [True] + [False] * 3 + [True]
    assert (blocks[0].title, blocks[3].exit_status, blocks[5].not_run) == ("deep/mine.yaml", 2, "downloads weights")
    assert PAGE.splitlines()[blocks[3].line - 1] == "```bash"
    assert PAGE.splitlines()[blocks[3].end - 1] == "```"
    with pytest.raises(ValueError, match="page:1: expected a closing fence"):
        parse_blocks("```bash\nls\n")


def test_a_page_is_run(tmp_path):
    page = write_page(tmp_path, PAGE.replace("list \\\n  heads", "list \\\n  methods"))
    listed, methods, misspelt, silent, printed = run_page(page, tmp_path / "place")
    assert listed.text == "deep/mine.yaml\n"
    assert "coop" in methods.text
    assert "coop" in misspelt.text
    assert silent.text == "\n"
    assert printed.text == "accuracy 42.04 in 3.5 s, 812 MB\n"
    assert not find_difference(printed.shown.text, printed.text)


def test_output_goes_to_a_file(tmp_path):
    page = write_page(tmp_path, "```bash\nvlprompt list tasks > tasks.txt\nls\ngrep few_shot tasks.txt\n```\n")
    [listed] = run_page(page, tmp_path / "place")
    assert listed.text.startswith("tasks.txt\nfew_shot")


@pytest.mark.parametrize(
    ("block", "fault"),
    [
        ("```bash\nvlprompt show cooop\n```", "page.md:1: exit status 2, expected 0"),
        ("<!-- exits 2 -->\n```bash\nls\n```", "page.md:2: exit status 0, expected 2"),
        ("text\n```bash\nls | grep x\n```", "page.md:2: exit status 1, expected 0"),
        ("```python\n1 / 0\n```", "page.md:1: ZeroDivisionError"),
    ],
)
def test_a_block_that_fails_is_named(tmp_path, block, fault):
    page = write_page(tmp_path, block + "\n")
    with pytest.raises(PageError, match=fault):
        run_page(page, tmp_path / "place")


def test_outputs_are_rewritten(tmp_path):
    text = '```python\nprint("a", 1.5)\nprint("a long line that goes on")\n```\n```text\n{}```\nbelow\n'
    page = write_page(tmp_path, text.format("a 9.5\na long line ...\n"))
    assert update_page(page, run_page(page, tmp_path / "place")) == 1
    assert page.read_text() == text.format("a 1.5\na long line ...\n")


@pytest.mark.parametrize(
    ("shown", "printed", "agree"),
    [
        ("accuracy 91.3", "accuracy 91.4", True),
        ("accuracy 91.3", "accuracy 92.3", False),
        ("loss 0.250", "loss 0.300", False),
        ("4 runs", "5 runs", False),
        ("cut 50:20:30", "cut 60:20:20", False),
        ("probability: 6.8e-05", "probability: 6.3e-05", True),
        ("probability: 0.9e-05", "probability: 9.3e-01", False),
        ("a\n...\nd", "a\nb\nc\nd", True),
        ("a\n...\nd", "a\nb\nc", False),
        ("a\nb", "a\nb\nc", False),
        ("a word ...", "a word and more", True),
        ("a word ...", "another word", False),
        ("(3.7 s)", "(12.0 s)", True),
        ("torch 2.9.1", "torch 2.15.0+cu132", True),
        ("/path/to/photos: 2 classes", "/tmp/x/y/photos: 2 classes", True),
        ("/path/to/photos: 2 classes", "/tmp/x/y/pictures: 2 classes", False),
        ("runs/coop-digits-1shot-seed1-0123456789ab", "runs/coop-digits-1shot-seed1-ba9876543210", True),
        (" method  n    s\n ───────────\n coop    1  3.7", " method  n     s\n ────────────\n coop    1  12.9", True),
        (" method  n    s\n ───────────\n coop    1  3.7", " method  n     s\n ────────────\n coop    2  12.9", False),
        ("| a | s |\n| - | -: |\n| 1 | 3.2 |", "| a | s |\n| - | -: |\n| 1 | 7.5 |", True),
        ("| a | s |\n| - | -: |\n| 1 | 3.2 |", "| a | s |\n| - | -: |\n| 2 | 7.5 |", False),
    ],
)
def test_outputs_are_compared(shown, printed, agree):
    assert (not find_difference(shown, printed)) == agree


WIDE = """few_shot on digits

 method  shots  accuracy  n  trained  %    s   MB
 ─────────────────────────────────────────────────
 coop       16  95.3±0.2  3    2,048  1  9.9  940
 vpt        16  93.1      3       64     9.9  940

3 runs
"""
NARROW = """few_shot on digits

 method  shots  accuracy
 ────────────────────────
 coop       16  95.3±0.2
 vpt        16  93.1

(n, trained, %, s, MB: in a wider terminal, or by
--markdown)
3 runs
"""


def test_a_table_may_lack_its_columns_of_cost():
    assert not find_difference(WIDE, NARROW)
    assert not find_difference(NARROW, WIDE)
    assert find_difference(WIDE, NARROW.replace("95.3", "92.3"))
    assert find_difference(WIDE, NARROW.replace("vpt ", "ssf "))
    assert find_difference(WIDE, WIDE.replace("2,048", "1,024"))


def test_progress_bars_are_not_compared():
    assert normalise("one\nruns ━━━━━━━━ 4/4 0:00:00\nruns     0/1 -:--:-- loading\ntwo") == ["one", "two"]


def test_words_are_those_of_bash(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("b.png", "a.png", "[c].png"):
        (tmp_path / name).touch()
    text = "vlprompt run a \\\n  b  # more\n\n# all\nls 'x\ny'\n"
    assert split_commands(text) == ["vlprompt run a    b", "ls 'x\ny'"]
    assert split_words('v ?.png *.gif \'*.png\' "*".png x="a b" \'task.classes=["0","2"]\'') == [
        *("v", "a.png", "b.png", "*.gif", "*.png", "*.png", "x=a b", 'task.classes=["0","2"]'),
    ]
    for command in ("a | b", "a $x", 'a "$x"', "x=1 a", "cd a", "a > b", "ls a{b,c}", "for x in a"):
        with pytest.raises(NotSimple):
            split_words(command)
    assert split_words("a '$x' '|' \\$x") == ["a", "$x", "|", "$x"]
