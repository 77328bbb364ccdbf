"""`python -m command_service`: see `command_service.cli`."""

from command_service.cli import main

if __name__ == "__main__":
    main()
