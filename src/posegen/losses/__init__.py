"""What training may minimise beside the loss of a method: one file with a class, and one yaml in ``conf/loss``."""
