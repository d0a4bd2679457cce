"""The commands that add to an engine directory or deploy it: compile, triton."""
