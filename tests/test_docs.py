"""The documentation is true: examples run and print what they say, commands and recipes are understood, links lead
somewhere.

The `python` blocks of a page run in order in one namespace, in an empty folder that sees the repository's recipes.
Where a comment stands beside or right below a `print(...)`, the comment is what must be printed. A block is left out
only under a line `<!-- not run: reason -->`, which readers of the source see.
"""

import ast
import contextlib
import io
import re
import shlex
import tomllib
from pathlib import Path

import pytest
import tyro

import heedful
import heedful.convert.queries
import heedful.hf
from heedful.cli import Command
from heedful.cli.overrides import split_overrides
from heedful.nn import PRESETS
from heedful.study.arms import arm_config
from heedful.study.recipe_file import load_recipe

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
MECHANISM_PAGES = sorted((DOCS / "mechanisms").glob("*.md"))
FENCE = re.compile(
    r"^(?:<!-- not run: (?P<reason>.+) -->\n)?```(?P<language>\w*)[^\n]*\n(?P<text>.*?)^```$", re.M | re.S
)
LINK = re.compile(r"!?\[[^\]]*\]\((?P<target>[^)\s]+)\)")
COMMANDS = (
    "compare",
    "train",
    "prepare",
    "estimate",
    "range-test",
    "bench",
    "runs",
    "report",
    "evaluate",
    "generate",
    "export",
    "convert",
    "claims",
    "info",
)


def blocks(page, language):
    return [match for match in FENCE.finditer(page.read_text(encoding="utf-8")) if match["language"] == language]


def line_of(page, match):
    return page.read_text(encoding="utf-8").count("\n", 0, match.start("text")) + 1


def name_of(page):
    return page.relative_to(ROOT).as_posix()


def pages_with(language):
    return [pytest.param(page, id=name_of(page)) for page in PAGES if blocks(page, language)]


def prose(page):
    """The page without its code blocks."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def run(source, first_line, page, namespace):
    """Execute statement by statement, and compare what a commented print writes with its comment."""
    lines = ["", *["\n"] * (first_line - 1), *source.splitlines()]  # by line number in the page
    for statement in ast.parse("\n" * (first_line - 1) + source).body:
        code = compile(ast.Module([statement], type_ignores=[]), name_of(page), "exec")
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(code, namespace)
        beside = lines[statement.end_lineno].encode()[statement.end_col_offset :].decode().strip()
        below = "".join(lines[statement.end_lineno + 1 : statement.end_lineno + 2])
        comment = beside or below
        if ast.unparse(statement).startswith("print(") and comment.startswith("#"):
            expected = comment.removeprefix("#").strip()
            assert printed.getvalue().strip() == expected, f"{name_of(page)}:{statement.lineno}"


@pytest.mark.parametrize("page", pages_with("python"))
def test_examples_run_and_print_what_they_say(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    namespace = {}
    for match in blocks(page, "python"):
        if match["reason"] is None:
            run(match["text"], line_of(page, match), page, namespace)


@pytest.mark.parametrize("page", pages_with("toml"))
def test_recipes_in_the_documentation_are_accepted(page, tmp_path):
    for number, match in enumerate(blocks(page, "toml")):
        if "[[arms]]" in match["text"] and "seeds" in match["text"]:
            file = tmp_path / f"{number}.toml"
            file.write_text(match["text"], encoding="utf-8")
            recipe = load_recipe(file)
            for arm in recipe.arms:
                arm_config(recipe, arm, vocab_size=512, max_positions=recipe.train.context_length)
        else:
            tomllib.loads(match["text"])


def commands():
    for page in PAGES:
        for match in blocks(page, "console"):
            for number, line in enumerate(match["text"].splitlines(), start=line_of(page, match)):
                if line.startswith("$ "):
                    for part in line.removeprefix("$ ").split(" | "):
                        yield pytest.param(part, id=f"{name_of(page)}:{number}")


@pytest.mark.parametrize("command", list(commands()))
def test_commands_in_the_documentation_are_understood(command):
    words = shlex.split(command, comments=True)
    if words[0] == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
        assert words[1] in targets
    if words[0] != "heedful":
        return
    plain, overrides = split_overrides(words[1:])
    arguments = tyro.cli(
        Command, prog="heedful", args=plain, config=(tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes)
    )
    recipe = getattr(arguments, "recipe", None)
    if recipe is not None and recipe.parts[0] == "recipes":
        load_recipe(ROOT / recipe, overrides)


def test_commands_named_in_the_text_exist():
    for page in PAGES:
        for command in re.findall(r"`heedful ([a-z][a-z-]*)", prose(page)):
            assert command in COMMANDS, (name_of(page), command)


@pytest.mark.parametrize("preset", list(PRESETS))
def test_every_preset_has_a_page_that_names_it(preset):
    assert any(f"`{preset}`" in page.read_text(encoding="utf-8") for page in MECHANISM_PAGES)


@pytest.mark.parametrize("page", [pytest.param(page, id=name_of(page)) for page in PAGES])
def test_internal_links_lead_somewhere(page):
    for match in LINK.finditer(prose(page)):
        if re.match(r"[a-z]+:", match["target"]):
            assert match["target"].startswith("https://"), match["target"]
            continue
        path, _, anchor = match["target"].partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{name_of(page)}: {match['target']}"
        if DOCS in page.parents:
            assert target.is_relative_to(DOCS), f"{name_of(page)}: {match['target']} is not part of the built pages"
        if anchor:
            assert anchor in anchors(target), f"{name_of(page)}: {match['target']}"


def anchors(page):
    """The anchors that headings get, by the rule of Python-Markdown and of GitHub for plain headings."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.M)
    cleaned = (re.sub(r"[^\w\s-]", "", heading).strip().lower() for heading in headings)
    return {re.sub(r"[-\s]+", "-", heading) for heading in cleaned}


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:\n")[2]
    assert sorted(re.findall(r"[\w/-]+\.md", navigation)) == sorted(
        page.relative_to(DOCS).as_posix() for page in PAGES[1:]
    )


def test_pages_fetch_nothing_from_other_hosts():
    assert re.search(r"^  font: false$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.M)
    for page in PAGES:
        assert not re.search(r"<(script|link|img|iframe)\b|!\[[^\]]*\]\(https?:", prose(page)), name_of(page)


@pytest.mark.parametrize(
    "module",
    [heedful, heedful.ops, heedful.nn, heedful.models, heedful.hf, heedful.convert.queries],
    ids=lambda module: module.__name__,
)
def test_the_whole_public_interface_is_on_the_api_page(module):
    text = (DOCS / "api.md").read_text(encoding="utf-8")
    listed = {identifier.rpartition(".")[2] for identifier in re.findall(r"^::: (\S+)$", text, re.M)}
    public = {name for name, value in vars(module).items() if not name.startswith("_") and not is_module(value)}
    assert public <= listed, sorted(public - listed)


def is_module(value):
    return type(value) is type(heedful)
