"""Adapter files: what is written is read again and checked; what is damaged is refused before anything is loaded."""
