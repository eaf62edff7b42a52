"""Split a bash block into commands, and the words of a simple command as bash does; complex ones are left to bash."""

import glob
import re

CONTROL = set("|&;<>()$`")
KEYWORDS = {"cd", "export", "source", ".", "for", "while", "until", "if", "case", "set", "function", "{", "[["}
ASSIGNMENT = re.compile(r"^[A-Za-z_]\w*=")
GLOB = re.compile(r"[*?\[]")
REDIRECTION = re.compile(r"^(?P<command>vlprompt [^>]*?)\s+>\s*(?P<file>[\w./-]+)$")


class NotSimple(Exception):
    """What only a shell can run: a pipe, a loop, a variable ..."""


def split_commands(text: str) -> list[str]:
    r"""Return the commands of a block, one for each line; lines that end in \ and open quotes go on.

    Comments and empty lines are left out.
    """
    commands, current, quote, i = list[str](), "", "", 0
    while i < len(text):
        char = text[i]
        if char == "\\" and quote != "'":
            pair = text[i : i + 2]
            current += " " if pair == "\\\n" else pair
            i += 2
            continue
        if quote:
            quote = "" if char == quote else quote
        elif char in "'\"":
            quote = char
        elif char == "#" and (not current or current[-1].isspace()):
            i = text.find("\n", i) if "\n" in text[i:] else len(text)
            continue
        elif char == "\n":
            commands.append(current)
            current, i = "", i + 1
            continue
        current += char
        i += 1
    return [command.strip() for command in [*commands, current] if command.strip()]


def split_words(command: str) -> list[str]:
    """Return the words of a simple command: quotes removed, file patterns expanded in the current folder.

    Raises:
        NotSimple: where a shell is needed.
    """
    words = list[str]()
    for text, pattern in _scan_words(command):
        matches = sorted(glob.glob(pattern)) if pattern != glob.escape(text) and GLOB.search(text) else []
        words += matches or [text]
    if words and (words[0] in KEYWORDS or ASSIGNMENT.match(words[0])):
        raise NotSimple(command)
    return words


def _scan_words(command: str) -> list[tuple[str, str]]:
    """Return each word without its quotes, and as a pattern in which quoted characters stand for themselves."""
    words, text, pattern, quote, is_open, i = list[tuple[str, str]](), "", "", "", False, 0
    while i < len(command):
        char = command[i]
        if char == "\\" and quote != "'" and (not quote or command[i + 1 : i + 2] in tuple('"\\$`')):
            i += 1
            text, pattern, is_open = text + command[i], pattern + glob.escape(command[i]), True
        elif quote:
            if char == quote:
                quote = ""
            elif quote == '"' and char in "$`":
                raise NotSimple(command)
            else:
                text, pattern = text + char, pattern + glob.escape(char)
        elif char in "'\"":
            quote, is_open = char, True
        elif char.isspace():
            words += [(text, pattern)] if is_open else []
            text, pattern, is_open = "", "", False
        elif char in CONTROL or (char == "~" and not is_open) or re.match(r"\{[^\s{}]*(,|\.\.)[^\s{}]*\}", command[i:]):
            raise NotSimple(command)
        else:
            text, pattern, is_open = text + char, pattern + char, True
        i += 1
    return words + ([(text, pattern)] if is_open else [])


def split_redirection(command: str) -> tuple[str, str]:
    """Return a command of vlprompt and the file that its output goes to, "" without one."""
    match = REDIRECTION.match(command)
    return (match["command"], match["file"]) if match else (command, "")


def has_only_simple_commands(text: str) -> bool:
    """Say whether every command of a block can be run without a shell around the whole block."""
    try:
        for command in split_commands(text):
            split_words(split_redirection(command)[0])
    except NotSimple:
        return False
    return True
