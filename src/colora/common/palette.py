"""Colours, markers and dashes of all figures: a reader who cannot tell the colours has the other two."""

__all__ = ["COLOURS", "DASHES", "MARKERS"]

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Okabe and Ito's, without black: that is the ink of each figure."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*", "h")
DASHES = ("-", "--", "-.", ":")
