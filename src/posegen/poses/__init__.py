"""Skeletons and how they are drawn."""
