"""What the keys of a config mean, read off the config file's own comments: the one beside a key, and those above it."""

import ast
import dataclasses
import io
import tokenize
from pathlib import Path


@dataclasses.dataclass
class Section:
    """Keys that belong together.

    Attributes:
      title: what they are about.
      keys: key with its groups, `data.frames`, to its explanation; "" where the file has none.
    """

    title: str
    keys: dict[str, str] = dataclasses.field(default_factory=dict)


def explain(path: Path, root: Path) -> list[Section]:
    """Returns what a config file and those that it builds on say of their keys, in their order.

    Args:
      path: of a Python file with `get_config()`.
      root: the folder that holds `configs`.
    """
    return _Reader(_File(path, root)).read("get_config", "")


class _File:
    """A config file's functions, the files that it imports, and its comments."""

    def __init__(self, path: Path, root: Path):
        text, self.root = path.read_text(encoding="utf-8"), root
        tree = ast.parse(text)
        self.functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
        self.modules = {}  # name here -> file of `from configs.sample import sd15`
        for node in tree.body:
            if isinstance(node, ast.ImportFrom) and node.module:
                folder = root.joinpath(*node.module.split("."))
                self.modules |= {name.asname or name.name: folder / f"{name.name}.py" for name in node.names}
        self.beside, self.above = {}, {}  # line -> comment
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.COMMENT:
                alone = not token.line[: token.start[1]].strip()
                (self.above if alone else self.beside)[token.start[0]] = token.string.lstrip("# ")

    def comment_beside(self, node: ast.AST) -> str:
        return self.beside.get(node.lineno) or self.beside.get(node.end_lineno, "")

    def comment_above(self, node: ast.AST) -> str:
        line, lines = node.lineno, []
        while (line := line - 1) in self.above:
            lines.insert(0, self.above[line])
        return " ".join(lines)

    def function(self, call: ast.Call) -> tuple["_File", str] | None:
        """Where a function of config files is that is called here, and its name."""
        module, _, name = ast.unparse(call.func).rpartition(".")
        path = self.modules.get(module)
        if not module:
            found = self
        elif path and path.is_file():
            found = _File(path, self.root)
        else:
            return None
        return (found, name) if name in found.functions else None


class _Reader:
    """Follows the statements of one function of a config file; what they do beside setting keys is passed over."""

    def __init__(self, file: _File):
        self.file = file

    def read(self, function: str, prefix: str) -> list[Section]:
        """The sections of a function that makes a config, or adds to the one that it is given."""
        node = self.file.functions[function]
        about = (ast.get_docstring(node) or "").split("\n\n")[0].replace("\n", " ")
        group = prefix.rstrip(".")
        self.current = Section(f"{group}: {about}" if group and about else about or group)
        self.sections, self.base = [self.current], []
        self._statements(node.body, prefix)
        for section in self.sections:  # a key of the config that this one builds on stays where it is
            for known in self.base:
                for key in section.keys.keys() & known.keys.keys():
                    known.keys[key] = section.keys.pop(key) or known.keys[key]
        return [section for section in [*self.sections, *self.base] if section.keys]

    def _statements(self, body: list[ast.stmt], prefix: str) -> None:
        for statement in body:
            if title := self.file.comment_above(statement):
                self.current = Section(title)
                self.sections.append(self.current)
            if isinstance(statement, ast.With):
                self._statements(statement.body, prefix)
            elif isinstance(statement, ast.Expr | ast.Return) and isinstance(statement.value, ast.Call):
                self._group(statement.value, prefix, "")
            elif isinstance(statement, ast.Assign):
                for target in statement.targets:
                    self._assigned(target, statement, prefix)

    def _assigned(self, target: ast.expr, statement: ast.Assign, prefix: str) -> None:
        name, _, key = ast.unparse(target).partition(".")
        if key and isinstance(target, ast.Attribute):
            self._key(f"{prefix}{key}", self.file.comment_beside(statement), statement.value)
        elif name == "config" and isinstance(statement.value, ast.Call):
            self._group(statement.value, prefix, "")

    def _key(self, key: str, comment: str, value: ast.expr) -> None:
        is_group = isinstance(value, ast.Call) and (_keywords(value) is not None or self.file.function(value))
        if is_group:
            self._group(value, f"{key}.", comment)
        else:
            self.current.keys[key] = comment.rstrip(":")

    def _group(self, call: ast.Call, prefix: str, comment: str) -> None:
        """Keys that are written out as `dict(...)`, or set by a function."""
        keywords, found = _keywords(call), self.file.function(call)
        if keywords is not None:
            for keyword in keywords:
                comment = self.file.comment_above(keyword) or comment
                self._key(f"{prefix}{keyword.arg}", self.file.comment_beside(keyword) or comment, keyword.value)
        elif found:
            file, function = found
            sections = _Reader(file).read(function, prefix)
            where = self.base if function == "get_config" else self.sections
            where += sections


def _keywords(call: ast.Call) -> list[ast.keyword] | None:
    """The keywords of `dict(...)` or `ConfigDict(dict(...))`."""
    name = ast.unparse(call.func)
    if name == "ConfigDict" and call.args and isinstance(call.args[0], ast.Call):
        return _keywords(call.args[0])
    return call.keywords if name == "dict" else None
