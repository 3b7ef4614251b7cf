"""Operations: pure functions on tensors of shape (batch, heads, sequence, head_dim), with torch's SDPA conventions.

Queries are the last N of the M key positions, fewer key/value heads are shared by consecutive query heads, `is_causal`
is True by default, and everything else that hides keys is an `AttentionMask`.
"""

from heedful.ops.backends import BACKENDS as BACKENDS
from heedful.ops.backends import Choice as Choice
from heedful.ops.differential import differential_attention as differential_attention
from heedful.ops.differential import differential_attention_v2 as differential_attention_v2
from heedful.ops.masks import AttentionMask as AttentionMask
from heedful.ops.multi_token import multi_token_attention as multi_token_attention
from heedful.ops.multi_token import multi_token_decode as multi_token_decode
from heedful.ops.standard import standard_attention as standard_attention
from heedful.ops.talking_heads import talking_heads_attention as talking_heads_attention
from heedful.ops.twicing import twicing_attention as twicing_attention
from heedful.ops.twicing import twicing_step as twicing_step
