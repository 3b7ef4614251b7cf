"""Changes to the text of one module for the bundler: imports taken out, names replaced, all else left as written.

Positions come from the syntax tree, so names inside of strings, attributes and keyword arguments are never touched.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping

from heedful.hf.bundle_modules import SourceModule, is_for_type_checkers, is_future

TYPED_FIELDS = '''\
def _typed_fields(cls: type) -> type:
    """Put the types where `from __future__ import annotations`, which holds for this whole file, left their names."""
    own = types.SimpleNamespace(__annotations__=dict(vars(cls).get("__annotations__", {})))
    cls.__annotations__ = typing.get_type_hints(own, globals(), include_extras=True)
    for name, field in getattr(cls, "__dataclass_fields__", {}).items():
        field.type = cls.__annotations__.get(name, field.type)
    return cls'''
"""What a bundle needs for modules without that import, whose classes want their annotations as values."""


class Edits:
    """Replacements of pieces of a module's text, to be made all at once.

    Args:
        module: the module.
    """

    def __init__(self, module: SourceModule) -> None:
        self.module = module
        self._starts = [0]
        for line in module.source.splitlines(keepends=True):
            self._starts.append(self._starts[-1] + len(line))
        self._replacements: list[tuple[int, int, bytes]] = []

    def replace(self, node: ast.AST, text: str) -> None:
        """Put `text` in the place of a node."""
        start, stop = self._span(node)
        self._replacements.append((start, stop, text.encode()))

    def remove_lines(self, node: ast.AST) -> None:
        """Take out all lines of a statement.

        Raises:
            ValueError: something else stands on these lines.
        """
        first, last = getattr(node, "lineno", 0) - 1, getattr(node, "end_lineno", 0)
        start, stop = self._span(node)
        before = self.module.source[self._starts[first] : start]
        after = self.module.source[stop : self._starts[last]].strip()
        if before.strip() or (after and not after.startswith(b"#")):
            raise ValueError(f"{self.module.name}, line {first + 1}: give the import a line of its own.")
        self._replacements.append((self._starts[first], self._starts[last], b""))

    def rename(self, names: Mapping[str, str]) -> None:
        """Replace top-level names wherever the text refers to them.

        Raises:
            ValueError: a name that is also something else here (a parameter, an attribute of a class), or that a string
                spells, so that not all of its uses can be told apart.
        """
        if not names:
            return
        for start, stop, name in self._occurrences(names):
            self._replacements.append((start, stop, names[name].encode()))

    def drop_for_bundle(self) -> None:
        """Take out the module's docstring, `from __future__` and what is for type checkers only."""
        for index, node in enumerate(self.module.tree.body):
            docstring = index == 0 and isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            if docstring or is_future(node):
                self.remove_lines(node)
        for node in ast.walk(self.module.tree):
            if isinstance(node, ast.stmt) and is_for_type_checkers(node):
                self.remove_lines(node)

    def type_fields(self) -> None:
        """Mark the classes whose annotations are values, because their module lacks the import that a bundle has."""
        if any(is_future(node) for node in self.module.tree.body):
            return
        for node in self.module.tree.body:
            if isinstance(node, ast.ClassDef) and any(isinstance(part, ast.AnnAssign) for part in node.body):
                start = self._span(node)[0]
                self._replacements.append((start, start, b"@_typed_fields\n"))

    def apply(self) -> str:
        """Return the changed text."""
        pieces, position = [], 0
        for start, stop, text in sorted(self._replacements):
            if start < position:
                raise ValueError(f"{self.module.name}: two changes of the bundler meet at byte {start}.")
            pieces += [self.module.source[position:start], text]
            position = stop
        text = b"".join([*pieces, self.module.source[position:]]).decode()
        return re.sub(r"\n{4,}", "\n\n\n", text).strip("\n")

    def _span(self, node: ast.AST) -> tuple[int, int]:
        assert isinstance(node, ast.stmt | ast.expr)
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        start = self._starts[node.lineno - 1] + node.col_offset
        return start, self._starts[node.end_lineno - 1] + node.end_col_offset

    def _occurrences(self, names: Mapping[str, str]) -> Iterator[tuple[int, int, str]]:
        docstrings = {id(node.value) for node in ast.walk(self.module.tree) if isinstance(node, ast.Expr)}
        methods = set()
        formatted: dict[tuple[int, int], list[str]] = {}
        for node in ast.walk(self.module.tree):
            if isinstance(node, ast.ClassDef):
                methods |= self._methods(node, names)
            elif isinstance(node, ast.JoinedStr):
                found = [part.id for part in ast.walk(node) if isinstance(part, ast.Name) and part.id in names]
                span = self._span(node)
                inside = any(start <= span[0] and span[1] <= stop for start, stop in formatted)
                if found and not inside:
                    formatted[span] = found
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
                for name in names:
                    if re.search(rf"\b{name}\b", node.value):
                        raise self._unclear(name, node)
            elif isinstance(node, ast.arg) and node.arg in names:
                raise self._unclear(node.arg, node)
            elif isinstance(node, ast.ExceptHandler | ast.MatchAs | ast.MatchStar) and node.name in names:
                raise self._unclear(str(node.name), node)
        for span, found in formatted.items():
            yield from self._in_formatted(span, found)
        for node in ast.walk(self.module.tree):
            if isinstance(node, ast.Name) and node.id in names:
                span = self._span(node)
                # Until Python 3.12 the positions of names inside of f-strings are not to be trusted.
                if not any(start <= span[0] < stop for start, stop in formatted):
                    yield *span, node.id
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                if node.name in names and id(node) not in methods:
                    yield *self._word(node, node.name), node.name
            elif isinstance(node, ast.Global):
                for name in node.names:
                    if name in names:
                        yield *self._word(node, name), name

    def _methods(self, owner: ast.ClassDef, names: Mapping[str, str]) -> set[int]:
        """Return the definitions in a class's body, which are attributes and keep their names."""
        definitions = {
            id(node) for node in owner.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        }
        for node in owner.body:
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            for target in targets:
                if isinstance(target, ast.Name) and target.id in names:
                    raise self._unclear(target.id, node)
        return definitions

    def _in_formatted(self, span: tuple[int, int], found: list[str]) -> Iterator[tuple[int, int, str]]:
        text = self.module.source[slice(*span)]
        places = [
            (span[0] + field.start() + word.start(), word.group().decode())
            for field in re.finditer(rb"\{[^{}]*\}", text)
            for word in re.finditer(rb"(?<![\w.])[A-Za-z_]\w*", field.group())
            if word.group().decode() in found
        ]
        if sorted(name for _, name in places) != sorted(found):
            raise ValueError(
                f"{self.module.name}: cannot tell where an f-string uses {', '.join(found)}; compute the value before."
            )
        for start, name in places:
            yield start, start + len(name), name

    def _word(self, node: ast.AST, name: str) -> tuple[int, int]:
        """Return where a statement spells a name first."""
        start, stop = self._span(node)
        match = re.search(rb"\b%s\b" % name.encode(), self.module.source[start:stop])
        assert match is not None
        return start + match.start(), start + match.end()

    def _unclear(self, name: str, node: ast.AST) -> ValueError:
        return ValueError(
            f"{self.module.name}, line {getattr(node, 'lineno', '?')}: {name!r} collides with another module's and "
            f"stands for something else here; give one of them another name."
        )
