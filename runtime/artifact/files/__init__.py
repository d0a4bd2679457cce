"""Files of other people, read within bounds."""
