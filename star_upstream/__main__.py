"""``python -m star_upstream`` is the command ``star``."""

from .cli import main

if __name__ == "__main__":
    main()
