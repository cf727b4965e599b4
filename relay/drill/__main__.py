"""``python -m relay.drill``: as ``relay-drill``."""

from relay.drill.command import main

if __name__ == "__main__":
    main()
