"""heedful in transformers: import this, and `AutoModelForCausalLM.from_pretrained` knows the heedful models."""

import transformers as _transformers

from heedful.hf.annealing import AnnealQuery as AnnealQuery
from heedful.hf.annealing import finish_annealing as finish_annealing
from heedful.hf.cache import make_cache as make_cache
from heedful.hf.configuration import HeedfulConfig as HeedfulConfig
from heedful.hf.export import export_pretrained as export_pretrained
from heedful.hf.export import import_native as import_native
from heedful.hf.importing import import_decoder as import_decoder
from heedful.hf.modeling import HeedfulForCausalLM as HeedfulForCausalLM
from heedful.hf.modeling import HeedfulForSequenceClassification as HeedfulForSequenceClassification
from heedful.hf.modeling import HeedfulModel as HeedfulModel
from heedful.hf.new_parameters import freeze_all_but_new as freeze_all_but_new
from heedful.hf.new_parameters import new_parameter_names as new_parameter_names
from heedful.hf.new_parameters import parameter_groups as parameter_groups
from heedful.hf.tokenizers import to_transformers as to_transformers
from heedful.hf.upcycling import upcycle as upcycle

_transformers.AutoConfig.register("heedful", HeedfulConfig, exist_ok=True)
_transformers.AutoModel.register(HeedfulConfig, HeedfulModel, exist_ok=True)
_transformers.AutoModelForCausalLM.register(HeedfulConfig, HeedfulForCausalLM, exist_ok=True)
_transformers.AutoModelForSequenceClassification.register(
    HeedfulConfig, HeedfulForSequenceClassification, exist_ok=True
)
