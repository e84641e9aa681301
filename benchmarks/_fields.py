"""Field names of records that follow the words of the package.

Records outlive the code that wrote them. When the package renames one of these words, change the
value here and rename the field in ``results/*.jsonl``; readers and writers use only the constants.
The values of ``label`` and of keys (``order-obs``) are names of cases, not words of the package.
"""

IMPORTANCE = "order"  # of units: obs, taylor, ...
COMPENSATION = "refit"  # none, bias, least-squares
TOKENS = "tokens"  # which tokens calibration weighs: gradient, all, text
WIDTHS = "keep"  # units kept of each component, in forward order
WIDTHS_BY_METHOD = "keeps"
WIDTH_RATIO = "keep"  # of a uniform policy
KEEP_RATIO = "kept_share"  # share of the prunable weights
