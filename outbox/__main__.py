"""`python -m outbox` is `atb`."""

from outbox.cli import main

if __name__ == "__main__":
    main()
