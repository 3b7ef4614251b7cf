from __future__ import annotations

import json
from typing import Any

import pytest
from tiny_run import tiny_config

from heedful.schema import from_mapping, to_mapping
from heedful.train import OptimizerConfig, ScheduleConfig, TrainConfig


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"steps": 0}, "steps must be 1 or more, got 0"),
        ({"batch_size": -1}, "batch_size must be 1 or more"),
        ({"log_every": 0}, "log_every must be 1 or more"),
        ({"accumulation": 6}, "accumulation splits the rows of a batch, so it must be at most batch_size, got 6 and 4"),
        ({"seed": -1}, "seed must be between 0 and"),
        ({"precision": "float16"}, "precision must be one of 'float32', 'bfloat16', got 'float16'"),
        ({"keep": "none"}, "keep must be one of 'best and last', 'all', got 'none'"),
        ({"steps": 3}, r"warmup_steps must be smaller than steps, got 3 and 3"),
    ],
)
def test_a_wrong_run_is_refused_with_the_reason(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_config(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"learning_rate": 0.0}, "learning_rate must be above 0"),
        ({"learning_rate": float("nan")}, "learning_rate must be above 0"),
        ({"betas": (0.9, 1.0)}, r"betas must be two numbers in \[0, 1\)"),
        ({"betas": (0.9,)}, "betas must be two numbers"),
        ({"eps": 0.0}, "eps must be above 0"),
        ({"weight_decay": -0.1}, "weight_decay must be 0 or more"),
        ({"decay": "some"}, "decay must be one of 'matrices', 'all', got 'some'"),
        ({"gradient_clip": -1.0}, "gradient_clip must be 0"),
    ],
)
def test_a_wrong_optimizer_is_refused_with_the_reason(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OptimizerConfig(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "step"}, "kind must be one of 'cosine', 'linear', 'constant', 'wsd', got 'step'"),
        ({"warmup_steps": -1}, "warmup_steps must be 0 or more"),
        ({"final_ratio": 1.5}, "final_ratio must be between 0 and 1"),
    ],
)
def test_a_wrong_schedule_is_refused_with_the_reason(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ScheduleConfig(**fields)


def test_a_configuration_survives_json() -> None:
    config = tiny_config(precision="bfloat16", optimizer=OptimizerConfig(betas=(0.8, 0.9)))
    assert from_mapping(TrainConfig, json.loads(json.dumps(to_mapping(config)))) == config
