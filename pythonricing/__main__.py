"""`python -m pythonricing` is the command."""

from pythonricing.serve.cli import main

main(prog_name="pythonricing")
