"""Requests: sampling options, the life of one request, its random numbers, and its completion."""
