"""Reports of an evaluation: estimates with intervals, tables, plots, and a JSON line for each item."""
