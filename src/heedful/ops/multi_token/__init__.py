"""Multi-token attention: `reference` holds the equations, `api` the public operation."""

from heedful.ops.multi_token.api import multi_token_attention as multi_token_attention
from heedful.ops.multi_token.api import multi_token_backends as multi_token_backends
