"""What a row holds: fields, conversations, and what is wrong with it."""
