"""Text datasets from the source of the standard library: code versus English, and token classification."""

import ast
import io
import keyword
import tokenize

from vlprompt.data.builtin.docstrings import (
    extract_first_sentence,
    group_by_split,
    iter_docstrings,
    load_sources,
    stable_hash,
)

TOKEN_KINDS = {tokenize.NUMBER: "number", tokenize.STRING: "string", tokenize.OP: "operator"}
SKIPPED_TOKENS = (tokenize.NEWLINE, tokenize.NL, tokenize.ENDMARKER)


def list_code_lines() -> list[str]:
    """Return the distinct one-line statements of 20 to 120 characters, without docstrings."""
    statements: dict[str, None] = {}
    for source in load_sources():
        lines = source.text.split("\n")
        for node in ast.walk(source.tree):
            if not isinstance(node, ast.stmt) or node.end_lineno != node.lineno:
                continue
            text = lines[node.lineno - 1].strip()
            is_constant = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            if 20 <= len(text) <= 120 and text.isascii() and not is_constant and "#" not in text:
                statements.setdefault(text)
    return list(statements)


def doc_or_code() -> dict[str, list[dict[str, object]]]:
    """Return rows (text, label): first sentences of docstrings and equally many lines of code, sampled by hash."""
    docs: dict[str, None] = {}
    for source in load_sources():
        for _, docstring in iter_docstrings(source.tree):
            if 20 <= len(sentence := extract_first_sentence(docstring)) <= 120:
                docs.setdefault(sentence)
    code = sorted((line for line in list_code_lines() if line not in docs), key=stable_hash)[: len(docs)]
    texts_by_label = {"doc": docs, "code": code}
    return group_by_split(
        [{"text": text, "label": label} for label, texts in texts_by_label.items() for text in texts], "text"
    )


def python_tokens(max_lines: int = 3000) -> dict[str, list[dict[str, object]]]:
    """Return rows (words, tags): the tokens of a line of code and their kinds, 4 to 24 tokens without spaces.

    At most `max_lines` lines, sampled by hash. Lines with f-strings are excluded, since Python 3.12
    tokenises them differently.
    """
    rows: list[dict[str, object]] = []
    for line in sorted(list_code_lines(), key=stable_hash):
        if (tokens := _tokenize_line(line)) is not None and 4 <= len(tokens) <= 24:
            rows.append({"line": line, "words": [word for word, _ in tokens], "tags": [kind for _, kind in tokens]})
        if len(rows) == max_lines:
            break
    return group_by_split(rows, "line")


def _tokenize_line(line: str) -> list[tuple[str, str]] | None:
    """Return (token, kind) pairs; None if the line can't be tokenised on its own or a token has a space."""
    tokens = []
    try:
        for token in tokenize.generate_tokens(io.StringIO(line).readline):
            if token.type in SKIPPED_TOKENS:
                continue
            prefix = token.string[: min(token.string.find(quote) % 1000 for quote in "'\"")].lower()
            if token.type not in (*TOKEN_KINDS, tokenize.NAME) or " " in token.string:
                return None
            if token.type == tokenize.STRING and "f" in prefix:
                return None
            word_kind = "keyword" if keyword.iskeyword(token.string) else "name"
            tokens.append((token.string, TOKEN_KINDS.get(token.type, word_kind)))
    except (tokenize.TokenError, SyntaxError):  # such as a line that ends in a colon
        return None
    return tokens
