"""The page of ``posegen demo``."""
