"""Files as rows, each with the place it comes from."""
