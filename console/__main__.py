"""`python -m console`: see `console.cli`."""

from console.cli import main

if __name__ == "__main__":
    main()
