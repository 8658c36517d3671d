"""`python -m archlab` is the same as `archlab`."""

from archlab.cli import main

if __name__ == "__main__":
    main()
