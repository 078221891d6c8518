"""Training: settings, launch, a Trainer for DeepMLF, runs that go on where they were cut.

Import from the modules themselves: ``settings``, ``arguments``, ``run``; nothing heavy is loaded here.
"""
