"""The README.md of an exported model: what it is, and how to load it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

import heedful
from heedful.nn.config import AttentionConfig
from heedful.nn.presets import PRESETS
from heedful.schema import to_mapping

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from heedful.hf.modeling import HeedfulForCausalLM

_CARD = """\
---
library_name: transformers
pipeline_tag: text-generation
tags:
- heedful
---

# {name}

A decoder-only language model with attention of its own kind, exported by heedful {version}.

| | |
|---|---|
| attention | {attention} |
| parameters | {parameters:,}, {dtype} |
| layers | {layers} |
| hidden size | {width} |
| heads | {heads} |
| vocabulary | {vocabulary:,} |
| longest context | {context:,} |
| tokenizer | {tokenizer} |

## Loading without heedful

`modeling_heedful.py` in this folder is a self-contained copy of the code that the model needs. transformers executes
it if you allow that; look into it first if you do not know where it comes from. It needs torch and transformers and
holds no Triton kernels.

```python
from transformers import AutoModelForCausalLM{imported}

model = AutoModelForCausalLM.from_pretrained("FOLDER", trust_remote_code=True){call}
```

## Loading with heedful

With heedful installed its own classes are used and nothing in this folder is executed.

```python
import heedful.hf  # tells transformers about the model
from transformers import AutoModelForCausalLM{imported}

model = AutoModelForCausalLM.from_pretrained("FOLDER"){call}
```

`heedful export FOLDER NATIVE --native` turns it into heedful's own form, without loss.

The code is under the Apache License 2.0; that says nothing about the terms of the weights.
"""


def model_card(model: HeedfulForCausalLM, name: str, tokenizer: PreTrainedTokenizerBase | None) -> str:
    """Return the text of README.md.

    Args:
        model: the exported model.
        name: the heading.
        tokenizer: what is exported with it, if anything.
    """
    config = model.config
    return _CARD.format(
        name=name,
        version=heedful.__version__,
        attention=_mechanisms(config.decoder_config().layers),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        dtype=str(model.dtype).removeprefix("torch."),
        layers=f"{config.num_hidden_layers}, sharing weights" if config.share_layers else config.num_hidden_layers,
        width=config.hidden_size,
        heads=config.num_attention_heads,
        vocabulary=config.vocab_size,
        context=config.max_position_embeddings,
        tokenizer="none here" if tokenizer is None else f"{len(tokenizer):,} ids",
        imported="" if tokenizer is None else ", AutoTokenizer",
        call="" if tokenizer is None else '\ntokenizer = AutoTokenizer.from_pretrained("FOLDER")',
    )


def _mechanisms(layers: Sequence[AttentionConfig]) -> str:
    """Return the mechanism of the layers on one line."""
    places: dict[str, list[int]] = {}
    for index, layer in enumerate(layers):
        places.setdefault(_mechanism(layer), []).append(index)
    if len(places) == 1:
        return next(iter(places))
    shown = [
        f"layer{'s' if len(indices) > 1 else ''} {', '.join(map(str, indices))}: {text}"
        for text, indices in places.items()
    ]
    return "; ".join(shown)


def _mechanism(layer: AttentionConfig) -> str:
    """Return the presets that a layer is made of, and in full what no preset says."""
    names, said = [], set()
    for name, preset in sorted(PRESETS.items(), key=lambda item: -len(item[1].sections)):
        sections = preset.sections
        if sections and not said & sections.keys() and all(getattr(layer, s) == v for s, v in sections.items()):
            names.append(name)
            said |= sections.keys()
    text = f"`{'+'.join(name for name in PRESETS if name in names) or 'standard'}`"
    plain = AttentionConfig(hidden_size=layer.hidden_size, num_heads=layer.num_heads)
    unsaid = sorted({section for preset in PRESETS.values() for section in preset.sections} - said)
    own = {s: to_mapping(getattr(layer, s)) for s in unsaid if getattr(layer, s) != getattr(plain, s)}
    return f"{text} with `{json.dumps(own)}`".replace("|", "\\|") if own else text
