"""The shape of the package: what importing costs, which way imports point, how long files and functions may be."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "punnett"
FILES = sorted(PACKAGE.rglob("*.py"))
MAX_LINES, MAX_FUNCTION_LINES = 400, 50
DRAWERS = {"utils.py", "common.py", "helpers.py", "misc.py", "base.py", "core.py", "manager.py", "service.py"}
HEAVY = ("torch", "transformers", "peft", "inspect_ai", "polars", "numpy", "scipy", "altair")


def loaded_after(code: str) -> set[str]:
    """Names of the modules that a fresh interpreter has loaded after running `code`."""
    script = f"import sys\n{code}\nprint(' '.join(sys.modules))"
    return set(subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split())


def test_importing_punnett_loads_nothing_heavy():
    assert not loaded_after("import punnett").intersection(HEAVY)


def test_the_help_of_the_command_line_loads_nothing_heavy():
    code = "import punnett.cli\nfrom typer.testing import CliRunner\nassert CliRunner().invoke(punnett.cli.app, ['--help']).exit_code == 0"
    assert not loaded_after(code).intersection(HEAVY)


def test_the_import_contract_holds():
    found = subprocess.run(
        [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"], capture_output=True, text=True, cwd=PACKAGE.parents[1], check=False
    )
    assert found.returncode == 0, found.stdout


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_files_are_short_and_named(path: Path):
    assert len(path.read_text().splitlines()) <= MAX_LINES
    assert path.name not in DRAWERS
    assert ast.get_docstring(ast.parse(path.read_text())), "a module says what comes in and what goes out"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_functions_fit_a_screen_and_public_ones_speak(path: Path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno - node.lineno < MAX_FUNCTION_LINES, f"{node.name} is too long"
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{node.name} has no docstring"


def test_no_pickle_and_no_remote_code():
    for path in FILES:
        text = path.read_text()
        assert "import pickle" not in text
        assert "torch.load" not in text
        assert "trust_remote_code=True" not in text
