"""`import heedful` needs torch alone, and so does everything that computes."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "heedful"

SCRIPT = """
import importlib.metadata, json, sys
import torch

torch.set_num_threads(1)

# torch imports sympy only when it first needs symbolic shapes, for instance on the meta device.
torchs_own = {name.partition(".")[0] for name in sys.modules} | {"sympy", "mpmath"}
blocked = set(importlib.metadata.packages_distributions()) - torchs_own - {"heedful"}
assert {"safetensors", "tokenizers", "jaxtyping", "matplotlib", "scipy", "rich"} <= blocked
sys.modules.update(dict.fromkeys(blocked))  # None makes every import of them fail
import heedful

loaded = sorted(name for name in sys.modules if name.partition(".")[0] == "heedful")
tokens = torch.randint(32, (2, 5))
for name in heedful.PRESETS:
    config = heedful.decoder_config(
        name, vocab_size=32, num_layers=3, max_positions=16, hidden_size=16, num_heads=4, rotary=heedful.nn.Rotary()
    )
    model = heedful.DecoderLM(config)
    model(tokens, heedful.AttentionMask(document_ids=torch.zeros_like(tokens)))[0].sum().backward()
    assert model.generate(tokens, 2, temperature=1.0, top_k=3, top_p=0.9).shape == (2, 7)
    heedful.explain(config.layers[0])
    from heedful.models.counting import count_parameters
    from heedful.models.probes import probe
    from heedful.schema import from_mapping, to_mapping

    assert count_parameters(config).total == sum(p.numel() for p in model.parameters())
    assert from_mapping(heedful.DecoderConfig, to_mapping(config)) == config
    probe(model, tokens)
from heedful.convert import official
from heedful.support import support_table

support_table()
print(json.dumps(loaded))
"""


COMPUTING = {"ops", "nn", "models", "schema", "files", "explain"}


def test_everything_that_computes_works_without_any_other_package():
    """In a fresh interpreter; and data, training and studies are not even loaded."""
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", SCRIPT],
        capture_output=True, text=True, check=False, env={"PYTHONPATH": str(PACKAGE.parent), "PATH": ""},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    loaded = json.loads(result.stdout)
    assert {name.split(".")[1] for name in loaded if "." in name} <= COMPUTING


def top_level_imports(node):
    """Imports that run with the module: not those of functions, nor under `if TYPE_CHECKING`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        if isinstance(child, ast.If) and ast.unparse(child.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            continue
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            yield child.module or ""
        else:
            yield from top_level_imports(child)


def test_no_module_that_computes_names_another_package_at_its_top():
    """torch may bring numpy along, so blocking cannot see whether we ask for it too: the source can."""
    allowed = {"torch", "heedful", "__future__", *sys.stdlib_module_names}
    sources = [file for name in COMPUTING for file in (*PACKAGE.glob(f"{name}.py"), *(PACKAGE / name).rglob("*.py"))]
    assert len(sources) > 30
    for source in (PACKAGE / "__init__.py", *sources):
        names = {"triton"} if source.name.startswith("triton_") else set()  # loaded when its backend runs, see below
        for imported in top_level_imports(ast.parse(source.read_text(encoding="utf-8"))):
            assert imported.partition(".")[0] in allowed | names, f"{source} imports {imported}"


ORDER = ("schema", "files", "ops", "nn", "models", "explain", "convert", "data", "tasks", "train", "study", "hf", "cli")


@pytest.mark.parametrize("lower", ["ops", "nn", "models", "convert", "data", "tasks", "train", "study", "hf"])
def test_imports_go_downward_only(lower):
    """Also inside functions: a lower layer never knows of a higher one."""
    higher = set(ORDER[ORDER.index(lower) + 1 :])
    for source in (PACKAGE / lower).rglob("*.py"):
        for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("heedful."):
                part = node.module.split(".")[1]
                assert part not in higher, f"{lower}/{source.name} imports {node.module}"
