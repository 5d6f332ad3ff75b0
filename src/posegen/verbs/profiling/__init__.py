"""What `posegen profile` measures, and how."""
