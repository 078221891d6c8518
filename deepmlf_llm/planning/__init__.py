"""What a run costs, known before it starts.

Import from the modules themselves; nothing heavy is loaded here.
"""
