"""Modules and configurations: the layer, its sections, and the presets that name them.

Every configuration class is re-exported here, so that `eval(repr(config), vars(heedful.nn))` rebuilds a configuration.
"""

from heedful.nn.annealed_query import AnnealedQuery as AnnealedQuery
from heedful.nn.attention import Attention as Attention
from heedful.nn.boosting import Boosting as Boosting
from heedful.nn.config import AttentionConfig as AttentionConfig
from heedful.nn.differential import DifferentialRule as DifferentialRule
from heedful.nn.differential import DifferentialV2Rule as DifferentialV2Rule
from heedful.nn.head_output import BlendedHeadOutput as BlendedHeadOutput
from heedful.nn.head_output import HeadOutput as HeadOutput
from heedful.nn.multi_token import MultiTokenRule as MultiTokenRule
from heedful.nn.multi_token import TalkingHeadsRule as TalkingHeadsRule
from heedful.nn.partial_identity_query import PartialIdentityQuery as PartialIdentityQuery
from heedful.nn.presets import PRESETS as PRESETS
from heedful.nn.presets import attention_config as attention_config
from heedful.nn.queries import IdentityQuery as IdentityQuery
from heedful.nn.queries import LinearQuery as LinearQuery
from heedful.nn.queries import NonlinearQuery as NonlinearQuery
from heedful.nn.retrieval import BoostedRetrieval as BoostedRetrieval
from heedful.nn.rotary import LinearScaling as LinearScaling
from heedful.nn.rotary import Llama3Scaling as Llama3Scaling
from heedful.nn.rotary import NtkScaling as NtkScaling
from heedful.nn.rotary import Rotary as Rotary
from heedful.nn.rotary import YarnScaling as YarnScaling
from heedful.nn.score_rule import ScoreRule as ScoreRule
from heedful.nn.standard import StandardRule as StandardRule
from heedful.nn.state import AttentionState as AttentionState
from heedful.nn.twicing import TwicingRule as TwicingRule
