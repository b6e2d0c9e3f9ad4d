"""Formulas of RLHF as pure functions on tensors. Needs torch only; import what you use from the modules in here."""
