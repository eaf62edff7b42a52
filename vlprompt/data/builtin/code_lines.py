"""Lines of code that every Python carries, of its own library: told from English, or cut into tokens."""

import ast
import io
import keyword
import tokenize

from vlprompt.data.builtin.docstrings import documented, first_sentence, number, parted, sources

KINDS = {tokenize.NUMBER: "number", tokenize.STRING: "string", tokenize.OP: "operator"}
SKIPPED = (tokenize.NEWLINE, tokenize.NL, tokenize.ENDMARKER)


def code_lines() -> list[str]:
    """The statements of one line of 20 to 120 characters, docstrings left out, each once."""
    found: dict[str, None] = {}
    for source in sources():
        lines = source.text.split("\n")
        for node in ast.walk(source.tree):
            if not isinstance(node, ast.stmt) or node.end_lineno != node.lineno:
                continue
            text = lines[node.lineno - 1].strip()
            told = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            if 20 <= len(text) <= 120 and text.isascii() and not told and "#" not in text:
                found.setdefault(text)
    return list(found)


def doc_or_code() -> dict[str, list[dict[str, object]]]:
    """text, label: first sentences of docstrings and as many lines of code, drawn by their hash."""
    docs: dict[str, None] = {}
    for source in sources():
        for _, told in documented(source.tree):
            if 20 <= len(sentence := first_sentence(told)) <= 120:
                docs.setdefault(sentence)
    code = sorted((line for line in code_lines() if line not in docs), key=number)[: len(docs)]
    return parted([{"text": text, "label": kind} for kind, of in (("doc", docs), ("code", code)) for text in of],
                  "text")  # fmt: skip


def python_tokens(most: int = 3000) -> dict[str, list[dict[str, object]]]:
    """words, tags: the tokens of a line of code and the kind of each, of 4 to 24 tokens without spaces.

    `most` lines, drawn by their hash. Lines with f-strings are left out, since Python 3.12 cuts them another way.
    """
    rows: list[dict[str, object]] = []
    for line in sorted(code_lines(), key=number):
        if (cut := _cut(line)) is not None and 4 <= len(cut) <= 24:
            rows.append({"line": line, "words": [word for word, _ in cut], "tags": [kind for _, kind in cut]})
        if len(rows) == most:
            break
    return parted(rows, "line")


def _cut(line: str) -> list[tuple[str, str]] | None:
    """(token, kind) of a line; None for one that can't be cut alone or that has a token with a space."""
    found = []
    try:
        for token in tokenize.generate_tokens(io.StringIO(line).readline):
            if token.type in SKIPPED:
                continue
            prefix = token.string[: min(token.string.find(quote) % 1000 for quote in "'\"")].lower()
            if token.type not in (*KINDS, tokenize.NAME) or " " in token.string:
                return None
            if token.type == tokenize.STRING and "f" in prefix:
                return None
            word = "keyword" if keyword.iskeyword(token.string) else "name"
            found.append((token.string, KINDS.get(token.type, word)))
    except (tokenize.TokenError, SyntaxError):  # such as a line that ends in a colon
        return None
    return found
