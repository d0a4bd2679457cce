"""The tests; `tests.support` is the package of what several of them share."""
