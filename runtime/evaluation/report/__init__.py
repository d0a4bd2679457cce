"""Reports of an evaluation: tables, plots, and one JSON line per item."""
