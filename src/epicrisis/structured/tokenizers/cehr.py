"""Visits between [VS] and [VE], with artificial time tokens between them, after age and sex.

Time tokens are CEHR-BERT's weeks and months (Pang et al., PMLR 158:239–260, 2021), or, with time_tokens: days,
CEHR-GPT's (Pang et al., arXiv:2402.04400). A visit's kind and where it ended are told by the codes that say so,
after [VS] and before [VE]. As in both, values are left out unless asked for.
"""

from epicrisis.structured.tokenizers.manner import Manner

CEHR = Manner("cehr", 1, values="none", time_tokens="weeks", visit_tokens=True, demographics=("age", "sex", "static"))
