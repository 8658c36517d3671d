"""`python -m archlab` is the same as `archlab`. Until a verb begins, Ctrl-C ends the process without a word."""

import os
import signal


def main() -> None:
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, lambda number, frame: os._exit(128 + number))
    from archlab.cli.main import main as answer

    answer()


if __name__ == "__main__":
    main()
