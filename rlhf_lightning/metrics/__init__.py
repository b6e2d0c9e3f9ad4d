"""What is logged: functions of data and `Ranks`."""
