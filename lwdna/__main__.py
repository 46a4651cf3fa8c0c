"""``python -m lwdna``: the command line."""

from lwdna.cli import main

if __name__ == "__main__":
    main()
