"""`python -m archlab` is the same as `archlab`. Until a verb begins, Ctrl-C ends the process without a word."""

import signal

from archlab.signals import leave


def main() -> None:
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, leave)
    from archlab.cli import main as answer

    answer()


if __name__ == "__main__":
    main()
