"""Query elimination: removing W_Q from a trained decoder where algebra allows it exactly, and saying why where not.

`audit` judges a model, `audit_config_json` a Hugging Face configuration, `convert_queries` does the work.
"""

from heedful.convert.queries.audit import audit as audit
from heedful.convert.queries.config_json import ConfigAudit as ConfigAudit
from heedful.convert.queries.config_json import audit_config_json as audit_config_json
from heedful.convert.queries.conversions import convert_queries as convert_queries
from heedful.convert.queries.reductions import REDUCTIONS as REDUCTIONS
from heedful.convert.queries.report import QueryAudit as QueryAudit
from heedful.convert.queries.report import QueryConversionReport as QueryConversionReport
