"""The families of pre-trained models that can be imported, one file each, by transformers' `model_type`."""

from __future__ import annotations

from collections.abc import Mapping

from heedful.hf.architectures.gpt2 import GPT2
from heedful.hf.architectures.llama import LLAMA
from heedful.hf.architectures.mistral import MISTRAL
from heedful.hf.architectures.qwen2 import QWEN2
from heedful.hf.architectures.qwen3 import QWEN3
from heedful.hf.architectures.shared import Architecture

ARCHITECTURES: Mapping[str, Architecture] = {
    architecture.model_type: architecture for architecture in (LLAMA, MISTRAL, QWEN2, QWEN3, GPT2)
}
