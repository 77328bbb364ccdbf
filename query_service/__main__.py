"""`python -m query_service`: see `query_service.cli`."""

from query_service.cli import main

if __name__ == "__main__":
    main()
