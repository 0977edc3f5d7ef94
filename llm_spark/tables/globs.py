"""Hadoop's globs as text: which names they stand for where files cannot be asked, and paths that are none."""

from __future__ import annotations

import re

_WILD = re.compile(r"[*?\[{\\]")


def fixed_part(pattern: str) -> str:
    """The pattern up to its first character that stands for others."""
    return _WILD.split(pattern)[0]


def literal(path: str) -> str:
    """A path that Spark shall not take for a glob."""
    return re.sub(r"([\[\]{}*?\\])", r"\\\1", path)


def glob_regex(pattern: str) -> re.Pattern[str]:
    """What a file's whole name must match for `pattern` to stand for it, or for a folder above it.

    `*`, `?` and `[abc]`, `[^abc]` stand for characters of one name, `{a,b}` for either text, and a backslash takes the next character as it is.
    """
    made: list[str] = []
    depth, place = 0, 0
    while place < len(pattern):
        sign, end = pattern[place], place + 1
        if sign == "\\" and end < len(pattern):
            made.append(re.escape(pattern[end]))
            end += 1
        elif sign in "*?":
            made.append("[^/]*" if sign == "*" else "[^/]")
        elif sign == "[" and (closed := pattern.find("]", place + 2)) > 0:
            among = pattern[place + 1 : closed]
            is_not = among[0] in "^!"
            made.append(f"[{'^' if is_not else ''}{_literal_set(among[is_not:])}]")
            end = closed + 1
        elif sign == "{":
            depth += 1
            made.append("(?:")
        elif sign == "}" and depth:
            depth -= 1
            made.append(")")
        elif sign == "," and depth:
            made.append("|")
        else:
            made.append(re.escape(sign))
        place = end
    return re.compile("".join(made) + ")" * depth + r"(?:/.*)?", re.DOTALL)


def _literal_set(among: str) -> str:
    """Characters and ranges of a set, with nothing else in it that a regular expression knows."""
    return re.sub(r"([\\\[\]^&|~])", r"\\\1", among)


def hidden_by_wildcard(pattern: str, name: str) -> bool:
    """Whether a wildcard of the pattern alone stands for a folder or file whose name begins with `_` or `.`, which Spark takes for hidden."""
    asked, found = pattern.rstrip("/").split("/"), name.rstrip("/").split("/")
    # A slash between braces makes the numbers of names differ: of those only the last is told then.
    pairs = zip(asked, found, strict=True) if len(asked) == len(found) else [(asked[-1], found[-1])]
    return any(wild.startswith(("*", "?")) and one.startswith(("_", ".")) for wild, one in pairs)
