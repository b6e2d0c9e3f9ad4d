"""People judge answers: the record, the page, their agreement, and what training makes of it. Imports no torch."""
