"""Reading heedful's own modules for the bundler: their imports, their names, and where an imported name is defined.

Everything is read from the source text; no module is executed.
"""

from __future__ import annotations

import ast
import functools
import symtable
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

PACKAGE = "heedful"
_ROOT = Path(__file__).resolve().parents[1]


class Definition(NamedTuple):
    """A top-level name and the module whose text defines it; `name` is None for the module itself."""

    module: str
    name: str | None


@dataclass(frozen=True, eq=False)
class ImportStatement:
    """One import statement outside of `if TYPE_CHECKING`.

    Attributes:
        node: the statement.
        top_level: whether it stands directly in the module's body, where importing the module executes it.
        alone: whether its block holds nothing else, so that something must stay in its place.
    """

    node: ast.Import | ast.ImportFrom
    top_level: bool
    alone: bool

    @property
    def internal(self) -> bool:
        """Whether it imports from this package."""
        if isinstance(self.node, ast.ImportFrom):
            return self.node.level > 0 or _is_internal(self.node.module or "")
        return any(_is_internal(alias.name) for alias in self.node.names)

    def definitions(self) -> Iterator[tuple[str, Definition]]:
        """Yield the local name and the definition of everything that an internal import brings.

        Raises:
            ValueError: a form that the bundler does not know, or a name that its module lacks.
        """
        if isinstance(self.node, ast.ImportFrom) and self.node.level == 0 and self.node.module:
            for alias in self.node.names:
                if alias.name == "*":
                    raise ValueError(f"cannot bundle 'from {self.node.module} import *': name what is imported.")
                yield alias.asname or alias.name, find_definition(self.node.module, alias.name)
            return
        for alias in self.node.names:
            if isinstance(self.node, ast.ImportFrom) or alias.asname is None:
                raise ValueError(
                    f"cannot bundle {ast.unparse(self.node)!r}: write 'from heedful.module import name' or 'import "
                    f"heedful.module as name'."
                )
            yield alias.asname, Definition(alias.name, None)


@dataclass(frozen=True, eq=False)
class SourceModule:
    """The text of a module and what the bundler needs to know of it.

    Attributes:
        name: dotted name.
        source: its text, in UTF-8 as positions in the syntax tree count bytes.
        tree: its syntax tree.
        imports: its import statements, `from __future__` and those for type checkers left out.
        own_names: top-level names that it binds other than by a hoisted import.
    """

    name: str
    source: bytes
    tree: ast.Module
    imports: tuple[ImportStatement, ...]
    own_names: frozenset[str]

    def internal_imports(self, *, top_level: bool | None = None) -> Iterator[ImportStatement]:
        """Yield the imports from this package; only those at the top level, or only the others, if asked."""
        for statement in self.imports:
            if statement.internal and top_level in (None, statement.top_level):
                yield statement


@functools.cache
def read_module(name: str) -> SourceModule:
    """Read a module of this package.

    Raises:
        ValueError: there is no such module.
    """
    path = _path_of(name)
    if path is None:
        raise ValueError(f"there is no module {name!r} to bundle; expected one of {PACKAGE}'s own.")
    source = path.read_bytes().replace(b"\r\n", b"\n")
    tree = ast.parse(source)
    imports = tuple(_imports(tree, top_level=True))
    hoisted = {
        alias.asname or alias.name.split(".")[0]
        for statement in imports
        if statement.top_level
        for alias in statement.node.names
    }
    for_checkers = {
        alias.asname or alias.name
        for block in tree.body
        if is_for_type_checkers(block)
        for node in ast.walk(block)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    symbols = symtable.symtable(source.decode(), str(path), "exec").get_symbols()
    bound = {symbol.get_name() for symbol in symbols if symbol.is_assigned() or symbol.is_imported()}
    futures = {alias.name for node in tree.body if is_future(node) for alias in node.names}  # type: ignore[attr-defined]
    return SourceModule(name, source, tree, imports, frozenset(bound - hoisted - for_checkers - futures))


def find_definition(module: str, name: str) -> Definition:
    """Follow re-exports from `module` to the module whose text defines `name`.

    Raises:
        ValueError: no such name.
    """
    read = read_module(module)
    if name in read.own_names:
        return Definition(module, name)
    for statement in read.internal_imports(top_level=True):
        for local, definition in statement.definitions():
            if local == name:
                return definition
    if _path_of(f"{module}.{name}") is not None:
        return Definition(f"{module}.{name}", None)
    raise ValueError(f"{module} defines no {name!r}, so it cannot be bundled.")


def is_for_type_checkers(node: ast.stmt) -> bool:
    """Tell whether a statement is an `if TYPE_CHECKING:` block."""
    if not isinstance(node, ast.If):
        return False
    test = node.test
    name = test.attr if isinstance(test, ast.Attribute) else test.id if isinstance(test, ast.Name) else None
    if name == "TYPE_CHECKING" and node.orelse:
        raise ValueError("cannot bundle 'if TYPE_CHECKING: ... else: ...': leave the else out.")
    return name == "TYPE_CHECKING"


def is_future(node: ast.stmt) -> bool:
    """Tell whether a statement is a `from __future__ import`."""
    return isinstance(node, ast.ImportFrom) and node.module == "__future__"


def _imports(tree: ast.AST, *, top_level: bool) -> Iterator[ImportStatement]:
    for _, body in ast.iter_fields(tree):
        block = [node for node in body if isinstance(node, ast.AST)] if isinstance(body, list) else []
        if isinstance(body, ast.AST):
            block = [body]
        for node in block:
            if isinstance(node, ast.Import | ast.ImportFrom):
                if not is_future(node):
                    yield ImportStatement(node, top_level, len(block) == 1)
            elif not (isinstance(node, ast.stmt) and is_for_type_checkers(node)):
                yield from _imports(node, top_level=False)


def _is_internal(module: str) -> bool:
    return module.split(".")[0] == PACKAGE


def _path_of(module: str) -> Path | None:
    first, *parts = module.split(".")
    if first != PACKAGE:
        return None
    folder = _ROOT.joinpath(*parts)
    places = (folder / "__init__.py",) if not parts else (folder.with_suffix(".py"), folder / "__init__.py")
    return next((place for place in places if place.is_file()), None)
