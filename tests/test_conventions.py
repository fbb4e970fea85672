"""What every test keeps to, checked where a linter cannot."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

_HERE = Path(__file__).parent
_MODULES = sorted(path.relative_to(_HERE).as_posix() for path in _HERE.rglob("test_*.py"))


def _tests(tree: ast.Module) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    found = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    return [function for function in found if function.name.startswith("test_")]


@pytest.mark.parametrize("module", _MODULES)
def test_states_its_claim(module):
    """Every test says in its docstring what it claims."""
    tests = _tests(ast.parse((_HERE / module).read_text()))

    assert [test.name for test in tests if not ast.get_docstring(test)] == []
