"""Models: a plain readable decoder, its counters, matchers and probes."""

from heedful.models.config import DecoderConfig as DecoderConfig
from heedful.models.config import decoder_config as decoder_config
from heedful.models.decoder import DecoderLM as DecoderLM
from heedful.models.decoder import DecoderState as DecoderState
from heedful.models.decoder import load_decoder as load_decoder
