"""Every kind by its name."""

from __future__ import annotations

from epicrisis.structured.tokenizers.cehr import CEHR
from epicrisis.structured.tokenizers.clmbr import CLMBR
from epicrisis.structured.tokenizers.cookbook import COOKBOOK
from epicrisis.structured.tokenizers.description import DESCRIPTION
from epicrisis.structured.tokenizers.ethos import ETHOS

KINDS = {manner.name: manner for manner in (CLMBR, COOKBOOK, CEHR, DESCRIPTION, ETHOS)}
