"""The papers' official modules, number by number: outputs, gradients and intermediate values."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from heedful.convert.official import (
    from_boosted,
    from_boosted_retrieval,
    from_differential,
    from_multi_token,
    from_nonlinear_query,
)
from heedful.nn import Attention, BoostedRetrieval, HeadOutput, MultiTokenRule, Rotary, attention_config

FOLDER = Path(__file__).parent / "golden"


def boosted_layer(config, preset):
    return attention_config(preset, hidden_size=config["d_model"], num_heads=config["n_heads"], bias=True), from_boosted


def multi_token_layer(config):
    mta = config["mta"]
    kernel = mta.get("query_kernel_size")
    rule = MultiTokenRule(
        pre_convolution=kernel is not None,
        post_convolution=bool(mta.get("after_sm_query_kernel_size")),
        query_kernel_size=kernel or 1,
        key_kernel_size=mta.get("key_kernel_size") or 1,
        pre_mixing="all" if mta.get("pre_sm_linear_head") else None,
        post_mixing="all" if mta.get("post_sm_linear_head") else mta.get("head_kernel_size"),
        convolution_every=1,
        convolution_offset=0,
    )
    norm = bool(mta.get("group_norm"))
    return (
        attention_config(
            "standard",
            hidden_size=config["dim"],
            num_heads=config["n_heads"],
            num_kv_heads=config["n_kv_heads"],
            rule=rule,
            head_output=HeadOutput(depth_scale=bool(mta.get("layer_norm_rescale"))) if norm else None,
            rotary=Rotary(theta=1e5, layout="interleaved") if config["rope"].startswith("theta") else None,
            layer_index=config["layer_id"],
        ),
        from_multi_token,
    )


def differential_layer(config):
    return (
        attention_config(
            "differential",
            hidden_size=config["embed_dim"],
            num_heads=2 * config["num_heads"],
            num_kv_heads=2 * config["num_kv_heads"],
            layer_index=config["depth"],
        ),
        from_differential,
    )


def nonlinear_layer(config):
    preset = {"original": "standard", "residual_gelu": "nonlinear-query"}[config["query_mode"]]
    settings = attention_config(preset, hidden_size=config["n_embd"], num_heads=config["num_heads"])
    return settings, lambda parameters: from_nonlinear_query(parameters, config["query_mode"])


LAYERS = {
    "boosted_lm_M2": lambda config: boosted_layer(config, "boosted"),
    "boosted_lm_kv_input_M2": lambda config: boosted_layer(config, "boosted-input-kv"),
    "standard_lm": lambda config: boosted_layer(config, "standard"),
    "twicing_lm": lambda config: boosted_layer(config, "twicing"),
    "nlq_original": nonlinear_layer,
    "nlq_residual_gelu": nonlinear_layer,
    "mta_v1": multi_token_layer,
    "mta_toy_rope": multi_token_layer,
    "talking_heads": multi_token_layer,
    "diff_v1": differential_layer,
}


class Golden:
    """One file: parameters, inputs and results in the asked precision."""

    def __init__(self, name, dtype):
        with np.load(FOLDER / f"{name}.npz") as file:
            arrays = {key: file[key] for key in file.files}
        meta = json.loads(str(arrays.pop("meta")))
        self.config = meta["config"]
        self.tensors = {key: torch.from_numpy(np.asarray(array)).to(dtype) for key, array in arrays.items()}

    def __getitem__(self, key):
        return self.tensors[key]

    def group(self, prefix):
        return {key.removeprefix(prefix): t for key, t in self.tensors.items() if key.startswith(prefix)}


def assert_gradients(found, official, convert, dtype):
    """float64: 1e-9 absolute; float32: 1e-4 of the official tensor's largest entry (the files' stated tolerances)."""
    expected = convert(official)
    largest = convert({name: torch.full_like(tensor, float(tensor.abs().max())) for name, tensor in official.items()})
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        bound = 1e-9 if dtype == torch.float64 else 1e-4 * float(largest[name].max())
        assert float((found[name] - gradient).abs().max()) <= bound, name


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("name", LAYERS)
def test_layer_reproduces_the_official_module(name, dtype, monkeypatch):
    golden = Golden(name, dtype)
    config, convert = LAYERS[name](golden.config)
    layer = Attention(config).to(dtype)
    layer.load_state_dict(convert(golden.group("param.")))
    if config.rotary is not None:  # the files hold the float32 tables that the official code had used
        tables = (golden["in.rope_cos"], golden["in.rope_sin"])
        monkeypatch.setattr(layer.rounds[0].rotary, "tables", lambda positions, dtype: tables)
    x = golden["in.x"].requires_grad_()
    y, _ = layer(x)
    assert float((y.detach() - golden["out.y"]).abs().max()) <= (1e-9 if dtype == torch.float64 else 2e-5)
    (y * golden["in.R"]).sum().backward()
    found = {parameter_name: parameter.grad for parameter_name, parameter in layer.named_parameters()}
    official = golden.group("grad.")
    assert_gradients({"x": x.grad}, {"x": official.pop("x")}, dict, dtype)
    assert_gradients(found, official, convert, dtype)


def test_our_float32_rotary_tables_equal_the_official_ones_to_their_rounding():
    golden = Golden("mta_toy_rope", torch.float64)
    config, _ = multi_token_layer(golden.config)
    rotary = Attention(config).rounds[0].rotary
    cos, sin = rotary.tables(torch.arange(23)[None], torch.float64)
    # The angle itself, up to 22 radians, was rounded to float32 there.
    bound = 22 * torch.finfo(torch.float32).eps
    assert float((cos[0, 0] - golden["in.rope_cos"]).abs().max()) < bound
    assert float((sin[0, 0] - golden["in.rope_sin"]).abs().max()) < bound


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_retrieval_reproduces_the_official_module(dtype):
    golden = Golden("boosted_synth_M3_scalar", dtype)
    config = golden.config
    assert config["gate_type"] == "scalar"
    module = BoostedRetrieval(config["d_model"], rounds=config["n_rounds"], gate="scalar").to(dtype)
    module.load_state_dict(from_boosted_retrieval(golden.group("param.")))
    x, patterns = golden["in.x"].requires_grad_(), golden["in.patterns"].requires_grad_()
    result = module(x, patterns)
    bound = 1e-9 if dtype == torch.float64 else 2e-5
    assert float((result.output.detach() - golden["out.y"]).abs().max()) <= bound
    assert float((result.weights.detach() - golden["aux.weights0"]).abs().max()) <= bound
    assert float((result.entropy.detach() - golden["aux.entropy0"]).abs().max()) <= bound
    (result.output * golden["in.R"]).sum().backward()
    official = golden.group("grad.")
    inputs = {"x": x.grad, "patterns": patterns.grad}
    assert_gradients(inputs, {name: official.pop(name) for name in inputs}, dict, dtype)
    found = {name: parameter.grad for name, parameter in module.named_parameters()}
    assert_gradients(found, official, from_boosted_retrieval, dtype)


def test_the_wrong_conventions_are_far_away():
    """Sharpness of the files: transposed head mixing or another depth changes the output by more than any tolerance."""
    golden = Golden("mta_v1", torch.float64)
    config, convert = multi_token_layer(golden.config)
    layer = Attention(config).double()
    state = convert(golden.group("param."))
    state["rounds.0.rule.head_post"] = state["rounds.0.rule.head_post"].transpose(1, 2)
    layer.load_state_dict(state)
    assert float((layer(golden["in.x"])[0].detach() - golden["out.y"]).abs().max()) > 0.1
