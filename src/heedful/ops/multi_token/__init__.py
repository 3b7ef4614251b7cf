"""Multi-token attention: the public operation and its decoding form.

`reference` holds the equations; `blockwise` computes them in linear memory through the `walk` over `tiles`, with the
`torch_mixer` or the `triton_mixer` between the two products; `mixed_outputs` serves head mixing after the softmax
alone; `choice` says which one runs.
"""

from heedful.ops.multi_token.api import multi_token_attention as multi_token_attention
from heedful.ops.multi_token.choice import CallSizes as CallSizes
from heedful.ops.multi_token.choice import PartSizes as PartSizes
from heedful.ops.multi_token.choice import multi_token_backends as multi_token_backends
from heedful.ops.multi_token.decode import multi_token_decode as multi_token_decode
