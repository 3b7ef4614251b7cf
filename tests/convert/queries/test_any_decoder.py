"""Whatever the decoder: a conversion is refused with a reason, or it is exact. Nothing in between."""

import json

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from query_nets import error, randomised

from heedful.convert.queries import REDUCTIONS, audit, convert_queries
from heedful.models import DecoderLM, decoder_config
from heedful.nn import LinearQuery, Rotary
from heedful.schema import to_mapping

BOOLEANS = st.booleans()
FIELDS = st.fixed_dictionaries(
    {
        "norm": st.sampled_from(["none", "none", "rms", "layer"]),
        "norm_position": st.sampled_from(["pre", "pre", "post"]),
        "attention_skip": BOOLEANS,
        "feed_forward_skip": BOOLEANS,
        "share_layers": st.sampled_from([False, False, True]),
        "tie_embeddings": BOOLEANS,
        "head_bias": BOOLEANS,
        "bias": BOOLEANS,
        "attention_bias": BOOLEANS,
        "output_bias": st.sampled_from([None, True, False]),
        "qk_norm": BOOLEANS,
        "rotary": st.sampled_from([None, Rotary(), Rotary(layout="interleaved")]),
        "num_kv_heads": st.sampled_from([1, 2, 4]),
        "head_dim": st.sampled_from([None, 2, 6]),
        "activation": st.sampled_from(["gelu", "gelu-tanh", "swiglu"]),
        "query": st.sampled_from([LinearQuery(), LinearQuery(gain=0.5)]),
    }
)
NAMES = st.sampled_from(["standard", "standard", "standard", "multi-token", "differential", "boosted", "twicing"])


@settings(max_examples=60)
@given(
    names=NAMES,
    fields=FIELDS,
    reductions=st.lists(st.sampled_from(REDUCTIONS), unique=True),
    untie=BOOLEANS,
    divisor=st.sampled_from([1.0, 2.5]),
    seed=st.integers(0, 9),
)
def test_refused_or_exact(names, fields, reductions, untie, divisor, seed):
    try:
        config = decoder_config(
            names,
            vocab_size=13,
            num_layers=3,
            max_positions=8,
            hidden_size=16,
            num_heads=4,
            intermediate_size=24,
            **fields,
        )
    except ValueError:  # sizes that the mechanism does not take
        return
    model = randomised(DecoderLM(config), seed)
    found = audit(model)
    json.dumps(to_mapping(found))
    names_that_apply = [one.name for one in found.reductions if one.layers and one.name in reductions]
    eliminates = bool(found.removable)
    if not eliminates and not names_that_apply and not untie:
        for layer in found.layers:
            assert layer.reason
        return
    refusal = ""
    try:
        converted, report = convert_queries(
            model, reductions=names_that_apply, eliminate_queries=eliminates or untie, untie_head=untie, divisor=divisor
        )
    except ValueError as error_raised:
        refusal = str(error_raised)
    if refusal:
        # A removed query takes the rotation and the gauge away; and with a head to untie the audit knows only part.
        assert any(words in refusal for words in ("does not apply", "can be removed exactly", "nothing to do"))
        return
    ids = torch.randint(13, (2, 8), generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        assert error(converted(ids)[0], model(ids)[0]) < 1e-10
    if eliminates and not names_that_apply and not untie and divisor == 1.0:
        assert report.removed == found.removable
        assert report.net_saved == found.net_saved
