"""What a run costs, told before it starts.

Import from the modules themselves; nothing heavy is loaded here.
"""
