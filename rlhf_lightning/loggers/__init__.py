"""Where metrics go: what each kind of logger is given besides curves, and loggers that Lightning has not."""
