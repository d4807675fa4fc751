"""Codes in levels, quantile tokens after them, intervals between events, age and static facts before them.

After ETHOS (Renc et al., npj Digit Med 2024;7:256). A value's quantile token (Q1 to Q10) is the same for all codes.
"""

from epicrisis.structured.tokenizers.manner import Manner

ETHOS = Manner(
    "ethos", 1, values="separate", time_tokens="intervals", demographics=("age", "sex", "static"), code_levels=True
)
