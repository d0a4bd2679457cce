"""Tests of the whole repository; `tests.support` has the helpers that several of them share."""
