"""heedful: attention that does more than one softmax average, exact, composable and fairly compared.

The public API on one page; importing it needs torch alone.

    attention_config("boosted+multi-token", hidden_size=..., num_heads=...)   a layer's configuration by preset names
    Attention(config)(x)                                                      the layer
    decoder_config(...), DecoderLM(config)                                    a whole language model
    AttentionMask(...)                                                        padding, packed documents, windows
    explain(config)                                                           which backend runs, and why
    heedful.ops                                                               the operations as functions on tensors
"""

from heedful import nn as nn
from heedful import ops as ops
from heedful.explain import explain as explain
from heedful.models import DecoderConfig as DecoderConfig
from heedful.models import DecoderLM as DecoderLM
from heedful.models import decoder_config as decoder_config
from heedful.models import load_decoder as load_decoder
from heedful.nn import PRESETS as PRESETS
from heedful.nn import Attention as Attention
from heedful.nn import AttentionConfig as AttentionConfig
from heedful.nn import AttentionState as AttentionState
from heedful.nn import attention_config as attention_config
from heedful.ops import AttentionMask as AttentionMask

__version__ = "0.1.0"
