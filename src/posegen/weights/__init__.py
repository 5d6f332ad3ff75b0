"""Files of weights from anywhere: read without running anything in them, and recognised by their content."""
