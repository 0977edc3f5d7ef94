"""The Petastorm adapter stands alone in one module, and the room alone in the package."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import llm_spark.reader

ROOM = Path(llm_spark.reader.__file__).parent


def test_the_room_imports_only_what_it_may() -> None:
    allowed = {"petastorm", "pyarrow", "numpy", "torch", "fsspec", *sys.stdlib_module_names}
    for module in ROOM.glob("*.py"):
        for node in ast.walk(ast.parse(module.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                imported = [node.module or ""]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 1, f"{module.name} reaches out of the room"
                continue
            else:
                imported = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert {name.split(".")[0] for name in imported} <= allowed, module.name


def test_compatibility_is_one_small_module() -> None:
    importers = [module.name for module in ROOM.glob("*.py") if "from petastorm" in module.read_text()]
    assert importers == ["compat.py"]
    module = ast.parse((ROOM / "compat.py").read_text())
    table_of_stand_ins, *code = module.body
    assert isinstance(table_of_stand_ins, ast.Expr)
    assert code[-1].end_lineno - table_of_stand_ins.end_lineno <= 150
