"""Codes with deciles per unit and with categories, kept by rank (top_k) or all (Wornow et al., arXiv:2412.16178).

Unlike clmbr it may tell a value apart from its code, and have time and visit tokens.
"""

from epicrisis.structured.tokenizers.manner import Manner

COOKBOOK = Manner("cookbook", 1, values="joined", demographics=("birth", "sex", "static"))
