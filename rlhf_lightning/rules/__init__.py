"""Numbers and combinations that can work, judged without torch."""
