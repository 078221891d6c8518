"""The commands: parse, call, print. Each is a ``main(argv)``; ``recipes/*.py`` are shims over them."""
