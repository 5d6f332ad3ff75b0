"""What a configuration may hold, and what is wrong with one."""
