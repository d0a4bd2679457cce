"""How well an engine does its work: problems with one right answer each, and their scoring."""
