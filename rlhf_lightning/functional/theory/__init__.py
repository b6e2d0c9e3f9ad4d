"""Exact and closed-form results that training is compared with."""
