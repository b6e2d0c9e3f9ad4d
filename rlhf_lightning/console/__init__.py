"""What is shown and written as text: streams that never end a run, without secrets, safe to look at."""
