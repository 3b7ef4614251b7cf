"""heedful in transformers: import this, and `AutoModelForCausalLM.from_pretrained` knows the heedful models."""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

from heedful.hf.cache import make_cache as make_cache
from heedful.hf.configuration import HeedfulConfig as HeedfulConfig
from heedful.hf.modeling import HeedfulForCausalLM as HeedfulForCausalLM
from heedful.hf.modeling import HeedfulForSequenceClassification as HeedfulForSequenceClassification
from heedful.hf.modeling import HeedfulModel as HeedfulModel

AutoConfig.register("heedful", HeedfulConfig, exist_ok=True)
AutoModel.register(HeedfulConfig, HeedfulModel, exist_ok=True)
AutoModelForCausalLM.register(HeedfulConfig, HeedfulForCausalLM, exist_ok=True)
AutoModelForSequenceClassification.register(HeedfulConfig, HeedfulForSequenceClassification, exist_ok=True)
