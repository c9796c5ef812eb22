"""`python -m mdm_apple` is the command `mdm`."""

from mdm_apple.cli import main

main()
