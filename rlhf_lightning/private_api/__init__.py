"""What other libraries do not promise to keep, one file per library: an upgrade that breaks something breaks it here.

Each function says what it relies on and which public way is missing. It imports nothing of ours. A gate finds uses of
private names, and replaced methods, anywhere else in the package.
"""
