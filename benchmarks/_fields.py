"""Field names of records that follow the words of the package.

Records outlive the code that wrote them. When the package renames one of these words, change the
value here and rename the field in ``results/``; readers and writers use only the constants.
"""

IMPORTANCE = "importance"  # criterion: obs, taylor, ...
COMPENSATION = "compensation"  # none, bias, least-squares
TOKENS = "tokens"  # which tokens calibration weighs: gradient, all, text
WIDTHS = "widths"  # units kept by each component, in forward order
WIDTH_RATIO = "width_ratio"  # of a uniform policy
KEEP_RATIO = "keep_ratio"  # share of the prunable weights
