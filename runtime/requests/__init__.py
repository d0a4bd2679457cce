"""Requests: sampling options, a request from submission to end, its random numbers, and its completion."""
