"""The shape of the code: import circles, long files and functions, loose modules, and what rooms import of each other.

    python -m benchmarks.structure

Tests are left out of files and circles; functions are counted everywhere.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("i2v_jax", "convert", "configs", "benchmarks", "assets")
LONG_FILE, LONG_FUNCTION = 500, 80  # lines
PACKAGE = "i2v_jax"


def sources() -> list[Path]:
    """Returns the project's own files, tests left out."""
    inside = [path for folder in FOLDERS for path in sorted(ROOT.glob(f"{folder}/**/*.py"))]
    return [*sorted(ROOT.glob("*.py")), *inside]


def module_name(path: Path) -> str:
    """Returns the name by which a file is imported."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path, known: set[str]) -> set[str]:
    """Returns the modules among the known ones that a file imports, lazily too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {name if name in known else node.module for name in names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return (found & known) - {module_name(path)}


def circles(graph: dict[str, set[str]]) -> list[set[str]]:
    """Returns the groups of modules that import each other, directly or not."""
    reached = {name: set(targets) for name, targets in graph.items()}
    changed = True
    while changed:
        changed = False
        for targets in reached.values():
            more = set().union(*(reached[name] for name in targets)) - targets if targets else set()
            changed |= bool(more)
            targets |= more
    groups = {frozenset(other for other in reached[name] if name in reached[other]) for name in graph}
    return [set(group) for group in groups if len(group) > 1]


def long_functions() -> Iterator[tuple[str, int]]:
    """Yields functions of too many lines."""
    for path in [*sources(), *sorted(ROOT.glob("tests/**/*.py"))]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and (lines := node.end_lineno - node.lineno + 1) > LONG_FUNCTION:
                yield f"{path.relative_to(ROOT)}:{node.name}", lines


def measure() -> dict[str, list]:
    """Returns what there should be none of, and the loose modules."""
    paths = {module_name(path): path for path in sources()}
    graph = {name: imports(path, set(paths)) for name, path in paths.items()}
    sizes = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in paths.items()}
    return {
        "import circles": circles(graph),
        f"files over {LONG_FILE} lines": [(name, size) for name, size in sizes.items() if size > LONG_FILE],
        f"functions over {LONG_FUNCTION} lines": list(long_functions()),
        f"loose modules of {PACKAGE}": sorted(path.stem for path in (ROOT / PACKAGE).glob("*.py")),
    }


def main() -> None:
    for what, found in measure().items():
        print(f"{len(found)} {what}{': ' if found else ''}{', '.join(map(str, found))}")


if __name__ == "__main__":
    main()
