"""Every recipe that is shipped: its shapes, counts and token budgets, and that it fits its hardware."""

from __future__ import annotations

import functools
import json
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_study import write_corpus

from heedful.cli import main
from heedful.schema import to_mapping
from heedful.study.estimate import RecipeEstimate, estimate_recipe, largest_micro_batch
from heedful.study.recipe import FindTheBlockTask, Recipe
from heedful.study.recipe_file import load_recipe
from heedful.train.optimisation import learning_rate

RECIPES = Path(__file__).parents[2] / "recipes"
PATHS = sorted([*RECIPES.glob("*.toml"), *RECIPES.glob("papers/*.toml")])
PAPERS = sorted(RECIPES.glob("papers/*.toml"))
MULTI_TOKEN = ("300m", "550m", "880m", "1b")


@functools.cache
def recipe(name: str) -> Recipe:
    return load_recipe(RECIPES / "papers" / f"{name}.toml")


@functools.cache
def estimate(name: str) -> RecipeEstimate:
    return estimate_recipe(recipe(name), search=False)


def parameters(name: str) -> dict[str, int]:
    return {arm.name: arm.parameters for arm in estimate(name).arms}


@pytest.mark.parametrize("path", PAPERS, ids=lambda path: path.stem)
def test_a_papers_recipe_is_named_as_its_file_and_says_its_hardware(path: Path) -> None:
    found = load_recipe(path)
    assert found.name == path.stem
    assert found.title
    assert found.hardware is not None
    assert found.train.batch_size % found.hardware.gpus == 0


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_every_arm_fits_the_memory_of_its_hardware(path: Path) -> None:
    result = estimate_recipe(load_recipe(path), search=False)
    for arm in result.arms:
        assert arm.fits, (arm.name, arm.memory)
        assert 0 < arm.memory.tensors < arm.memory.total <= result.gpu.memory_bytes
        assert arm.memory_with_recomputation.activations <= arm.memory_without_recomputation.activations
        assert arm.tokens == arm.train.steps * arm.train.batch_size * arm.train.context_length


def test_the_models_of_the_boosted_paper() -> None:
    assert parameters("boosted-small") == {
        "standard": 7_419_392,
        "twicing": 7_419_392,
        "standard-wide": 8_789_184,
        "boosted": 8_734_208,
        "boosted-input-kv": 8_734_208,
        "standard-post-norm": 7_419_392,
        "standard-wide-post-norm": 8_789_184,
        "boosted-post-norm": 8_734_208,
    }
    train = recipe("boosted-small").train
    assert train.steps == 15 * (39_062 // 32)
    assert 10_000_000 // 256 == 39_062
    assert train.context_length == 256 - 1


def test_the_fuller_recipe_of_the_boosted_paper_has_the_same_models_and_schedule() -> None:
    fuller = load_recipe(RECIPES / "language-models.toml")
    same = recipe("boosted-small")
    assert (fuller.train, fuller.data.tokenizer, fuller.data.max_train_tokens, fuller.model) == (
        same.train, same.data.tokenizer, same.data.max_train_tokens, same.model
    )  # fmt: skip
    counted = {arm.name: arm.parameters for arm in estimate_recipe(fuller, search=False).arms}
    assert counted.items() >= {"standard-wide": 8_789_184, "standard-deep": 8_998_912, "boosted": 8_734_208}.items()


SHORTER = {"steps", "evaluate_every", "precision", "schedule"}


def test_one_epoch_has_the_arms_and_the_model_of_the_full_recipe() -> None:
    full, one = load_recipe(RECIPES / "language-models.toml"), load_recipe(RECIPES / "language-models-one-epoch.toml")
    assert [replace(arm, further_seeds=()) for arm in one.arms] == [replace(arm, further_seeds=()) for arm in full.arms]
    assert [len(arm.further_seeds) for arm in one.arms] == [len(arm.further_seeds) for arm in full.arms]
    assert full.model == {**one.model, "dropout": 0.1}
    assert (one.data, one.task, one.baseline, one.budget) == (full.data, full.task, full.baseline, full.budget)
    assert {name for name in to_mapping(one.train) if getattr(one.train, name) != getattr(full.train, name)} == SHORTER
    assert full.train.steps == 15 * one.train.steps
    assert one.train.steps == 10_000_000 // 256 // 32
    assert one.train.schedule == replace(full.train.schedule, warmup_steps=one.train.steps // 10)
    assert one.train.precision == "bfloat16"


def test_the_small_recipe_has_the_arms_of_the_others_but_for_the_control_of_all_three() -> None:
    one, small = (load_recipe(RECIPES / f"language-models-{size}.toml") for size in ("one-epoch", "small"))
    names = {arm.name: arm for arm in one.arms} | {"standard-deep-all-three": one.arm("standard-wide-all-three")}
    assert len(small.arms) == len(one.arms) == 20
    for mine, theirs in zip(small.arms, one.arms, strict=True):
        assert names[mine.name] is theirs
        assert (mine.attention, mine.model, mine.further_seeds) == (
            theirs.attention,
            theirs.model,
            theirs.further_seeds,
        )
        matched = [None if arm.match is None else (arm.match.arm, arm.match.by) for arm in (mine, theirs)]
        assert matched[0] == matched[1]
    assert (small.seeds, small.baseline, small.budget) == (one.seeds, one.baseline, one.budget)


PUBLISHED_WITHOUT_EMBEDDINGS = {
    "linear": 84_953_856,
    "linear-qk-norm": 84_953_856 + 12 * 2 * 64,
    "linear-wide": 95_570_688,
    "nonlinear": 84_972_288,
    "nonlinear-qk-norm": 84_972_288 + 12 * 2 * 64,
    "control": 84_972_288,
    "identity": 77_875_968,
    "identity-wide": 84_953_856,
}


@pytest.mark.parametrize("name", ["nonlinear-query-small", "nonlinear-query-sweep"])
def test_the_models_of_the_nonlinear_paper(name: str) -> None:
    for arm in estimate(name).arms:
        assert arm.parameters_without_embeddings == PUBLISHED_WITHOUT_EMBEDDINGS[arm.name], arm.name
    padding = (50_304 - 50_257) * 768
    assert parameters(name)["linear"] == 124_373_760 - padding
    assert parameters(name)["identity"] == 117_295_872 - padding


@pytest.mark.parametrize("name", ["nonlinear-query-small", "nonlinear-query-sweep"])
def test_the_budget_and_the_schedule_of_the_nonlinear_paper(name: str) -> None:
    found = estimate(name).arms[0]
    assert found.tokens_per_step == 491_520
    assert found.tokens == 491_520 * 60_002
    assert found.micro_batch == 12
    train = found.train
    for step in (0, 1000, 1999):
        rate = learning_rate(step, train.steps, train.optimizer, train.schedule)
        assert rate == pytest.approx(train.optimizer.learning_rate * (step + 1) / 2001, rel=1e-12)


def test_the_learning_rates_of_the_nonlinear_paper() -> None:
    small = recipe("nonlinear-query-small")
    rates = {arm.name: small.rates(arm) for arm in small.arms}
    assert rates["linear"] == (6e-4,)
    assert rates["linear-wide"] == pytest.approx((6e-4 / 1.125**0.5, 6e-4), rel=1e-6)
    assert rates["nonlinear"] == (8e-4, 2.4e-3, 3.6e-3, 4e-3)
    sweep = recipe("nonlinear-query-sweep")
    assert len({sweep.rates(arm) for arm in sweep.arms}) == 1
    assert [arm.runs for arm in estimate("nonlinear-query-sweep").arms] == [5 + 2] * 8


@pytest.mark.parametrize(
    ("size", "standard", "differential", "talking", "first", "second"),
    [
        ("300m", 388_277_248, 7_680, 10_240, 7_200, 23_380),
        ("550m", 651_818_240, 18_432, 4_800, 7_512, 18_888),
        ("880m", 876_553_728, 13_824, 12_288, 9_408, 29_592),
        ("1b", 1_495_894_016, 18_432, 12_288, 10_176, 31_128),
    ],
)
def test_the_models_of_the_multi_token_paper(
    size: str, standard: int, differential: int, talking: int, first: int, second: int
) -> None:
    assert parameters(f"multi-token-{size}") == {
        "standard": standard,
        "differential": standard + differential,
        "talking-heads": standard + talking,
        "multi-token-v1": standard + first,
        "multi-token": standard + second,
    }


@pytest.mark.parametrize(("length", "blocks", "kernels"), [(5, 52, 144), (8, 34, 240)])
def test_find_the_block_of_the_multi_token_paper(length: int, blocks: int, kernels: int) -> None:
    """The standard model has 3,418,368 parameters; the toy form adds 2 x (2 length - 1) for each head of each layer."""
    kernel = "arms.multi-token-toy.attention.rule.key_kernel_size"
    changes = {"task.block_length": length, kernel: 2 * length - 1}
    found = load_recipe(RECIPES / "papers" / "find-the-block.toml", changes)
    counted = {arm.name: arm.parameters for arm in estimate_recipe(found, search=False).arms}
    assert counted["standard"] == counted["twicing"] == 3_418_368
    assert counted["multi-token-toy"] == 3_418_368 + kernels
    assert isinstance(found.task, FindTheBlockTask)
    assert found.task.resolved_num_blocks == blocks
    assert found.train.context_length == 320
    assert (found.train.steps, found.train.batch_size, found.seeds) == (100_000, 64, (42, 43, 44))
    for step in (0, 50_000, 99_999):
        assert (
            learning_rate(step, 100_000, found.train.optimizer, found.train.schedule)
            == found.train.optimizer.learning_rate
        )


@pytest.mark.parametrize("size", MULTI_TOKEN)
def test_the_budget_of_the_multi_token_paper(size: str) -> None:
    found = estimate(f"multi-token-{size}")
    largest = size == "1b"
    for arm in found.arms:
        assert arm.tokens_per_step == (524_288 if largest else 262_144)
        assert arm.train.steps == (200_000 if largest else 400_000)
        assert arm.tokens == 104_857_600_000
        assert arm.train.schedule.warmup_steps == (187 if largest else 375)
        assert arm.micro_batch == 4
    assert (found.gpus, found.strategy, found.shard_size) == (64, "fsdp2", 64) if largest else (32, "fsdp2", 32)


@pytest.mark.parametrize("size", MULTI_TOKEN)
def test_the_mixture_of_the_multi_token_paper(size: str) -> None:
    sources = recipe(f"multi-token-{size}").data.sources
    assert len(sources) == 7
    assert sum(source.weight for source in sources) == pytest.approx(1)
    for source in sources:
        assert source.max_tokens == round(source.weight * 104_857_600_000)


@pytest.mark.parametrize("size", MULTI_TOKEN)
def test_the_multi_token_recipes_differ_in_their_sizes_only(size: str) -> None:
    here, other = recipe(f"multi-token-{size}"), recipe("multi-token-880m")
    assert here.data == other.data
    assert here.arms == other.arms
    assert here.train.optimizer == other.train.optimizer
    sizes = ("hidden_size", "num_layers", "num_heads")
    assert {**here.model, **dict.fromkeys(sizes)} == {**other.model, **dict.fromkeys(sizes)}


@pytest.mark.parametrize("gpus", [8, 16, 64])
def test_the_published_880m_model_fits_on_8_to_64_gpus(gpus: int) -> None:
    found = estimate_recipe(recipe("multi-token-880m"), gpus=gpus, arms=("standard", "multi-token"), search=False)
    assert all(arm.fits for arm in found.arms)


@pytest.mark.parametrize("path", PAPERS, ids=lambda path: path.stem)
def test_a_dry_run_accepts_every_arm(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a small text in place of the corpus, on the CPU; models have their own shapes, and no weights."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HEEDFUL_CACHE", str(tmp_path / "cache"))
    text = str(write_corpus(tmp_path))
    changes = {
        "data": {"corpus": text, "tokenizer": "bytes", "valid_fraction": 0.1, "test_fraction": 0.1},
        "train": {"device": "cpu", "precision": "float32", "context_length": 64, "batch_size": 8, "accumulation": 1},
    }
    arguments = [f"--{table}.{key}={value}" for table, values in changes.items() for key, value in values.items()]
    arguments += ["--data.max_eval_tokens=1000", "--data.sources=[]", "--train.parallel.strategy=single"]
    found = load_recipe(path)
    if found.data.valid_corpus is not None:
        arguments += [f"--data.valid_corpus={text}", f"--data.test_corpus={text}"]
    if found.task.kind == "find-the-block":  # makes its own samples
        arguments = ["--train.device=cpu", "--train.precision=float32"]
    for arm in (found.arms[0], found.arms[-1]):
        rate = str(found.rates(arm)[0])
        assert main(["train", str(path), "--arm", arm.name, "--learning-rate", rate, "--dry-run", *arguments]) == 0
        assert f"{found.train.steps:,} steps" in capsys.readouterr().out


def test_the_command_prints_one_arm_as_json_and_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    path = str(RECIPES / "papers" / "multi-token-880m.toml")
    assert main(["estimate", path, "--arm", "standard", "--json", "--gpus", "64"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["gpus"], found["strategy"], found["gpu"]) == (64, "fsdp2", "H200")
    (arm,) = found["arms"]
    assert arm["parameters"] == 876_553_728
    assert arm["estimated_gpu_hours"] == pytest.approx(64 * arm["estimated_hours"])
    parts = ("weights", "optimizer", "average", "gradients", "gathered", "communication", "activations", "working")
    assert arm["memory"]["total"] == sum(arm["memory"][part] for part in (*parts, "margin"))
    hours = arm["training_flops"] / (64 * 989e12 * found["assumed_utilisation"]) / 3600
    assert arm["estimated_hours"] == pytest.approx(hours)
    assert arm["micro_batch"] == 2
    assert arm["largest_micro_batch"] > 2
    assert main(["estimate", path, "--arm", "standard", "--train.parallel.strategy", "ddp"]) == 0
    shown = capsys.readouterr().out
    assert "32 x H200, ddp" in shown
    assert "an assumption" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpu", "V9"], "unknown GPU 'V9'"),
        (["--gpus", "0"], "at least 1"),
        (["--gpus", "500"], "more than the 128 sequences"),
        (["--arm", "multitoken"], "Did you mean 'multi-token'"),
        (["--utilisation", "2"], "at most 1"),
        (["--train.parallel.strategy", "single"], "'single'"),
    ],
)
def test_wrong_input_is_one_sentence(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["estimate", str(RECIPES / "papers" / "multi-token-880m.toml"), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("room", [0, 9, 10, 99, 1000, 10_000])
def test_the_largest_micro_batch_is_the_last_that_fits(room: int) -> None:
    def needed(sequences: int) -> int:
        return 7 + 3 * sequences + max(0, 5 * (sequences - 20))  # a second thing grows later on

    fitting = [sequences for sequences in range(1, 4097) if needed(sequences) <= room]
    assert largest_micro_batch(needed, room) == (fitting[-1] if fitting else 0)
