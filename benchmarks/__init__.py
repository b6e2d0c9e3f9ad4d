"""Scripts that anyone can run to check what this project claims."""
