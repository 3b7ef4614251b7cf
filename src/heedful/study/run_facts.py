"""What a run's folder says the run is: arm, mechanism, size, data, processes, checkpoints, and how to go on with it.

Where the run stands is `heedful.train.run_state`'s matter.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from heedful.models import DecoderConfig
from heedful.models.counting import count_parameters
from heedful.schema import from_mapping
from heedful.train.run_folder import read_json


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint on disk; `roles` are "last" and "best"."""

    name: str
    step: int | None
    bytes: int
    roles: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """What a run is, as its folder says.

    Attributes:
        config: config.json.
        recipe: the recipe it comes from in plain form, None for a run without one.
        arm: the arm of that recipe.
        mechanism: what its attention layers are.
        parameters: of the model, None where it is not a `DecoderConfig` of this version.
        data: what data.json says of the data; empty where there is none.
        processes: environment.json, an entry for each process, in order; "from_step" is where it went on from.
        checkpoints: those on disk, by step.
    """

    config: dict[str, Any]
    recipe: dict[str, Any] | None
    arm: str | None
    mechanism: str
    parameters: int | None
    data: dict[str, Any]
    processes: tuple[dict[str, Any], ...]
    checkpoints: tuple[Checkpoint, ...]

    @property
    def resumes(self) -> tuple[int, ...]:
        """The steps that a process went on from."""
        return tuple(process["from_step"] for process in self.processes[1:])


def run_facts(folder: Path) -> RunFacts:
    """Return what the folder of a run says of it.

    Raises:
        ValueError: a file is missing or damaged.
    """
    config = read_json(folder / "config.json")
    description = _recipe_of(folder)
    environment = _read_if_there(folder / "environment.json")
    return RunFacts(
        config=config,
        recipe=description.get("recipe"),
        arm=arm_of(folder),
        mechanism=mechanism_of(config),
        parameters=_parameters(config),
        data=_read_if_there(folder / "data.json"),
        processes=(environment, *environment.get("resumed", [])) if environment else (),
        checkpoints=tuple(_checkpoints(folder / "checkpoints")),
    )


def comparison_of(folder: Path) -> Path | None:
    """Return the folder of the comparison that a run belongs to; it lies in COMPARISON/runs/ARM/lr-RATE/seed-SEED."""
    above = folder.resolve().parents
    return above[3] if len(above) > 3 and above[2].name == "runs" and (above[3] / "recipe.json").is_file() else None


def arm_of(folder: Path) -> str | None:
    """Return the arm of its recipe that a run is, None for a run without a recipe or a damaged one."""
    if comparison_of(folder) is not None:
        return folder.resolve().parents[1].name
    try:
        arm = _recipe_of(folder).get("arm")
    except ValueError:
        return None
    return arm if isinstance(arm, str) else None


def mechanism_of(config: Mapping[str, Any]) -> str:
    """Return what the attention layers of the model in a config.json are: their parts that are not standard."""
    model = config.get("model")
    attention = model.get("attention") if isinstance(model, Mapping) else None
    layers = attention if isinstance(attention, list) else [attention]
    names = [_attention_name(layer) for layer in layers if isinstance(layer, Mapping)]
    return " / ".join(dict.fromkeys(names)) or "a model of its own"


def command_to_resume(process: Mapping[str, Any]) -> str | None:
    """Return the command that goes on with a run that a command of heedful started, None for other programs."""
    words = shlex.split(process.get("command") or "")
    if len(words) < 2 or words[1] not in ("train", "compare") or words[0] not in ("heedful", "__main__.py"):
        return None
    if words[1] == "train":
        if "--checkpoint" in words:  # it was where that process went on from; there are later ones now
            place = words.index("--checkpoint")
            del words[place : place + 2]
        if "--resume" not in words:
            words.append("--resume")
    several = process.get("processes") or 1
    starter = ["torchrun", "--nproc_per_node", str(several), "-m", "heedful"] if several > 1 else ["heedful"]
    return shlex.join([*starter, *words[1:]])


def _attention_name(attention: Mapping[str, Any]) -> str:
    query, rule = (_kind(attention.get(part)) for part in ("query", "rule"))
    boosting = attention.get("boosting")
    parts = [f"boosted ({boosting['rounds']} rounds)"] if isinstance(boosting, Mapping) and "rounds" in boosting else []
    parts += [f"{query} query"] if query not in (None, "linear") else []
    parts += [rule] if rule is not None and rule != "standard" else []
    return " + ".join(parts) or "standard"


def _kind(section: Any) -> str | None:
    return section.get("kind") if isinstance(section, Mapping) else None


def _parameters(config: Mapping[str, Any]) -> int | None:
    try:
        return count_parameters(from_mapping(DecoderConfig, config["model"])).total
    except (ValueError, KeyError):
        return None


def _recipe_of(folder: Path) -> dict[str, Any]:
    return _read_if_there(folder / "recipe.json") or _read_if_there((comparison_of(folder) or folder) / "recipe.json")


def _read_if_there(file: Path) -> dict[str, Any]:
    return read_json(file) if file.is_file() else {}


def _checkpoints(folder: Path) -> list[Checkpoint]:
    pointers = {name: _read_if_there(folder / f"{name}.json").get("folder") for name in ("last", "best")}
    found = []
    for place in sorted(folder.glob("step-*")):
        step = place.name.removeprefix("step-").partition(".")[0]
        found.append(
            Checkpoint(
                name=place.name,
                step=int(step) if step.isdecimal() else None,
                bytes=sum(file.stat().st_size for file in place.rglob("*") if file.is_file()),
                roles=tuple(role for role, name in pointers.items() if name == place.name),
            )
        )
    return found
