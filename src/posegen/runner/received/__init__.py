"""What files say that may come from someone else: state files with their schemas, and the classes that they name."""
