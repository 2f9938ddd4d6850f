"""The command line, one module per command: `add_parser` adds its flags, `run` parses, calls and prints.

Imports nothing, so that `inversionview --help` needs no JAX; each command imports what it needs when it runs.
"""
