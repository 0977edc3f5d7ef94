"""Names against globs."""

from __future__ import annotations

import pytest

from llm_spark.tables.globs import fixed_part, glob_regex, hidden_by_wildcard


@pytest.mark.parametrize(
    ("pattern", "name", "matches"),
    [
        ("/logs/*.csv", "/logs/a.csv", True),
        ("/logs/*.csv", "/logs/2026/a.csv", False),
        ("/logs/*.csv", "/logs/a.csv.gz", False),
        ("/logs", "/logs/2026/a.csv", True),
        ("/logs", "/logs2/a.csv", False),
        ("/logs/2026-*", "/logs/2026-01/b/a.csv", True),
        ("/logs/202?/a", "/logs/2026/a", True),
        ("/logs/202?/a", "/logs/202/a", False),
        ("/logs/[a-c]x", "/logs/bx", True),
        ("/logs/[^a-c]x", "/logs/bx", False),
        ("/logs/[!a-c]x", "/logs/dx", True),
        ("/logs/[]^]x", "/logs/^x", True),
        ("/logs/{a,b/c}.csv", "/logs/b/c.csv", True),
        ("/logs/{a,b/c}.csv", "/logs/b.csv", False),
        ("/logs/{2025,202[6-7]}-*", "/logs/2027-01.csv", True),
        (r"/logs/\*.csv", "/logs/*.csv", True),
        (r"/logs/\*.csv", "/logs/a.csv", False),
        ("/logs/a.csv", "/logs/aXcsv", False),
        ("/logs/a,b}.csv", "/logs/a,b}.csv", True),
        ("/logs/a[b", "/logs/a[b", True),
        ("/logs/*\nb", "/logs/a\nb", True),
    ],
)
def test_a_glob_stands_for_the_names_that_hadoop_says(pattern: str, name: str, matches: bool) -> None:
    assert (glob_regex(pattern).fullmatch(name) is not None) == matches


def test_the_part_before_the_first_wildcard_is_fixed() -> None:
    assert [fixed_part(text) for text in ("/a/b", "/a/*/b", "/a/x{b,c}", "/a/[b]", r"/a/\*")] == [
        "/a/b",
        "/a/",
        "/a/x",
        "/a/",
        "/a/",
    ]


@pytest.mark.parametrize(
    ("pattern", "name", "hidden"),
    [
        ("/logs/*", "/logs/_temporary", True),
        ("/logs/*/a.csv", "/logs/.staging/a.csv", True),
        ("/logs/?temporary", "/logs/_temporary", True),
        ("/logs/_*", "/logs/_temporary", False),
        ("/logs/.a/*", "/logs/.a/b", False),
        ("/logs/*", "/logs/a_b", False),
        ("/logs/{a,b/*}", "/logs/b/_c", True),
        ("/logs/{a,b/c}/*", "/logs/b/c/_d", True),
    ],
)
def test_what_only_a_wildcard_stands_for_is_hidden_where_spark_hides_it(pattern: str, name: str, hidden: bool) -> None:
    assert hidden_by_wildcard(pattern, name) == hidden
