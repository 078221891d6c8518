"""Data: readers of what the field exchanges, one prepared form, batches.

Import from the modules themselves: ``prepare``, ``store``, ``collate``, ``demo``; nothing heavy is loaded here.
"""
