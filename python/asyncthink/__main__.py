"""``python -m asyncthink``: the command line, for launchers such as torchrun."""

from asyncthink.cli.app import main

if __name__ == "__main__":
    main()
