"""Requests to services of others, many at a time."""
