"""From a clip, a file of sound and pictures, to words and features, by a recipe that can be repeated.

Import from the modules themselves; nothing heavy is loaded here. This room knows nothing of the model.
"""
