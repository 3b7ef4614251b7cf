from __future__ import annotations

import itertools
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from tiny_study import recipe_table, tiny_recipe

from heedful.cli import main
from heedful.cli.run_folder import write_run_description
from heedful.models import decoder_config
from heedful.nn import PRESETS
from heedful.schema import to_mapping
from heedful.study.plan import make_plan
from heedful.study.recipe_file import recipe_from_mapping
from heedful.study.run_facts import arm_of, command_to_resume, mechanism_of, run_facts
from heedful.study.run_page import render_run_page, write_run_page
from heedful.study.run_plots import LARGEST_CURVE, curve, probe_curves, thinned
from heedful.train.run_state import LOCK, locked_folder
from run_folders import TOKENS_PER_BATCH, add_line, make_run, write_json

COMMIT = {"commit": "0123456789abcdef" * 2 + "01234567", "dirty": True}
VOID = {"meta", "br", "link", "img", "input", "hr"}


class Page(HTMLParser):
    """Reads a page strictly: every element is closed in turn. Keeps text and whatever would be loaded."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []
        self.loaded: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attributes:
            if name in ("src", "href") and value and not value.startswith("#"):
                self.loaded.append(value)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        pass

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & {*self.open}:
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


def page_of(folder: Path) -> Page:
    text = render_run_page(folder)
    page = Page(text)
    assert page.loaded == []
    assert re.search(r"url\((?!#)", text) is None
    assert "<script" not in text
    return page


def test_a_finished_run_is_described(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", result="finished", resumed=(40,), source=COMMIT)
    page = page_of(folder)
    text = page.text
    assert "Finished: 100 steps in 50 s." in text
    config = json.loads((folder / "config.json").read_text())
    assert config["data"]["fingerprint"] in text
    assert f"{count_parameters_by_building(config):,} parameters" in text
    assert "boosted (2 rounds)" in text
    assert "after step" in text
    assert "0123456789ab with changes" in text
    assert "step-00000100 100 2.0 KiB last, best" in text
    assert "torchrun --nproc_per_node 2 -m heedful train recipes/demo.toml --arm boosted --resume" in text
    assert "51.2 k in all" in text  # 100 steps of 512 tokens
    assert "heedful 0.1.0, torch 2.11.0" in text


def count_parameters_by_building(config: dict[str, Any]) -> int:
    from heedful.models import DecoderConfig, DecoderLM
    from heedful.schema import from_mapping

    model = DecoderLM(from_mapping(DecoderConfig, config["model"]))
    return sum(parameter.numel() for parameter in model.parameters())


def test_a_run_is_described_wherever_it_stands(tmp_path: Path) -> None:
    interrupted = make_run(tmp_path / "interrupted", done=60, result="interrupted")
    assert "Interrupted at step 60 of 100; everything up to there is saved." in page_of(interrupted).text
    stopped = make_run(tmp_path / "stopped", done=60)
    assert "Stopped at step 60 of 100" in page_of(stopped).text
    add_line(stopped, {"step": 63, "train/loss": None, "grad_norm": None, "lr": 1e-3, "diverged": 1.0})
    assert "Diverged at step 63 of 100" in page_of(stopped).text
    early = make_run(tmp_path / "early", done=0)
    assert "There is no line of metrics yet." in page_of(early).text
    with locked_folder(interrupted):
        assert "Running: step 60 of 100, about 20 s left." in page_of(interrupted).text
    with locked_folder(early):
        assert "Running: step 0 of 100." in page_of(early).text


def test_a_run_without_evaluations_or_a_model_of_ours_is_described(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", done=60)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines if "val/loss" not in x))
    config = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", {**config, "model": None})
    text = page_of(folder).text
    assert "a model of its own" in text
    assert "validation " not in text.partition("Loss")[2].partition("Training:")[0]  # no such line in the legend


def test_a_run_of_a_comparison_is_described_by_its_recipe(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "study" / "runs" / "the arm" / "lr-0.001" / "seed-1", result="finished")
    write_json(tmp_path / "study" / "recipe.json", {"recipe": {"title": "Which is better", "name": "study"}})
    assert arm_of(folder) == "the arm"
    assert "Which is better: the arm" in page_of(folder).text


def test_a_run_of_heedful_train_is_described_by_its_recipe_and_data(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", result="finished")
    write_json(folder / "recipe.json", {"recipe": {"title": "", "name": "demo"}, "arm": "mine"})
    write_json(folder / "data.json", {"facts": [["text", "four novels"]], "corpus_sha256": "abc123"})
    text = page_of(folder).text
    assert "demo: mine" in text
    assert "four novels" in text
    assert "abc123" in text


def test_what_a_folder_is_called_and_holds_is_text_and_no_page(tmp_path: Path) -> None:
    source = {**COMMIT, "diff": {"file": "source.diff", "bytes": 1, "sha256": "0"}}
    folder = make_run(tmp_path / "<b>run", done=60, resumed=(20, 40), source=source)
    (folder / "source.diff").write_text("+<script>alert(1)</script>\n")
    page = page_of(folder)
    assert "+<script>alert(1)</script>" in page.text
    assert "<b>run" in page.text
    assert page.text.count("what the source differed in") == 1  # the processes share it


def test_a_long_diff_is_shown_in_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("heedful.study.run_page.SHOWN_DIFF_CHARACTERS", 10)
    source = {**COMMIT, "diff": {"file": "source.diff", "bytes": 20, "sha256": "0"}}
    folder = make_run(tmp_path / "run", done=60, source=source)
    (folder / "source.diff").write_text("0123456789abcdefghij")
    text = page_of(folder).text
    assert "0123456789 ... 10 characters more" in text
    assert "abcdefghij" not in text


def test_a_diff_that_was_too_large_is_said(tmp_path: Path) -> None:
    source = {**COMMIT, "diff": {"file": None, "bytes": 1 << 30, "sha256": "0"}}
    text = page_of(make_run(tmp_path / "run", done=60, source=source)).text
    assert "0123456789ab + a diff too large to keep" in text


def test_resumes_are_dotted_lines_in_every_picture(tmp_path: Path) -> None:
    def dotted(resumed: tuple[int, ...]) -> list[int]:
        folder = make_run(tmp_path / f"run{len(resumed)}", resumed=resumed, probes=True)
        pictures = re.findall(r"<svg.*?</svg>", render_run_page(folder), re.S)
        return [picture.count("stroke-dasharray") for picture in pictures]

    without, with_two = dotted(()), dotted((20, 60))
    assert len(without) == 4  # losses, rates, two quantities of probes
    assert without == [0, 0, 0, 0]
    assert with_two == [2, 6, 2, 2]  # rates have three panels


def test_probes_have_a_picture_for_each_quantity_and_a_line_for_each_place() -> None:
    names = [*(f"probe/{layer}/logit_max" for layer in range(13)), "probe/logit_max", "probe/2/round_1/gate_mean"]
    lines = [{"step": step, **dict.fromkeys(names, step / 2)} for step in (10, 20)]
    pictures = {picture["title"]: picture for picture in probe_curves(lines, ())}
    assert list(pictures) == ["logit max", "gate mean"]
    legend = pictures["logit max"]["lines"]
    assert [name for name, _, _ in legend] == [*(f"layer {layer}" for layer in range(13)), "whole model"]
    assert len({(colour, dashed) for _, colour, dashed in legend}) == 14
    assert [name for name, _, _ in pictures["gate mean"]["lines"]] == ["layer 2 round 1"]


def test_curves_leave_out_what_is_not_finite() -> None:
    lines = [{"step": 1, "a": 1.0}, {"step": 2, "a": None}, {"step": 3, "b": 2.0}, {"step": 4, "a": float("inf")}]
    assert curve(lines, "a") == [(1, 1.0)]


@pytest.mark.parametrize("length", [0, 1, LARGEST_CURVE, LARGEST_CURVE + 1, 7 * LARGEST_CURVE, 7 * LARGEST_CURVE + 3])
def test_long_curves_are_drawn_from_groups(length: int) -> None:
    points = [(step, float(step % 17)) for step in range(1, length + 1)]
    few, peaks = thinned(points), thinned(points, max)
    assert len(few) == len(peaks) <= LARGEST_CURVE
    if not points:
        return
    assert few[-1][0] == peaks[-1][0] == length
    ends = [0, *(int(step) for step, _ in few)]
    sizes = [end - start for start, end in itertools.pairwise(ends)]
    assert sum(size * value for size, (_, value) in zip(sizes, few, strict=True)) == pytest.approx(
        sum(value for _, value in points)
    )
    assert max(value for _, value in peaks) == max(value for _, value in points)


@pytest.mark.parametrize("preset", list(PRESETS))
def test_every_preset_has_a_name_from_its_configuration(preset: str) -> None:
    config = decoder_config(preset, vocab_size=8, hidden_size=32, num_layers=2, num_heads=4, max_positions=8)
    name = mechanism_of({"model": json.loads(json.dumps(to_mapping(config)))})
    layer = config.layers[0]
    plain = layer.query.kind == "linear" and layer.rule.kind == "standard" and layer.boosting is None
    assert (name == "standard") == plain


def test_layers_of_two_kinds_are_both_named() -> None:
    config = decoder_config(
        {1: "boosted+multi-token"}, vocab_size=8, hidden_size=32, num_layers=2, num_heads=4, max_positions=8
    )
    assert mechanism_of({"model": to_mapping(config)}) == "standard / boosted (2 rounds) + multi-token"
    assert mechanism_of({}) == mechanism_of({"model": 3}) == "a model of its own"


def test_the_command_to_go_on() -> None:
    def said(command: str | None, **fields: Any) -> str | None:
        return command_to_resume({"command": command, **fields})

    assert said("heedful train a.toml") == "heedful train a.toml --resume"
    assert said("heedful train 'a b.toml' --resume") == "heedful train 'a b.toml' --resume"
    assert said("__main__.py compare a.toml") == "heedful compare a.toml"
    assert said("heedful train a.toml", processes=4) == "torchrun --nproc_per_node 4 -m heedful train a.toml --resume"
    for other in (None, "", "my_script.py --x", "heedful", "heedful evaluate x"):
        assert said(other) is None


def test_facts_of_a_run(tmp_path: Path) -> None:
    facts = run_facts(make_run(tmp_path / "run", done=60, resumed=(20, 40)))
    assert facts.resumes == (20, 40)
    assert len(facts.processes) == 3
    assert facts.recipe is facts.arm is None
    assert [(item.name, item.step, item.bytes) for item in facts.checkpoints] == [("step-00000060", 60, 2048)]
    assert facts.config["data"]["tokens_per_batch"] == TOKENS_PER_BATCH


def test_the_page_goes_where_it_shall(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_run(tmp_path / "run", result="finished")
    assert write_run_page(folder) == folder / "report.html"
    assert main(["report", str(folder), "--output", str(tmp_path / "page.html")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'page.html'}\n"
    Page((tmp_path / "page.html").read_text())


@pytest.mark.parametrize(
    "kind", ["missing", "damaged", "not started", "several runs", "a folder as output", "an override"]
)
def test_wrong_input_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    folder = make_run(tmp_path / "run", done=40)
    arguments = ["report", str(folder)]
    if kind == "missing":
        arguments, said = ["report", str(tmp_path / "gone")], "there is no folder"
    elif kind == "damaged":
        (folder / "config.json").write_text("{")
        said = "cannot be shown: "
    elif kind == "not started":
        (tmp_path / "new").mkdir()
        (tmp_path / "new" / LOCK).touch()
        arguments, said = ["report", str(tmp_path / "new")], "holds no run that has started"
    elif kind == "several runs":
        arguments, said = ["report", str(tmp_path)], f"is no run but holds some, such as {folder}"
    elif kind == "a folder as output":
        arguments, said = [*arguments, "--output", str(tmp_path)], "is a folder; give the file"
    else:
        arguments, said = [*arguments, "--train.steps", "5"], "reads no recipe"
    assert main(arguments) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert re.fullmatch(rf"heedful: .*{said}.*\n", output.err)
    assert not (folder / "report.html").exists()


def test_runs_are_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path / "one", result="finished")
    killed = make_run(tmp_path / "[bold]two", done=60, preset="multi-token")
    make_run(tmp_path / "study" / "runs" / "arm" / "lr-0.001" / "seed-1", done=40, result="interrupted")
    write_json(tmp_path / "study" / "recipe.json", {"recipe": {"name": "study"}})
    make_run(tmp_path / "three", done=20)
    (tmp_path / "three" / "config.json").write_text("{")
    with locked_folder(killed):
        assert main(["runs", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    rows = {line.split("  ")[0].strip(): line for line in shown.splitlines()}
    assert re.search(r"finished +100/100 .* 1.10 k +boosted \(2 rounds\)", rows["one"])
    assert re.search(r"running +60/100 +20 s .* multi-token", rows["[bold]two"])
    assert re.search(r"interrupted +40/100 .* arm: boosted \(2 rounds\)", rows["study/runs/arm/lr-0.001/seed-1"])
    assert re.search(r"three +damaged", rows["three"])
    assert f"{tmp_path / 'three'}: {tmp_path / 'three' / 'config.json'} is damaged" in shown
    assert main(["runs", str(tmp_path), "--json"]) == 0
    listed = {Path(run["folder"]).name: run for run in json.loads(capsys.readouterr().out)}
    assert listed["one"]["state"] == "finished"
    assert listed["one"]["mechanism"] == "boosted (2 rounds)"
    assert listed["[bold]two"]["state"] == "stopped"  # the lock is gone
    assert listed["three"]["reason"].endswith("line 1 column 2 (char 1).")


def test_no_runs_are_no_error_and_no_folder_is_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"There are no runs in {tmp_path}.\n"
    assert main(["runs", str(tmp_path / "gone")]) == 2
    assert "there is no folder" in capsys.readouterr().err


def test_a_run_says_what_its_data_are(tmp_path: Path) -> None:
    plan = make_plan(tiny_recipe(tmp_path), lambda line: None)
    write_run_description(tmp_path / "run", plan, plan.baseline, 1)
    data = json.loads((tmp_path / "run" / "data.json").read_text())
    assert data["manifest"]["splits"].keys() == {"train", "valid", "test"}
    for name, split in data["manifest"]["splits"].items():
        assert split["tokens_sha256"] == data["tokens_sha256"][name]
    assert [name for name, _ in data["facts"]] == ["text", "splits", "tokenizer"]


def test_a_run_on_made_up_samples_says_what_they_are(tmp_path: Path) -> None:
    table = recipe_table(tmp_path, task={"kind": "find-the-block", "block_length": 2, "num_blocks": 2})
    table.pop("data")
    table["train"].pop("context_length")
    plan = make_plan(recipe_from_mapping(table), lambda line: None)
    write_run_description(tmp_path / "run", plan, plan.baseline, 1)
    data = json.loads((tmp_path / "run" / "data.json").read_text())
    assert data["task"] == "find the block"
    assert "manifest" not in data
