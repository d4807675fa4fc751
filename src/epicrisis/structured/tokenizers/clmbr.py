"""One token per event, as CLMBR-T reads them (Steinberg et al., J Biomed Inform 2021;113:103637; FEMR, EHRSHOT).

A value makes its own token of the code: `LOINC//718-7 || g/dL || 9.1 - 12.3`, or `code || text`.
"""

from epicrisis.structured.tokenizers.manner import Manner

CLMBR = Manner("clmbr", 1, values="joined", demographics=("birth", "sex", "static"), one_token=True)
