"""The command line: ``prefloop COMMAND``, or ``python -m prefloop COMMAND``."""

import signal
import sys


def main() -> None:
    """Carry out a command; Ctrl-C and SIGTERM end it without a traceback, also while its modules are being loaded."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        from flows.__main__ import main as command

        command()
    except KeyboardInterrupt:
        print("prefloop: interrupted", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
